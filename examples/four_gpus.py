"""Train on four GPUs: every batch of OTS is shared out over the ranks, and FIT runs under DistributedDataParallel.

You learn what each rank does: all make the same calls, rank 0 draws for OTS, and every rank fits to samples of its own.
`fastsdot.train(..., group=)` has this loop inside, with checkpoints.

    torchrun --nproc-per-node 4 examples/four_gpus.py --rounds 12

Without GPUs the ranks are processes on the CPU.
"""

import gc
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch.nn.parallel import DistributedDataParallel

from fastsdot import SemiDiscreteOT, fit
from fastsdot.data import load, pixels
from fastsdot.networks import mlp
from fastsdot.sheets import enlarge, save, tile, to_bytes
from fastsdot.sources import Gaussian, Pushforward


def main(
    rounds: int = 12,
    steps: Annotated[int, typer.Option(help="FIT steps in a round")] = 150,
    batch_size: Annotated[int, typer.Option(help="of FIT, on each rank")] = 128,
    targets: Annotated[int | None, typer.Option(help="use only the first so many digits")] = None,
    out: Path = Path("four_gpus.png"),
    seed: int = 0,
):
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=10))
    rank = dist.get_rank()
    torch.manual_seed(seed + rank)  # ranks draw different latents; DistributedDataParallel makes their weights equal

    images = pixels(load("digits").images[:targets]).to(device)
    generator = DistributedDataParallel(mlp(32, images.shape[1:], hidden=(256, 256)).to(device))
    ot = SemiDiscreteOT(images, cost="l1", group=dist.group.WORLD)
    latent = Gaussian(32, device)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    for round_ in range(rounds + 1):
        if round_:
            fit(generator, ot, latent, steps=steps, batch_size=batch_size, optimizer=optimizer)
        report = ot.solve(Pushforward(generator, latent)).report
        if rank == 0:
            print(f"round {round_:3}  W {report.dual:6.2f}  χ² {report.chi2:.3f}", flush=True)
        ot.save(out.with_suffix(".safetensors"))  # every rank calls it, and rank 0 writes
    if rank == 0:
        with torch.no_grad():
            save(out, tile(enlarge(to_bytes(generator.module(latent(64))), 32), columns=16))
    del ot, generator  # both hold the group, which should end before the interpreter does
    gc.collect()
    dist.barrier()  # a rank that leaves first would break the connections of the others
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
