"""What a carried potential saves: samples and seconds to χ² ≤ 0.05 after a change, against a solve from nothing.

    python changing_targets.py digits --targets 1797 --seeds 3
    python changing_targets.py fashion --targets 5000

The old potential is solved to 0.05 too. Samples and seconds of the warm solve hold those that the newcomers' potentials
took. Every row is printed, in Markdown; a solve that did not converge is marked.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import target_sets
import torch
from torch import Tensor

from fastsdot import SemiDiscreteOT

TOL = 0.05
SETS = {"digits": target_sets.digits, "fashion": target_sets.fashion}
Change = Callable[[Callable | None], SemiDiscreteOT]


class Noise:
    """N(0, I), counted."""

    def __init__(self, d: int, seed: int):
        self.d, self.random, self.drawn = d, torch.Generator().manual_seed(seed), 0

    def __call__(self, n: int) -> Tensor:
        self.drawn += n
        return torch.randn(n, self.d, generator=self.random)


def changes(y: Tensor) -> Iterator[tuple[str, bool, Change]]:
    """A name, whether a source is given, and the change as a function of it, for every row."""
    n, d = y.shape
    random = torch.Generator().manual_seed(7)

    def old(targets: Tensor) -> SemiDiscreteOT:
        ot = SemiDiscreteOT(targets)
        ot.solve(Noise(d, 1), tol=TOL)
        return ot

    for share in (0.01, 0.1, 0.5):
        m = round(n / (1 + share))
        ot = old(y[:m])
        for told in (True, False):
            yield f"add {share:.0%}", told, lambda source, ot=ot, m=m: ot.add(y[m:], source=source)
    ot = old(y)
    gone, weights = torch.randperm(n, generator=random)[: n // 10], 2 ** (2 * torch.rand(n, generator=random) - 1)
    yield "remove 10%", False, lambda source: ot.remove(gone)
    yield "reweight by ½ to 2", False, lambda source: ot.reweight(weights)


def measured(change: Change, told: bool, d: int, seed: int) -> dict[str, float]:
    source = Noise(d, 100 + seed) if told else None
    clock = time.perf_counter()
    new = change(source)
    spent, n = time.perf_counter() - clock, len(new.targets)
    start = new.evaluate(Noise(d, 200 + seed), 20 * n).chi2
    fresh = SemiDiscreteOT(new.targets, weights=new.weights)
    warm, cold = new.solve(Noise(d, 300 + seed), tol=TOL), fresh.solve(Noise(d, 300 + seed), tol=TOL)
    return {
        "start": start,
        "warm": (warm.samples + (source.drawn if told else 0)) / n,
        "cold": cold.samples / n,
        "warm s": warm.seconds + spent,
        "cold s": cold.seconds,
        "missed": 2 - warm.converged - cold.converged,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--targets", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    y = SETS[chosen.set](chosen.targets, target_sets.Files(None, Path()), torch.Generator())[: chosen.targets].flatten(
        1
    )
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    print("| targets | change | source | χ² at once | samples a target, warm | cold | seconds, warm | cold |")
    print("|---|---|---|---|---|---|---|---|")
    for name, told, change in changes(y):
        runs = [measured(change, told, y.shape[1], seed) for seed in range(chosen.seeds)]
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        missed = " (not converged)" if any(run["missed"] for run in runs) else ""
        cells = [f"{median['start']:.3f}", *(f"{median[key]:.1f}" for key in ("warm", "cold", "warm s", "cold s"))]
        print(
            "|", " | ".join([f"{len(y)} {chosen.set}", name, "yes" if told else "no", *cells]), missed, "|", flush=True
        )


if __name__ == "__main__":
    main()
