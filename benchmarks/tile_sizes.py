"""argmin of the power form on the CPU for several tiles (rows x vectors of a register), beside torch.cdist and KeOps.

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


def keops(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, form: Form) -> torch.Tensor:
    from pykeops.torch import LazyTensor

    difference = (LazyTensor(x[:, None]) - LazyTensor(y[None])).abs()
    pair = difference if form.p == 1 else difference**2 if form.p == 2 else difference**form.p
    return (pair.sum(-1) + LazyTensor(bias[None, :, None])).argmin(1)


def cdist(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, form: Form) -> torch.Tensor:
    distance = torch.cdist(x, y, p=form.p, compute_mode="donot_use_mm_for_euclid_dist")
    return ((distance if form.p == 1 else distance**form.p) + bias).argmin(1)


PEERS = {"cdist": cdist, "keops": keops}


def interleaved(calls: dict[str, Callable], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Sorted seconds of each call after one that is not counted."""
    for call in calls.values():
        call()
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: sorted(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, default=60_000)
    parser.add_argument("--dimension", type=int, default=784)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tiles", nargs="+", default=[f"{numba_lp.SHAPE.rows}x{numba_lp.SHAPE.vectors}"])
    parser.add_argument("--power", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["cdist"])
    parser.add_argument(
        "--alone", action="store_true", help="one thread, in seconds of CPU: steadier on a busy machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.alone else time.perf_counter
    if options.alone:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    y, bias = torch.randn(options.targets, options.dimension), torch.randn(options.targets)
    form = Form("power", p=options.power)
    for batch in options.batch:
        x = torch.randn(batch, options.dimension)
        calls = {tile: tiled(tile, x, y, bias, form) for tile in options.tiles}
        calls |= {peer: lambda x=x, peer=peer: PEERS[peer](x, y, bias, form) for peer in options.peers}
        seconds = interleaved(calls, options.rounds, clock)
        for name, times in seconds.items():
            low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
            rate = options.targets * options.dimension * batch / middle / 1e9
            ratios = "".join(f"  {statistics.median(seconds[peer]) / middle:6.1f}x {peer}" for peer in options.peers)
            spread = f"({low * 1e3:.2f}-{high * 1e3:.2f})"
            print(f"B={batch:<5} {name:6} {middle * 1e3:9.2f} ms {spread:20} {rate:6.1f} G/s{ratios}", flush=True)


if __name__ == "__main__":
    main()
