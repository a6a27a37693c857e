"""Train a generator without a discriminator: alternate optimal transport (OTS) and regression (FIT) on digits.

You learn that `train` is the whole loop, and that its W is a distance to the data that falls every round.

    python examples/generator.py --rounds 12 --out generator.png
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from fastsdot import State, train
from fastsdot.data import load, pixels
from fastsdot.networks import mlp
from fastsdot.sheets import beside, enlarge, save, tile, to_bytes


def show(state: State) -> None:
    row = state.record
    print(f"round {state.round:3}  W {row['w']:6.2f} ± {row['w_error']:.2f}  χ² {row['chi2']:.3f}", flush=True)


def main(
    data: Annotated[str, typer.Option(help="digits, an idx(.gz), .npy or .npz file, or a folder of images")] = "digits",
    rounds: int = 12,
    steps: Annotated[int, typer.Option(help="FIT steps in a round")] = 150,
    targets: Annotated[int | None, typer.Option(help="use only the first so many")] = None,
    out: Path = Path("generator.png"),
    seed: int = 0,
):
    torch.manual_seed(seed)
    images = pixels(load(data).images[:targets])
    generator = mlp(32, images.shape[1:], hidden=(256, 256))
    trained = train(generator, images, 32, cost="l1", rounds=rounds, steps=steps, callback=show)
    with torch.no_grad():
        x = generator(torch.randn(64, 32))
    pairs = beside(to_bytes(x), to_bytes(trained.ot.transport(x)))  # each sample, and the image it is sent to
    save(out, tile(enlarge(pairs, 64), columns=8))
    return trained


if __name__ == "__main__":
    typer.run(main)
