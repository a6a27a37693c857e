"""l1 argmin on the CPU for several tiles (rows x vectors of a register's lanes), beside torch.cdist + argmin.

    python benchmarks/tile_sizes.py --batch 16 64 --tiles 8x3 6x4 12x2

Every call of a round is timed once before the next round starts, and medians are printed with their quartiles.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from fastsdot.kernels import numba_lp
from fastsdot.kernels.form import Form


def tiled(tile: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, form: Form) -> Callable[[], torch.Tensor]:
    rows, vectors = map(int, tile.split("x"))
    shape = numba_lp.SHAPE._replace(rows=rows, vectors=vectors)
    numba_lp.SHAPE = shape
    layout = numba_lp.prepare(y, form)

    def call() -> torch.Tensor:
        numba_lp.SHAPE = shape
        return numba_lp.argmin(x, layout, bias, form)[1]

    return call


def interleaved(calls: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Sorted seconds of each call after one that is not counted."""
    for call in calls.values():
        call()
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, default=60_000)
    parser.add_argument("--dimension", type=int, default=784)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tiles", nargs="+", default=[f"{numba_lp.SHAPE.rows}x{numba_lp.SHAPE.vectors}"])
    parser.add_argument("--power", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    y, bias = torch.randn(options.targets, options.dimension), torch.randn(options.targets)
    form = Form("power", p=options.power)
    for batch in options.batch:
        x = torch.randn(batch, options.dimension)
        calls = {tile: tiled(tile, x, y, bias, form) for tile in options.tiles}
        if options.peer:
            calls["torch.cdist"] = lambda x=x: (form.pairwise(x, y) + bias).argmin(1)
        seconds = interleaved(calls, options.rounds)
        for name, times in seconds.items():
            low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
            rate = options.targets * options.dimension * batch / middle / 1e9
            ratio = statistics.median(seconds["torch.cdist"]) / middle if options.peer else float("nan")
            print(
                f"B={batch:<5} {name:12} {middle * 1e3:9.2f} ms ({low * 1e3:.2f}-{high * 1e3:.2f})"
                f"  {rate:6.1f} G coordinates/s  {ratio:5.1f}x torch.cdist",
                flush=True,
            )


if __name__ == "__main__":
    main()
