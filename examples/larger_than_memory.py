"""Targets that outgrow memory stay in their file as bytes and are read in blocks, under a limit that you name.

You learn to map a .npy file (or to write one from any map-style data set), and what a pass over it takes.

    python examples/larger_than_memory.py --path images.npy --memory 32
"""

import resource
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from fastsdot import SemiDiscreteOT
from fastsdot.datasets import targets_from


class Waves(torch.utils.data.Dataset):
    """Images [32, 32, 3] of bytes, made when they are asked for; your own data set goes here."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        random = np.random.default_rng(index)
        angle = random.uniform(0, 4, 3) * np.arange(32)[:, None, None] / 5 + random.uniform(0, 4, 3)
        return np.uint8(127 + 120 * np.sin(angle + np.arange(32)[:, None] * random.uniform(0, 1, 3)))


def main(
    path: Annotated[Path, typer.Option(help="a .npy file, written first if there is none")] = Path("images.npy"),
    count: Annotated[int, typer.Option(help="images to write")] = 20_000,
    memory: Annotated[int, typer.Option(help="MiB that the kernels' layouts may take")] = 32,
    samples: Annotated[int, typer.Option(help="to solve with, for each target")] = 2,
    batch_size: Annotated[int, typer.Option(help="a pass serves so many samples: as many as memory allows")] = 2048,
    seed: int = 0,
):
    torch.manual_seed(seed)
    if not path.exists():
        targets_from(Waves(count), out=path)
    targets = np.load(path, mmap_mode="r")
    ot = SemiDiscreteOT(targets, memory=memory << 20)

    def source(n: int) -> torch.Tensor:  # a byte k stands for k/255
        return (0.5 + 0.3 * torch.randn(n, *ot.shape)).clamp(0, 1)

    started = time.perf_counter()
    solution = ot.solve(source, max_samples=samples * len(targets), batch_size=batch_size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = f"{targets.nbytes / 2**20:.0f} MiB of {targets.dtype}"
    print(f"{size}, {solution.samples:,} samples: χ² {solution.report.chi2:.2f}")
    print(f"{time.perf_counter() - started:.0f} seconds, {peak:.0f} MiB held at most, Python and torch included")
    return solution, peak


if __name__ == "__main__":
    typer.run(main)
