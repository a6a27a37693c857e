"""How often `ot.bracket` holds the true W, and how wide it is: seeded runs on problems whose W is known.

Every run draws its own samples and, but for ψ that is known, its own potential. Prints the table of docs/bracket.md.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import ot as pot
import torch
from sklearn.datasets import load_digits

from fastsdot import SemiDiscreteOT

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from closed_forms import Uniform, grid, normal_to_points, shifted_line


def weights_of(ot: SemiDiscreteOT) -> np.ndarray:
    b = ot.weights.double().numpy()
    return b / b.sum()


def known_grid():
    return SemiDiscreteOT(grid(8)), Uniform(2), 1 / 6 / 64


def known_shift():
    y, psi = shifted_line(20, 0.3)
    ot = SemiDiscreteOT(y)
    ot.potential.copy_(psi)
    centres = (np.arange(20) + 0.5) / 20 + 0.3
    return ot, Uniform(1, 0.3), float(((centres - y[:, 0].numpy()) ** 2).mean()) + 1 / 12 / 20**2


def four_weighted():
    """Four weighted targets on the first axis of the unit cube: its coordinate alone decides, by its quantiles."""
    place, weights = np.array([0.1, 0.35, 0.6, 0.95]), np.array([0.1, 0.4, 0.3, 0.2])
    y = np.full((4, 3), 0.5)
    y[:, 0] = place
    ot = SemiDiscreteOT(torch.tensor(y, dtype=torch.float32), weights=weights)
    ot.solve(Uniform(3), max_samples=10_000)
    edges = np.concatenate([[0], weights.cumsum()])
    along = (((edges[1:] - place) ** 3 - (edges[:-1] - place) ** 3) / 3).sum()
    return ot, Uniform(3), float(along + 2 / 12)


def normal(cost: str, power: float, n: int = 30, samples: int = 20_000):
    y = torch.randn(n) * 1.3
    ot = SemiDiscreteOT(y[:, None], cost=cost, weights=torch.rand(n))
    if samples:
        ot.solve(1, max_samples=samples)
    return ot, 1, normal_to_points(y.double().numpy(), weights_of(ot), power)


def program(cost: str):
    """A source of 300 points onto 40 targets: W is a linear program's."""
    x, y = torch.randn(300, 5), torch.randn(40, 5) + 0.3

    def source(n: int) -> torch.Tensor:
        return x[torch.randint(300, (n,))]

    ot = SemiDiscreteOT(y, cost=cost, weights=torch.rand(40))
    matrix = ot.cost(x[:, None], y[None]).double().numpy()
    ot.solve(source, max_samples=20_000)
    return ot, source, pot.emd2(np.full(300, 1 / 300), weights_of(ot), matrix)


PROBLEMS = {
    "8 × 8 grid, ψ = 0 is optimal": known_grid,
    "shifted line, 20, exact ψ": known_shift,
    "four weighted targets in a cube": four_weighted,
    "N(0, 1) → 30 points, l1": lambda: normal("l1", 1, samples=2000),  # tails tie, and more samples change nothing
    "N(0, 1) → 30 points, sqeuclidean": lambda: normal("sqeuclidean", 2),
    "the same, ψ = 0": lambda: normal("sqeuclidean", 2, samples=0),
    "the same, ψ after 500 samples": lambda: normal("sqeuclidean", 2, samples=500),
    "300 → 40 points in 5-d, l1, emd2": lambda: program("l1"),
    "300 → 40 points in 5-d, sqeuclidean, emd2": lambda: program("sqeuclidean"),
}


def row(name: str, runs: int, samples: int, confidence: float) -> str:
    below = above = 0
    widths, seconds = [], []
    for seed in range(runs):
        torch.manual_seed(seed)
        ot, source, truth = PROBLEMS[name]()
        started = time.process_time()
        bracket = ot.bracket(source, samples, confidence=confidence)
        seconds.append(time.process_time() - started)
        widths.append(bracket.relative_width)
        below, above = below + (truth < bracket.lower), above + (truth > bracket.upper)
    held = runs - below - above
    return (
        f"| {name} | {samples:,} | {held} of {runs} | {below} | {above} | {np.median(widths):.2%} "
        f"| {np.median(seconds):.2f} |"
    )


def digits(cost: str, samples: int) -> str:
    """N(0, I) onto the 1 797 digits, of which no W is known: the width alone."""
    torch.manual_seed(0)
    ot = SemiDiscreteOT(torch.tensor(load_digits().data).float() / 16, cost=cost)
    ot.bracket(64, 100)  # compiles
    report = ot.solve(64).report
    started = time.process_time()
    bracket = ot.bracket(64, samples)
    seconds = time.process_time() - started
    return (
        f"| {cost} | {samples:,} | {report.chi2:.3f} | {bracket.lower:.4f} | {bracket.upper:.4f} "
        f"| {bracket.relative_width:.2%} | {seconds:.1f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--only", default="", help="problems whose name holds this, or 'digits'")
    options = parser.parse_args()
    print("| problem | samples | held | W below | W above | median width | CPU s |\n|---|---|---|---|---|---|---|")
    for problem in (name for name in PROBLEMS if options.only in name):
        print(row(problem, options.runs, options.samples, options.confidence), flush=True)
    if options.only in "digits":
        print("\n| cost | samples | χ² | lower | upper | width | CPU s |\n|---|---|---|---|---|---|---|")
        for size in (20_000, 200_000):
            for cost in ("l1", "sqeuclidean"):
                print(digits(cost, size), flush=True)
