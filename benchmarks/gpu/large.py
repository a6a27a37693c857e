"""1.28 · 10⁶ targets of 64 × 64 × 3 bytes, as many as ImageNet's: what a batch takes there, and so what a solve would.

    minutes = samples a target (measured on smaller sets) · N · seconds a sample (measured at N) / 60

The bytes alone stay on the device; every pass lays them out and reduces them a block at a time.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Generator, Tensor

from .session import CRASHES, Session, reason
from .solver import Timed

N, SIDE, SMALL_N, SMALL_SIDE = 1_280_000, 64, 1200, 8
PARTS, SMALL_PARTS = (64, 16), (4, 2)  # of the targets that are solved for, to see how many samples a target takes
LEAST = 2**14  # targets below which a size that does not fit is not halved any more
COARSE, PIECE = 8, 4096  # pixels across of what images vary in, and images made at once
BATCHES, SMALL_BATCHES = (8192, 32_768), (16, 32)
NEAREST = 16  # of a top-k: the length of a solver's lists
BLOCKS = 0.6  # of the free memory that blocks may take: a solver's lists need some, too
# Entries of lists a target that a solve has to keep: 4 000 of these images were solved to χ² ≤ 0.05 in 19 samples a
# target with 1 024 of them and with more, in 38 with 512, and with 384, 262 and 52 not in 60.
ENTRIES = 1024
TOLERANCE, SECONDS = 0.05, 4.0  # χ², and for how long a batch is timed
ROUNDS, SHARE = 5, 0.4  # times that a batch is reduced at least, and of the time that is left, which it may take
PARTIAL = 0.9  # of the time that is left after them, for the steps of a solve


def images(n: int, side: int, device: torch.device) -> Tensor:
    """Smooth random colours with grain, uint8 [n, 3 · side²], made a few at a time from one seed."""
    random = Generator(device).manual_seed(0)
    found = torch.empty(n, 3 * side * side, dtype=torch.uint8, device=device)
    for part in found.split(PIECE):
        coarse = torch.randn(len(part), 3, min(COARSE, side), min(COARSE, side), device=device, generator=random)
        smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").flatten(1)
        grain = torch.randn(part.shape, device=device, generator=random)
        part.copy_((128 + 60 * smooth + 8 * grain).clamp(0, 255))
    return found


def noise(d: int, device: torch.device) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, d, device=device)


def peak(session: Session) -> dict[str, int]:
    """The most bytes that the device held since the last call."""
    if not session.cuda:
        return {}
    found = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_bytes": found}


def smaller(session: Session, y: Tensor) -> dict:
    """A whole solve of some of the targets, laid out whole."""
    from fastsdot.semidiscrete import SemiDiscreteOT

    start = time.perf_counter()
    source = Timed(session, noise(y.shape[1], session.device))
    ot = SemiDiscreteOT(y, backend=session.named)
    most = 60 * len(y) if session.small else None
    try:
        solution = ot.solve(source, tol=TOLERANCE, max_samples=most)
    except TimeoutError as error:
        return {"n": len(y), "absent": str(error)}
    found = {"n": len(y), "converged": solution.converged, "samples a target": solution.samples / len(y)}
    found |= {"chi2": solution.report.chi2, "chi2_error": solution.report.chi2_error}
    return found | {"seconds": time.perf_counter() - start, "backend": ot.backend} | peak(session)


def in_blocks(session: Session, y: Tensor):
    """A transport onto bytes that stay as they are."""
    from fastsdot.semidiscrete import SemiDiscreteOT

    limit = int(BLOCKS * session.free()) if session.cuda else 8 * y.numel() // 2
    return SemiDiscreteOT(y, memory=limit, backend=session.named)


def batches(session: Session, ot) -> dict[str, dict]:
    """Seconds of an argmin and of a top-k for batches of each size."""
    found, pair = {}, 0.0
    for b in SMALL_BATCHES if session.small else BATCHES:
        if ROUNDS * pair * b > SHARE * session.left:
            found[f"B={b}"] = {"absent": "it came after this part's time"}
            continue
        x = noise(ot.shape.numel(), ot.device)(b)
        runs = {"argmin": lambda x=x: ot.assign(x), "topk": lambda x=x: ot.topk(x, NEAREST)}
        ot.topk(x[:8], NEAREST)
        seconds = session.medians(runs, 0.1 if session.small else SECONDS)
        pair = sum(seconds.values()) / b
        rates = {f"{name} samples/s": b / taken for name, taken in seconds.items()}
        found[f"B={b}"] = seconds | rates | {"flops": 2 * b * ot.targets.shape[0] * x.shape[1] / seconds["topk"]}
        found[f"B={b}"] |= peak(session)
    return found


def partial(session: Session, ot) -> dict:
    """A solve that is stopped when the time is up: how many samples a second it came to, with all that it does."""
    source = Timed(session, noise(ot.shape.numel(), ot.device))
    most = 4 * ot.targets.shape[0] if session.small else None
    seconds = max(1.0, PARTIAL * session.left)
    start = time.perf_counter()
    with suppress(TimeoutError):  # a fit may delay it past the part's end
        ot.solve(source, tol=TOLERANCE, max_seconds=seconds, max_samples=most)
    taken = time.perf_counter() - start
    return {"seconds": taken, "samples": source.samples, "samples/s": source.samples / taken} | peak(session)


def extrapolated(found: dict, targets: int, device: torch.device) -> dict:
    """Minutes of a whole solve, with the numbers that they are made of."""
    from fastsdot import stages

    solved = [entry for entry in found["smaller"] if entry.get("converged")]
    timed = [entry["topk samples/s"] for entry in found["batches"].values() if "topk samples/s" in entry]
    if not solved or not timed:
        return {"absent": "no smaller set was solved, or no batch was timed"}
    a_target, n = max(entry["samples a target"] for entry in solved), found["n"]
    shares = {"steps alone": max(timed)} | {"as in the partial solve": found.get("partial", {}).get("samples/s", 0.0)}
    result, unless = {"samples a target": a_target, "targets": targets}, ""
    if targets * ENTRIES > (entries := stages.room(targets, device)):
        kept = entries / targets
        result["not reached"] = f"lists keep {kept:.0f} entries a target, of {ENTRIES} that are needed"
        unless = "if lists kept enough, "
    for name, rate in shares.items():
        if rate:
            at_all = rate * n / targets  # seconds a sample grow with the targets
            result[f"minutes, {unless}{name}"] = a_target * targets / at_all / 60
            taken = f"({rate:.4g} · {n} / {targets} samples/s)"
            result[f"arithmetic, {unless}{name}"] = f"{a_target:.3g} · {targets} / {taken} / 60"
    return result


def at_size(session: Session, n: int, side: int, found: dict) -> None:
    """Everything at this many targets; raises `torch.OutOfMemoryError` where they do not fit."""
    start = time.perf_counter()
    y = images(n, side, session.device)
    ot = in_blocks(session, y)
    found |= {"n": n, "d": y.shape[1], "target_bytes": y.nbytes, "block": ot.targets.block, "backend": ot.backend}
    found |= {"prepared in seconds": time.perf_counter() - start, "prepared": peak(session)}
    session.keep(found)
    found["batches"] = batches(session, ot)
    session.keep(found)
    if session.left > 0:
        found["partial"] = partial(session, ot)
        session.keep(found)


def run(session: Session) -> dict:
    """{what: its figures}, or the reason why there are none."""
    n, side = (SMALL_N, SMALL_SIDE) if session.small else (N, SIDE)
    found: dict = {"smaller": [], "batches": {}}
    wanted = n
    try:
        import fastsdot.semidiscrete  # noqa: F401
    except ModuleNotFoundError as error:
        return {"absent": f"not installed: {error.name}"}
    for part in SMALL_PARTS if session.small else PARTS:
        try:
            found["smaller"].append(smaller(session, images(n // part, side, session.device)))
        except CRASHES as error:
            found["smaller"].append({"n": n // part, "absent": reason(error)})
            session.failures.append(f"large: {n // part} targets: {reason(error)}")
        session.keep(found)
    while True:
        session.free()
        try:
            at_size(session, n, side, found)
            break
        except torch.OutOfMemoryError as error:
            found.setdefault("did not fit", {})[str(n)] = reason(error)
            if n < 2 * LEAST:
                break
            n //= 2
    found["extrapolated"] = extrapolated(found, wanted, session.device)
    return found
