"""AE-OT: an autoencoder's latent codes are the targets, and the decoder makes images of what noise is transported to.

You learn that a decoder is only good where codes are, which noise misses and T(noise), or a barycentre, hits.

    python examples/autoencoder.py --epochs 60 --out autoencoder.png
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from fastsdot import SemiDiscreteOT
from fastsdot.data import load, pixels
from fastsdot.networks import mlp
from fastsdot.sheets import enlarge, save, tile, to_bytes


def main(
    epochs: int = 60,
    width: Annotated[int, typer.Option(help="of the latent codes")] = 10,
    tol: Annotated[float, typer.Option(help="χ² at which the transport is good enough")] = 0.05,
    targets: Annotated[int | None, typer.Option(help="use only the first so many digits")] = None,
    out: Path = Path("autoencoder.png"),
    seed: int = 0,
):
    torch.manual_seed(seed)
    images = pixels(load("digits").images[:targets])
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, width))
    decoder = mlp(width, images.shape[1:], hidden=(256,), std=None)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    for _ in range(epochs):
        for x in images[torch.randperm(len(images))].split(64):
            loss = (decoder(encoder(x)) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        codes = encoder(images)
        noise = torch.distributions.MultivariateNormal(codes.mean(0), codes.T.cov())
        ot = SemiDiscreteOT(codes)
        solution = ot.solve(noise, tol=tol)
        print(f"autoencoder's error {loss:.4f}; {solution.reason}: χ² {solution.report.chi2:.3f}")
        soft = SemiDiscreteOT(codes, epsilon=0.02 * solution.report.primal)  # the same ψ mixes the codes beside T(z)
        soft.potential.copy_(ot.potential)
        z = noise.sample((16,))
        rows = [decoder(z), decoder(soft.barycenter(z)), decoder(ot.transport(z)), images[ot.assign(z)]]
    save(out, tile(enlarge(to_bytes(torch.cat(rows)), 48), columns=16))
    distance = [float((row.flatten(1)[:, None] - images.flatten(1)).square().sum(-1).amin(1).mean()) for row in rows]
    print("squared distance to the nearest digit: noise {:.2f}, barycentre {:.2f}, T {:.2f}".format(*distance))
    return distance


if __name__ == "__main__":
    typer.run(main)
