"""Seconds of a step over ranks, and of its exchanges: `torchrun --nproc-per-node W benchmarks/ranks.py`.

Every rank has `TARGETS` targets of its own, so that more ranks hold more (weak scaling); one thread each.
"""

import json
import time
from statistics import median

import torch
import torch.distributed as dist

from fastsdot import SemiDiscreteOT

TARGETS, D, BATCH, ROUNDS = 20_000, 784, 256, 7


def clock(run) -> tuple[float, float]:
    """Median wall-clock seconds and least CPU seconds of this rank."""
    wall, cpu = [], []
    for _ in range(ROUNDS):
        dist.barrier()
        start, spent = time.perf_counter(), time.thread_time()
        run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.thread_time() - spent)
    return median(wall), min(cpu)


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    size, random = dist.get_world_size(), torch.Generator().manual_seed(0)
    n = TARGETS * size
    ot = SemiDiscreteOT(torch.rand(n, D, generator=random), group=dist.group.WORLD, shards=size)
    x = torch.rand(BATCH, D, generator=random)
    pair, mass = torch.zeros(2, BATCH, dtype=torch.float64), torch.zeros(n)
    steps = {
        "hard": lambda: ot._marginal(x, ot.potential, 0.0),
        "smoothed": lambda: ot._marginal(x, ot.potential, 5.0),
        "gather of (min, index)": lambda: ot.ranks.gather(pair),
        "sum of masses": lambda: ot.ranks.sum(mass),
    }
    for run in steps.values():
        run()
    found = {name: [round(1e3 * seconds, 2) for seconds in clock(run)] for name, run in steps.items()}
    if dist.get_rank() == 0:
        print(json.dumps({"ranks": size, "targets": n, "ms, wall and CPU": found}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
