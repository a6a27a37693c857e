"""By how much χ² on fresh samples exceeds the misfit of the samples that a potential was fitted to: `fitting.FRESH`.

    python benchmarks/fresh_noise.py --problems digits1797-late-l1 fashion5000-late-l1 --data-dir DIR

Each problem is solved, and then fitted to the lists that the solve kept, at falling temperatures. Printed, in Markdown,
are the perplexity P, the misfit Σ_j (n_j/M − b_j)²/b_j, χ² on 20 fresh samples a target, and their difference in units
of N/(P M). At ε = 0, for sources without quasi-random samples.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import suite
import target_sets
import torch
from suite_problems import PROBLEMS, Problem
from target_sets import Files

from fastsdot.fitting import FALL, PERPLEXITY, maximum
from fastsdot.stages import Sampler, Stage
from fastsdot.tails import rare

LEVELS = 4  # temperatures, from that of `PERPLEXITY` down
JUDGES = 20  # fresh samples a target


@torch.no_grad()
def rows(problem: Problem, files: Files, samples_per_target: float) -> Iterator[tuple[float, float, float, float]]:
    """(P, misfit, χ², the difference in units of N/(P M)) at each temperature."""
    torch.manual_seed(0)
    ot, source = suite.build(problem, files)
    ot.solve(source, tol=1e-9, max_samples=int(samples_per_target * problem.n))
    lists, stage = ot.ascent.candidates, Stage(ot, PERPLEXITY).extend(Sampler(ot, source), 2 * problem.n, 1024)
    held = rare(ot, lists.samples)
    box = stage.box(stage.candidates(), held)
    temperature = lists.temperature(ot.potential.double(), PERPLEXITY, ot.ascent.scale)
    for _ in range(LEVELS):
        psi = maximum(ot, lists, box, temperature)
        ot.potential.copy_(psi)
        misfit = lists.misfit(lists.masses(psi, 0.0), ~held)
        chi2 = ot.evaluate(source, JUDGES * problem.n).chi2
        yield lists.perplexity(psi, temperature), misfit, chi2, (chi2 - misfit) / lists.noise(psi, temperature)
        temperature *= FALL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=[p.name for p in PROBLEMS], metavar="NAME", required=True)
    parser.add_argument("--samples-per-target", type=float, default=20)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    files = Files(options.data_dir, suite.CACHE, target_sets.FASHION)
    print("| problem | P | misfit | χ² of fresh samples | difference, N/(P M) |\n|---|---|---|---|---|")
    for problem in (p for p in PROBLEMS if p.name in options.problems):
        for perplexity, misfit, chi2, ratio in rows(problem, files, options.samples_per_target):
            print(f"| {problem.name} | {perplexity:.2f} | {misfit:.4f} | {chi2:.4f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
