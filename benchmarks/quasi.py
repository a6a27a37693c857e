"""What quasi-random samples gain: the same solves with them and without, in cubes of several dimensions.

    python benchmarks/quasi.py

500 uniform targets, a uniform source, squared Euclidean cost, 20 samples a target, verdicts' among them; χ² on 100 000
fresh samples, the mean of three seeds.
"""

import statistics

import torch

from fastsdot import SemiDiscreteOT, quasirandom
from fastsdot.sources import SourceLike

N, SAMPLES, SEEDS = 500, 10_000, 3
DIMENSIONS = (1, 2, 4, 8, 12, 16, 64)


def chi2(source: SourceLike, y: torch.Tensor) -> float:
    ot = SemiDiscreteOT(y)
    ot.solve(source, tol=1e-9, max_samples=SAMPLES)
    return ot.evaluate(source, 200 * N).chi2


def main() -> None:
    quasirandom.WIDEST = max(DIMENSIONS)  # for what lies beyond as well
    print("dimensions   quasi-random   independent   ratio")
    for d in DIMENSIONS:
        found = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            cube, y = torch.distributions.Uniform(torch.zeros(d), torch.ones(d)), torch.rand(N, d)
            found.append((chi2(cube, y), chi2(lambda n, cube=cube: cube.sample((n,)), y)))
        even, independent = (statistics.mean(values) for values in zip(*found, strict=True))
        print(f"{d:10} {even:14.4f} {independent:13.4f} {independent / even:7.2f}", flush=True)


if __name__ == "__main__":
    main()
