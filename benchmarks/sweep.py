"""Time of the argmin against B, D and N for fastsdot and its peers, with what the machine can do at most.

    python benchmarks/sweep.py            # about eight minutes on two cores; writes sweep.json
    python benchmarks/figures.py          # draws docs/argmin-cpu.png from it

Each contestant is checked before it is timed; those of one problem run in turn, and medians are kept. Where one
is expected to take more than a few seconds for one call it is left out, and its line ends there.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import limits
import machine
import torch
from contestants import CONTESTANTS, OURS, AbsentError, Run
from problems import Problem, interleave

CENTRE = Problem("sqeuclidean", 64, 60_000, 784)  # the point at which the three axes cross
AXES = {"b": (1, 4, 16, 64, 256, 1024), "n": (1000, 4000, 16_000, 60_000), "d": (2, 4, 16, 64, 256, 784)}
SMALL_CENTRE = Problem("sqeuclidean", 8, 2000, 16)  # to try the program
SMALL_AXES = {"b": (1, 8, 64), "n": (500, 1000, 2000), "d": (2, 4, 16)}
COSTS = ("sqeuclidean", "l1")
# A peer and the axes along which it is timed; torch.compile compiles every shape and KeOps every dimension for seconds.
PEERS = {
    OURS: "bnd",
    "blocked torch": "bnd",
    "torch.cdist + argmin": "bnd",
    "FAISS": "bnd",
    "scikit-learn": "bnd",
    "fastsdot[keops]": "bnd",
    "torch.compile": "b",
}
LONGEST = 4.0  # seconds that a call may be expected to take
PATIENCE, MOST_ROUNDS = 3.0, 15  # seconds of timing a problem, and rounds


def points(centre: Problem, axes: dict[str, tuple[int, ...]]) -> dict[Problem, str]:
    """Every problem and the axes that it lies on, the cheaper ones first."""
    found: dict[Problem, str] = {}
    for cost in COSTS:
        for axis, values in axes.items():
            for value in values:
                problem = replace(centre, cost=cost, **{axis: value})
                found[problem] = found.get(problem, "") + axis
    return dict(sorted(found.items(), key=lambda item: work(item[0])))


def work(problem: Problem) -> int:
    return problem.b * problem.n * problem.d


class Forecast:
    """Seconds that a contestant will take at most, from what it took for the same cost before."""

    def __init__(self):
        self.rates: dict[tuple[str, str], list[tuple[Problem, float]]] = {}

    def add(self, name: str, problem: Problem, seconds: float) -> None:
        self.rates.setdefault((name, problem.cost), []).append((problem, seconds))

    def __call__(self, name: str, problem: Problem) -> float:
        known = self.rates.get((name, problem.cost), [])
        if not known:
            return 0.0
        nearest, seconds = max(known, key=lambda item: work(item[0]))
        return seconds * max(1.0, work(problem) / work(nearest))


def enter(problem: Problem, axes: str, forecast: Forecast) -> tuple[dict[str, Run], dict[str, str], dict[str, float]]:
    """Checked contestants, why others are absent, and the seconds of one call each."""
    runs, absent, once, right = {}, {}, {}, None
    for name, on in PEERS.items():
        if not set(on) & set(axes):
            continue
        if forecast(name, problem) > LONGEST:
            absent[name] = f"would take more than {LONGEST:g} s"
            continue
        try:
            run = CONTESTANTS[name](problem)
        except AbsentError as reason:
            absent[name] = str(reason)
            continue
        index = run().long()
        if right is None or not torch.equal(index, right):  # equal answers need no second check
            problem.check(index)
        right = index if right is None else right
        start = time.perf_counter()
        run()
        runs[name], once[name] = run, time.perf_counter() - start
        forecast.add(name, problem, once[name])
    return runs, absent, once


def sweep(small: bool, say=lambda line: None) -> dict:
    """Limits and points: plain values, ready for JSON."""
    forecast, found, began = Forecast(), [], time.perf_counter()
    centre, axes_of = (SMALL_CENTRE, SMALL_AXES) if small else (CENTRE, AXES)
    before = limits.measure()
    for problem, axes in points(centre, axes_of).items():
        runs, absent, once = enter(problem, axes, forecast)
        rounds = max(2, min(MOST_ROUNDS, int(PATIENCE / sum(once.values()))))
        seconds = interleave(runs, rounds)
        shape = {"cost": problem.cost, "b": problem.b, "n": problem.n, "d": problem.d}
        found.append({**shape, "axes": axes, "rounds": rounds, "seconds": seconds, "absent": absent})
        say(f"{time.perf_counter() - began:5.0f} s  {problem}: {1e3 * seconds[OURS]:.2f} ms")
    after = limits.measure()
    most = {name: value and max(value, after[name]) for name, value in before.items()}
    return {
        "machine": machine.facts(),
        "centre": {"b": centre.b, "n": centre.n, "d": centre.d},
        "limits": most,
        "points": found,
        "seconds": time.perf_counter() - began,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=machine.folder())
    parser.add_argument("--small", action="store_true", help="tiny problems, to try the program")
    options = parser.parse_args(arguments)
    found = sweep(options.small, lambda line: print(line, file=sys.stderr, flush=True))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sweep.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
