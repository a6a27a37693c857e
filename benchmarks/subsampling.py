"""Does it pay to start on a part of the targets? Solves of all at once, and by way of 1 % and 10 % of them.

    python benchmarks/subsampling.py --data-dir DIR

The published schedule starts on few targets and lets more enter as it goes. Here `ot.add(..., source=)` lets them in,
each at the potential at which it alone would win its share, and the next solve starts there. Problems are the suite's;
time is the processor's over all threads, of solves and additions together, to the same χ² on fresh samples.
"""

import argparse
import time
from pathlib import Path

import suite
import torch
from suite_problems import PROBLEMS, Problem
from target_sets import FASHION, Files

from fastsdot import SemiDiscreteOT

SCHEDULES = {"all": (1.0,), "10 %, all": (0.1, 1.0), "1 %, 10 %, all": (0.01, 0.1, 1.0)}
NAMES = (
    "digits1797-noise-sqeuclidean",
    "digits1797-late-l1",
    "squares2000-uniform-sqeuclidean",
    "words5000-noise-euclidean",
    "fashion5000-noise-sqeuclidean",
    "fashion5000-late-l1",
)


def run(problem: Problem, files: Files, parts: tuple[float, ...], seed: int) -> dict[str, float]:
    whole, source = suite.build(problem, files)
    y = whole.targets[torch.randperm(problem.n, generator=torch.Generator().manual_seed(seed))]
    torch.manual_seed(seed)
    started, drawn, ot = time.process_time(), 0, None
    for part in parts:
        n = max(2, round(part * problem.n))
        if ot is None:
            ot = SemiDiscreteOT(y[:n], cost=problem.cost, p=problem.p)
        else:
            ot = ot.add(y[len(ot.targets) : n], source=source)
        drawn += ot.solve(source).samples
    seconds = time.process_time() - started
    report = ot.evaluate(source, 50 * problem.n)
    return {"seconds": seconds, "samples": drawn / problem.n, "chi2": report.chi2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--problems", nargs="+", default=NAMES)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    files = Files(options.data_dir, suite.CACHE, FASHION)
    print("| problem | start | χ² | samples of solves a target | processor seconds |\n|---|---|---|---|---|")
    for problem in (p for p in PROBLEMS if p.name in options.problems):
        run(problem, files, SCHEDULES["all"], 0)  # compiles
        found = {name: [] for name in SCHEDULES}
        for seed in range(options.seeds):
            for name, parts in SCHEDULES.items():
                found[name].append(run(problem, files, parts, seed))
        for name, runs in found.items():
            middle = {key: sorted(r[key] for r in runs)[len(runs) // 2] for key in runs[0]}
            print(
                f"| {problem.name} | {name} | {middle['chi2']:.3f} | {middle['samples']:.1f} |"
                f" {middle['seconds']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
