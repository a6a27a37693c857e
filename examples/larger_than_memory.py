"""Targets that outgrow memory stay in their file as bytes and are read in blocks, under a limit that you name.

You learn to map a .npy file (or to write one from any map-style data set), and what a pass over it takes.

    python examples/larger_than_memory.py --path images.npy --memory 8
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


def held() -> float:
    """MiB that this process has held at most so far, Python and torch included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    path: Annotated[Path, typer.Option(help="a .npy file, written first if there is none")] = Path("images.npy"),
    count: Annotated[int, typer.Option(help="images to write")] = 10_000,
    memory: Annotated[int, typer.Option(help="MiB that the kernels' layouts may take")] = 8,
    samples: Annotated[int, typer.Option(help="to solve with, for each target")] = 2,
    batch_size: Annotated[int, typer.Option(help="a pass serves so many samples: as many as memory allows")] = 2048,
    seed: int = 0,
):
    torch.manual_seed(seed)
    if not path.exists():
        targets_from(Waves(count), out=path)
    targets, imported = np.load(path, mmap_mode="r"), held()
    ot = SemiDiscreteOT(targets, memory=memory << 20)

    def source(n: int) -> torch.Tensor:  # a byte k stands for k/255
        return (0.5 + 0.3 * torch.randn(n, *ot.shape)).clamp(0, 1)

    ot.assign(source(batch_size))
    started, one_pass = time.perf_counter(), held()
    solution = ot.solve(source, max_samples=samples * len(targets), batch_size=batch_size)
    seconds, size = time.perf_counter() - started, targets.nbytes / 2**20
    print(f"{len(targets):,} targets, {size:.0f} MiB of {targets.dtype} and {4 * size:.0f} as float32")
    print(f"{solution.samples:,} samples in {seconds:.0f} seconds: χ² {solution.report.chi2:.2f}")
    print(
        f"held at most: {imported:.0f} MiB by Python and its packages, {one_pass:.0f} after a pass over the targets, ",
        end="",
    )
    print(f"{held():.0f} after the solve, which keeps lists of candidates")
    return solution, held()


if __name__ == "__main__":
    typer.run(main)
