"""Put the transport where a WGAN has its critic: the loop keeps its two alternating updates, and the critic is exact.

You learn to use `TransportLoss` and `Refresh` in a training loop of your own, and to read W as the loss it descends.

    python examples/adversary.py --steps 600 --out adversary.png
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from fastsdot import SemiDiscreteOT
from fastsdot.data import load, pixels
from fastsdot.losses import Refresh, TransportLoss
from fastsdot.networks import mlp
from fastsdot.sheets import enlarge, save, tile, to_bytes
from fastsdot.sources import Gaussian, Pushforward


def main(
    steps: int = 600,
    every: Annotated[int, typer.Option(help="generator steps between two updates of the critic")] = 10,
    batch_size: int = 128,
    targets: Annotated[int | None, typer.Option(help="use only the first so many digits")] = None,
    out: Path = Path("adversary.png"),
    seed: int = 0,
):
    torch.manual_seed(seed)
    images, latent, curve = pixels(load("digits").images[:targets]), Gaussian(32), []
    generator = mlp(32, images.shape[1:], hidden=(256, 256))
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.5, 0.9))

    def log(row: dict[str, float]) -> None:  # wandb.log, or a loop over SummaryWriter.add_scalar, fits here
        curve.append(row["transport/w"])
        print(f"step {refresh.steps:5}  W {row['transport/w']:6.2f}  χ² {row['transport/chi2']:.3f}", flush=True)

    ot = SemiDiscreteOT(images, cost="euclidean")
    critic = TransportLoss(ot)  # φ is the critic: 1-Lipschitz for this cost, and optimal after every solve
    refresh = Refresh(ot, Pushforward(generator, latent), every, tol=0.2, max_samples=20 * len(images), log=log)
    for _ in range(steps):
        refresh.step()
        loss = critic(generator(latent(batch_size)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        save(out, tile(enlarge(to_bytes(generator(latent(64))), 32), columns=16))
    return curve


if __name__ == "__main__":
    typer.run(main)
