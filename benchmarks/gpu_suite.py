"""Everything about the GPU kernels in one command: are they right, and how near the machine's limits are they?

    python benchmarks/gpu_suite.py                     # the kernels, in under ten minutes on an H100
    python benchmarks/gpu_suite.py --only ceilings variants     # what to tune, in ten minutes more
    python benchmarks/gpu_suite.py --only race large   # whole solves, in ten minutes more
    python benchmarks/gpu_suite.py --only cifar --cifar cifar10.npy --run build/cifar-run       # and again to go on
    python benchmarks/gpu_suite.py --small             # the same on a machine without a GPU, to prove the suite itself
    python benchmarks/gpu_suite.py --only correctness timings --backends triton

It runs from a bare checkout with torch and triton; nothing needs to be installed. It ends with status 1 when a check
failed, and writes JSON, tables and pictures to benchmarks/results/<device>/, where parts that other runs measured stay.
docs/gpu-suite.md explains them.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from gpu import checkout

checkout.use()
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, and so before the kernels are

from gpu import (  # noqa: E402
    ceilings,
    cifar,
    correctness,
    environment,
    invariance,
    large,
    lists,
    pictures,
    race,
    readme,
    report,
    runs,
    sanitizer,
    solver,
    timings,
    variants,
)
from gpu.session import CRASHES, Session, reason  # noqa: E402

from fastsdot.kernels import BACKENDS  # noqa: E402

Part = Callable[[Session, dict], dict]
# In this order, each until its share of the time budget is used up by it and those before it.
PARTS: dict[str, tuple[Part, float]] = {
    "ceilings": (lambda session, _: ceilings.run(session), 0.06),
    "correctness": (lambda session, _: correctness.run(session), 0.28),
    "invariance": (lambda session, _: invariance.run(session), 0.38),
    "lists": (lambda session, _: lists.run(session), 0.41),
    "solver": (lambda session, _: solver.run(session), 0.52),
    "timings": (lambda session, results: timings.run(session, results.get("ceilings", {})), 0.9),
    "sanitizer": (lambda session, _: sanitizer.run(session), 1.0),
    "variants": (lambda session, results: variants.run(session, results.get("ceilings", {})), 0.97),
    "race": (lambda session, _: race.run(session), 0.45),
    "large": (lambda session, _: large.run(session), 0.97),
    "cifar": (lambda session, _: cifar.run(session), 0.97),
}
LONG = ("variants", "race", "large", "cifar")  # each takes a run of its own, and is left out unless it is named


def arguments(values: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the results, by default benchmarks/results/<device>")
    parser.add_argument("--small", action="store_true", help="tiny problems; always so without a GPU")
    kernels = [name for name in PARTS if name not in LONG]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=kernels, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        metavar="NAME",
        help=f"of {', '.join(BACKENDS)}; solves take the first",
    )
    parser.add_argument("--time-budget", type=float, default=540.0, help="seconds; what comes later is left out")
    parser.add_argument("--no-files", action="store_true", help="write nothing, only say what failed")
    parser.add_argument("--images", type=Path, help="60 000 images of 28 × 28 for the solves, as idx(.gz) or .npy")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as .npy, see benchmarks/gpu/cifar_parts.py")
    parser.add_argument("--run", type=Path, help="folder of CIFAR-10's training, which goes on where one is there")
    again = "only draw the pictures and write the tables again, from results.json joined with these"
    parser.add_argument("--redraw", nargs="*", type=Path, metavar="JSON", help=again)
    parser.add_argument("--readme", action="store_true", help="only print the README's table, from results.json")
    return parser.parse_args(values)


def every(small: bool) -> list[str]:
    """All backends, but not those that compile for longer than a small run takes."""
    return [name for name in BACKENDS if not (small and name in correctness.RATIONED)]


def again(chosen: argparse.Namespace, folder: Path) -> int:
    """What needs no measurement: pictures and tables from results that are there."""
    found = runs.read(folder / "results.json")
    for path in chosen.redraw or ():
        found = runs.joined(found, runs.read(path))
    if found is None:
        print(f"FAILED no results.json in {folder}", file=sys.stderr)
        return 1
    if chosen.readme:
        print(readme.summary(found))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    found["pictures"] = pictures.draw(folder, found)
    report.write(folder, found)
    print(found["pictures"])
    return 0


def measured(name: str, session: Session, results: dict) -> dict:
    """What a part found; the reason in its place where it broke, so that the others still run."""
    try:
        return PARTS[name][0](session, results)
    except (*CRASHES, OSError, ImportError) as error:
        session.failures.append(f"{name}: {reason(error)}")
        with suppress(*CRASHES):  # of a device whose context is lost
            session.free()
        return session.found.get(name, {}) | {"absent": reason(error)}


def main(values: Sequence[str] | None = None) -> int:
    """Run the parts asked for; 1 when a check failed, else 0."""
    chosen = arguments(values)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    folder = chosen.out or environment.folder(device)
    if chosen.readme or chosen.redraw is not None:
        return again(chosen, folder)
    start = time.perf_counter()
    small = chosen.small or device.type == "cpu"
    if device.type == "cpu":  # NumPy computes for the interpreter, and warns of exp2(-inf) and its like
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")
    out = None if chosen.no_files else folder
    backends, named = tuple(chosen.backends or every(small)), chosen.backends[0] if chosen.backends else None
    session = Session(device, small, backends, out, chosen.images, chosen.cifar, chosen.run, named)
    results = runs.begin(session, f"GPU suite on {environment.slug(device)}", environment.run(session))
    before = runs.read(folder / "results.json") if out else None

    def so_far() -> dict:
        return runs.joined(before, results | session.found)

    def write() -> None:
        if out:
            report.write(out, so_far())

    session.write = write
    for name in (name for name in PARTS if name in chosen.only):
        session.part, session.until = name, start + PARTS[name][1] * chosen.time_budget
        began, failed = time.perf_counter(), len(session.failures)
        results["runs"][name] = runs.of(results)
        session.found[name] = measured(name, session, so_far())
        results["seconds"][name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {results['seconds'][name]} s, {len(session.failures) - failed} failures", flush=True)
        write()
    if out:
        results["environment"]["at the end"] = environment.clocks()
        results["pictures"] = pictures.draw(out, so_far())
        results["seconds"]["all"] = round(time.perf_counter() - start, 1)
        write()
        print(f"written to {out}")
    for failure in session.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if session.failures else 0


if __name__ == "__main__":
    sys.exit(main())
