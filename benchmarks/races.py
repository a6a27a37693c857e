"""Races to χ² ≤ 0.1: fastsdot, POT, OTT-JAX and the published Adam step on a part of the suite.

    python benchmarks/races.py --data-dir DIR --out races.json --figures docs

fastsdot and POT run with defaults, OTT-JAX and Adam with the best of five rates. Potentials are read at growing numbers
of samples, and judged by the same fresh samples while the clock stands still. Time is that of the processor, over all
threads. Each has 12 times what fastsdot took to χ² ≤ 0.1, and never less than the cap that is given; a rate is given
up when another of the same solver was faster. The dual gap is the largest semi-dual value that anyone reached, less
one's own, on the same samples, over σ.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import machine
import solvers
import suite
import torch
from solvers import OURS, RIVALS, Contestant, Setting, Snapshot, crossing
from suite_problems import PROBLEMS, Problem
from target_sets import FASHION, Absent, Files

BOUND = 0.1  # χ²
JUDGED = 4  # fresh samples a target that judge a potential, and at least
AT_LEAST = 20_000
HEADSTART = 12  # times our time is what the others have
OURS_FOR = 30  # samples a target that our curve is drawn for
RACES = (
    "digits1797-noise-sqeuclidean",
    "digits1797-untrained-l1",
    "digits1797-early-euclidean",
    "digits1797-late-l1",
    "digits1797-noise-euclidean-1e3",
    "digits1797-late-sqeuclidean-1e-3",
    "squares2000-uniform-sqeuclidean",
    "line500-noise-sqeuclidean",
    "words2000-noise-sqeuclidean",
    "fashion5000-noise-sqeuclidean",
)


def judge(setting: Setting, snapshot: Snapshot) -> dict[str, float]:
    """χ² and the semi-dual value of a potential, on the samples that judge all."""
    setting.ot.potential.copy_(snapshot.potential)
    torch.manual_seed(suite.FRESH_SEED + setting.seed)
    report = setting.ot.evaluate(setting.source, setting.fresh or max(JUDGED * setting.n, AT_LEAST))
    return {
        "samples": snapshot.samples,
        "seconds": snapshot.seconds,
        "processor": snapshot.processor,
        "chi2": report.chi2,
        "dual": report.dual,
    }


def follow(
    setting: Setting, run: Iterator[Snapshot], until: float, samples: float = 0, bound: float = BOUND
) -> list[dict[str, float]]:
    """Judged potentials up to the bound and so many samples, or until so much time."""
    curve = []
    for snapshot in run:
        if not bool(torch.isfinite(snapshot.potential).all()):
            break
        curve.append(judge(setting, snapshot))
        done = curve[-1]["chi2"] <= bound and snapshot.samples >= samples
        if done or snapshot.spent >= until:
            break
    return curve


def time_to(curve: list[dict[str, float]], key: str, bound: float = BOUND) -> float | None:
    return crossing([point[key] for point in curve], [point["chi2"] for point in curve], bound)


def best_of(setting: Setting, contestant: Contestant, cap: float, bound: float = BOUND) -> dict:
    """The curve of the rate that is first at the bound, or else comes closest to it."""
    best: dict = {"curve": [], "rate": None, "time": None, "tried": 0}
    for rate, run in contestant.tries(setting, cap):
        curve = follow(setting, run, best["time"] or cap, bound=bound)
        found = {"curve": curve, "rate": rate, "time": time_to(curve, setting.measure, bound)}
        best = min(best, found, key=order) | {"tried": best["tried"] + 1}
    return best


def order(found: dict) -> tuple[float, float]:
    return found["time"] or math.inf, min((point["chi2"] for point in found["curve"]), default=math.inf)


def entered(setting: Setting, contestant: Contestant, cap: float, bound: float = BOUND) -> dict:
    """A rival's best curve, or the reason why it has none."""
    try:
        return best_of(setting, contestant, cap, bound)
    except ModuleNotFoundError as error:
        return {"absent": f"not installed: {error.name}", "curve": []}
    except solvers.Absent as error:
        return {"absent": str(error), "curve": []}


def race(problem: Problem, files: Files, least_cap: float, rivals: list[Contestant] = RIVALS) -> dict:
    """Everyone's curve on one problem. Raises `target_sets.Absent`."""
    setting = Setting(problem, files)
    ours = follow(setting, OURS.run(setting, least_cap), least_cap, OURS_FOR * setting.n)
    reached = time_to(ours, setting.measure)
    cap = max(least_cap, HEADSTART * (reached or 0))
    found = {OURS.name: {"curve": ours, "rate": None, "time": reached, "tried": 1}}
    found |= {contestant.name: entered(setting, contestant, cap) for contestant in rivals}
    return finished(setting, found, cap)


def finished(setting: Setting, found: dict[str, dict], cap: float) -> dict:
    """The record of a race, with everyone's gap to the largest dual."""
    top = max(point["dual"] for entry in found.values() for point in entry["curve"])
    for entry in found.values():
        for point in entry["curve"]:
            point["gap"] = (top - point["dual"]) / setting.spread
    about = {"name": setting.problem.name, "n": setting.n, "cap": cap, "measure": setting.measure}
    return about | {"contestants": found}


def ratio(found: dict, name: str) -> str:
    """A rival's time over ours, or what it came to within the cap."""
    ours, rival = found["contestants"][OURS.name]["time"], found["contestants"][name]
    if "absent" in rival:
        return rival["absent"]
    if rival["time"] is not None:
        return f"alone, {rival['time']:.2g} s" if ours is None else f"{rival['time'] / ours:.1f} ×"
    least = order(rival)[1]
    if ours is None:
        return f"nor in that time (χ² {least:.2g})"
    return f"> {found['cap'] / ours:.0f} × (χ² {least:.2g})"


def won(found: dict, factor: float = 10) -> bool:
    """Whether every rival took so many times as long as fastsdot, or did not arrive in as long."""
    ours, cap = found["contestants"][OURS.name]["time"], found["cap"]
    times = [entry["time"] for name, entry in found["contestants"].items() if name != OURS.name and "time" in entry]
    return ours is not None and all((cap if time is None else time) >= factor * ours for time in times)


def table(results: list[dict]) -> str:
    """A Markdown row a problem."""
    names = [contestant.name for contestant in RIVALS]
    lines = ["| problem | fastsdot, processor seconds (samples a target) | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for found in results:
        ours = found["contestants"][OURS.name]
        own = f"not within {found['cap']:.3g} s (χ² {order(ours)[1]:.2g})"
        if ours["time"] is not None:
            own = f"{ours['time']:.2f} ({time_to(ours['curve'], 'samples') / found['n']:.1f})"
        lines.append(f"| {found['name']} | {own} | " + " | ".join(ratio(found, name) for name in names) + " |")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [problem.name for problem in PROBLEMS]
    parser.add_argument("--problems", nargs="+", choices=names, default=RACES, metavar="NAME")
    parser.add_argument("--cap", type=float, default=10.0, help="processor seconds that everyone has at least")
    parser.add_argument("--data-dir", type=Path, help="where npm packages with data sets were installed")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="an idx.gz of images")
    parser.add_argument("--cache", type=Path, default=suite.CACHE, help="for trained generators")
    parser.add_argument("--out", type=Path, help="where to write the curves as JSON")
    parser.add_argument("--figures", type=Path, help="a folder for the pictures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, results = parse(arguments), []
    files = Files(options.data_dir, options.cache, options.fashion)
    for problem in PROBLEMS:
        if problem.name not in options.problems:
            continue
        try:
            results.append(race(problem, files, options.cap))
        except Absent as absent:
            print(f"{problem.name} left out: {absent}", flush=True)
            continue
        print(table(results[-1:]).splitlines()[-1], flush=True)
        if options.out:
            options.out.write_text(json.dumps({"machine": machine.facts(), "races": results}, indent=1) + "\n")
    wins = sum(map(won, results))
    print(f"\n{table(results)}\nall rivals took 10 times as long on {wins} of {len(results)}")
    if options.figures and results:
        from race_figures import draw

        draw(results, options.figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
