"""The sums over lists that a fit takes many times: are they right on the device, and what do they cost beside torch?"""

from collections.abc import Callable
from functools import partial

import torch

from fastsdot import kernels
from fastsdot.kernels import lists, torch_lists

from .session import CRASHES, Session, reason

SMALL = ((300, 16, 200), (64, 33, 33))  # samples M, entries k of a list, targets N; k = N is one list for all
REAL = ((2**20, 16, 60_000), (2**18, 64, 60_000), (2**17, 16, 1797), (2000, 1797, 1797))
TEMPERATURES = (0.02, 0.3, 1e4)
RELATIVE = 1e-4  # of the masses' largest, and of value and entropy
SECONDS, SMALL_SECONDS = 2.0, 0.1

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def problem(m: int, k: int, n: int, device: torch.device) -> Arguments:
    g = torch.Generator(device).manual_seed(0)
    score = torch.rand(m, k, device=device, generator=g)
    whole = torch.arange(n, dtype=torch.int32, device=device).expand(m, n)
    index = whole if k == n else torch.randint(n, (m, k), dtype=torch.int32, device=device, generator=g)
    return score, index, torch.randn(n, dtype=torch.float64, device=device, generator=g)


def errors(found: kernels.Sums, truth: kernels.Sums, rows: int, temperature: float) -> dict[str, float]:
    """Relative errors; value and entropy are means over rows, and may be near 0."""
    cost = max(1.0, temperature)
    return {
        "mass": float((found.mass - truth.mass).abs().max() / truth.mass.max()),
        "value": abs(found.value - truth.value) / rows / cost,
        "entropy": abs(found.entropy - truth.entropy) / rows,
    }


def measured(session: Session, m: int, k: int, n: int) -> dict[str, float]:
    """The worst errors over temperatures, and the seconds of a call beside those of torch's operators."""
    score, index, shift = problem(m, k, n, session.device)
    worst: dict[str, float] = {}
    for temperature in TEMPERATURES:
        found = kernels.soft_lists(score, index, shift, temperature)
        truth = kernels.soft_lists(score.double(), index, shift, temperature)  # float64 goes by torch's operators
        for name, error in errors(found, truth, m, temperature).items():
            worst[name] = max(worst.get(name, 0.0), error)
            if not error <= RELATIVE:
                session.failures.append(f"lists: {name} of {m} × {k} of {n} at τ = {temperature:g}: error {error:.1e}")
    runs: dict[str, Callable[[], object]] = {
        "fused": partial(kernels.soft_lists, score, index, shift, 0.3),
        "torch": partial(torch_lists.soft, score, index, shift.float(), 0.3),
    }
    seconds = session.medians(runs, SMALL_SECONDS if session.small else SECONDS)
    read = m * k * (4 if k == n else 8)
    return worst | seconds | {"ratio": seconds["torch"] / seconds["fused"], "bytes/s": read / seconds["fused"]}


def run(session: Session) -> dict:
    """{problem: its figures}, or the reason why there are none."""
    chosen = lists.implementation(torch.empty(1, device=session.device)).__name__
    found: dict[str, dict | str] = {"implementation": chosen}
    for m, k, n in SMALL if session.small else SMALL + REAL:
        try:
            found[f"{m} × {k} of {n}"] = measured(session, m, k, n)
        except CRASHES as error:
            found[f"{m} × {k} of {n}"] = {"absent": reason(error)}
            session.failures.append(f"lists: {m} × {k} of {n}: {reason(error)}")
    return found
