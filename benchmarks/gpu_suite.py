"""Everything about the GPU kernels in one command: are they right, and how near the machine's limits are they?

    python benchmarks/gpu_suite.py                     # everything, in under ten minutes on an H100
    python benchmarks/gpu_suite.py --small             # the same on a machine without a GPU, to prove the suite itself
    python benchmarks/gpu_suite.py --only correctness timings --backends triton

It runs from a bare checkout with torch and triton; nothing needs to be installed. It ends with status 1 when a check
failed, and writes JSON, tables and pictures to benchmarks/results/<device>/. docs/gpu-suite.md explains them.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from gpu import checkout

checkout.use()
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, and so before the kernels are

from gpu import (  # noqa: E402
    ceilings,
    correctness,
    environment,
    invariance,
    lists,
    pictures,
    report,
    sanitizer,
    solver,
    timings,
)
from gpu.session import Session  # noqa: E402

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
}


def arguments(values: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the results, by default benchmarks/results/<device>")
    parser.add_argument("--small", action="store_true", help="tiny problems; always so without a GPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, metavar="NAME", help=f"of {', '.join(BACKENDS)}")
    parser.add_argument("--time-budget", type=float, default=540.0, help="seconds; what comes later is left out")
    parser.add_argument("--no-files", action="store_true", help="write nothing, only say what failed")
    parser.add_argument("--redraw", action="store_true", help="only draw the pictures again, from results.json")
    return parser.parse_args(values)


def every(small: bool) -> list[str]:
    """All backends, but not those that compile for longer than a small run takes."""
    return [name for name in BACKENDS if not (small and name in correctness.RATIONED)]


def main(values: Sequence[str] | None = None) -> int:
    """Run the parts asked for; 1 when a check failed, else 0."""
    chosen = arguments(values)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    folder = chosen.out or environment.folder(device)
    if chosen.redraw:
        print(pictures.draw(folder, json.loads((folder / "results.json").read_text())))
        return 0
    start = time.perf_counter()
    small = chosen.small or device.type == "cpu"
    if device.type == "cpu":  # NumPy computes for the interpreter, and warns of exp2(-inf) and its like
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")
    session = Session(device, small, tuple(chosen.backends or every(small)))
    results = {"title": f"GPU suite on {environment.slug(device)}", "failures": session.failures}
    results |= {"environment": environment.run(session), "seconds": {}}
    for name in (name for name in PARTS if name in chosen.only):
        part, share = PARTS[name]
        session.until = start + share * chosen.time_budget
        began, failed = time.perf_counter(), len(session.failures)
        results[name] = part(session, results)
        results["seconds"][name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {results['seconds'][name]} s, {len(session.failures) - failed} failures", flush=True)
        if not chosen.no_files:
            report.write(folder, results)
    if not chosen.no_files:
        results["environment"]["at the end"] = environment.clocks()
        results["pictures"] = pictures.draw(folder, results)
        results["seconds"]["all"] = round(time.perf_counter() - start, 1)
        report.write(folder, results)
        print(f"written to {folder}")
    for failure in session.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if session.failures else 0


if __name__ == "__main__":
    sys.exit(main())
