"""Texture synthesis: descend the transport cost from an image's patches to those of an exemplar, coarse to fine.

You learn that the source can be anything with a gradient, here the pixels of one image, and needs no generator.

    python examples/texture.py --size 128 --out texture.png
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, unfold

from fastsdot import SemiDiscreteOT
from fastsdot.losses import Refresh, TransportLoss
from fastsdot.sheets import save, to_bytes


def exemplar(name: str, size: int) -> Tensor:
    """A piece [1, 3, size, size] of a photograph that scikit-learn comes with, in [−1, 1]."""
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image(name)).permute(2, 0, 1)[None] / 127.5 - 1
    return avg_pool2d(image, 2)[..., 40 : 40 + size, 150 : 150 + size]


def patches(image: Tensor, width: int) -> Tensor:
    """Every patch of width × width of an image [1, 3, H, W], as [(H − width + 1)(W − width + 1), 3 width²]."""
    return unfold(image, width)[0].T


def main(
    name: Annotated[str, typer.Option(help="flower.jpg or china.jpg")] = "flower.jpg",
    size: int = 128,
    width: Annotated[int, typer.Option(help="of a patch")] = 5,
    scales: Annotated[int, typer.Option(help="each half as fine as the one before")] = 4,
    steps: Annotated[int, typer.Option(help="a scale")] = 150,
    out: Path = Path("texture.png"),
    seed: int = 0,
):
    torch.manual_seed(seed)
    example, costs = exemplar(name, size), []
    image = example.mean((2, 3), keepdim=True) + 0.3 * torch.randn(1, 3, size >> scales, size >> scales)
    for scale in reversed(range(scales)):
        image = interpolate(image, scale_factor=2, mode="bicubic").requires_grad_()
        targets = patches(avg_pool2d(example, 1 << scale), width)
        ot = SemiDiscreteOT(targets[torch.randperm(len(targets))[:2000]])

        def sample(n: int, image=image) -> Tensor:
            found = patches(image, width)
            return found[torch.randint(len(found), (n,))]

        loss, optimizer = TransportLoss(ot), torch.optim.Adam([image], lr=0.03)
        # Often and loosely: the image moves fast, and a solve from a potential that is nearly right is cheap.
        refresh = Refresh(ot, sample, every=10, tol=1.0, max_samples=10 * len(ot.targets))
        for _ in range(steps):
            refresh.step()
            value = loss(sample(2048))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        image = image.detach()
        costs.append(ot.solve(sample, max_samples=20 * len(ot.targets)).report.dual / targets.shape[1])
        print(f"scale 1/{1 << scale}: W {costs[-1]:.4f} a value of a patch", flush=True)
    save(out, to_bytes(torch.cat([example, image], dim=3))[0])
    return costs


if __name__ == "__main__":
    typer.run(main)
