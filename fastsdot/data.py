"""Data sets as tensors [N, *shape]: the built-in digits, idx files, numpy files, folders of images.

`load` keeps what the file holds (uint8, or float32); `pixels` maps it affinely onto [−1, 1], the range of a
generator that ends in tanh: x/127.5 − 1 for uint8, and from the data's own smallest and largest value for floats.
"""

import gzip
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastsdot.errors import DataError, require_finite

DIGITS = "digits"
MODES = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "P": "RGB",
    "RGB": "RGB",
    "RGBA": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}  # pillow's
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
EXPECTED = "'digits', an idx(.gz), .npy or .npz file (path.npz:key for one of several arrays), or a folder of images"

# The third byte of an idx file's magic number; all are big-endian (http://yann.lecun.com/exdb/mnist/).
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True)
class Data:
    """A data set: its name, and its samples [N, *shape] as uint8 or float32."""

    name: str
    images: Tensor


def load(spec: str | Path) -> Data:
    """Read a data set: a built-in name, an idx(.gz), .npy or .npz file, or a folder of images of one size.

    Folders are read in the order of their file names, grey images as [H, W] and others as RGB [H, W, 3].
    Raises `DataError` for what is missing, unreadable, truncated, empty, ragged, not numeric or not finite.
    """
    spec = str(spec)
    if spec == DIGITS:
        return Data(DIGITS, _digits())
    path, _, key = spec.partition(".npz:")
    path = Path(path + ".npz" if key else spec).expanduser()
    if spec and path.is_dir():
        values = _folder(path)
    elif not path.is_file():
        raise DataError("data", EXPECTED, repr(spec), "check the path")
    elif path.suffix in (".npy", ".npz"):
        values = _numpy(path, key)
    else:
        values = _idx(path)
    return Data(path.name, _samples(values, spec))


def pixels(images: Tensor) -> Tensor:
    """Samples [N, *shape] as float32 in [−1, 1]: x/127.5 − 1 for uint8, else 2(x − min)/(max − min) − 1.

    The smallest and largest value are taken over the whole tensor; a constant one becomes 0.
    """
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    low, high = images.aminmax()
    if low == high:
        return torch.zeros_like(images, dtype=torch.float32)
    return (2 * (images.float() - low) / (high - low) - 1).clamp(-1, 1)


def _samples(values: np.ndarray, spec: str) -> Tensor:
    """What a file held, as uint8 or float32 [N, *shape]."""
    if values.dtype.kind not in "buif":
        raise DataError("data", "an array of numbers", f"dtype {values.dtype} in {spec!r}", "store integers or floats")
    if values.ndim < 2 or values.size == 0:
        remedy = "give the images, not the labels" if values.ndim == 1 else "give an array [N, ...] with N > 0"
        raise DataError(
            "data", "at least one sample of at least one value", f"{list(values.shape)} in {spec!r}", remedy
        )
    dtype = np.uint8 if values.dtype == np.uint8 else np.float32
    images = torch.from_numpy(np.require(values, dtype, ["C", "W"]))
    require_finite("data", images, DataError)
    return images


def _digits() -> Tensor:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "data", "scikit-learn for the built-in digits", "no such package", "pip install 'fastsdot[train]'"
        ) from None
    return torch.from_numpy(load_digits().images).float() / 16


def _numpy(path: Path, key: str) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if loaded.files and key in ("", *loaded.files):
                return loaded[key or loaded.files[0]]
            names = ", ".join(loaded.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, f"a {path.suffix} file of plain numbers", error) from error
    raise DataError(
        "data", f"one of {names}" if names else "an array", f"{key!r} in {str(path)!r}", "give path.npz:key"
    )


def _idx(path: Path) -> np.ndarray:
    """Magic number 00 00 type ndim, then ndim sizes as big-endian uint32, then the values."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, "an idx(.gz) file", error) from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        starts = content[:4].hex(" ") or "nothing"
        raise DataError("data", EXPECTED, f"{str(path)!r}, which starts with {starts}", "convert it to one of these")
    dtype, start = np.dtype(IDX_TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise DataError("data", f"an idx header of {start} bytes", f"{len(content)} in {str(path)!r}", "fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    expected, received = math.prod(shape) * dtype.itemsize, len(content) - start
    if expected != received:
        raise DataError(
            "data",
            f"{expected} bytes of values for shape {list(shape)}",
            f"{received} in {str(path)!r}",
            "fetch it again",
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _folder(path: Path) -> np.ndarray:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError("data", "pillow to read images", "no such package", "pip install 'fastsdot[train]'") from None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError("data", f"a folder with images ({suffixes})", f"none in {str(path)!r}", "check the path")
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode not in MODES:
                    raise DataError(
                        "data", "images of 8 bits", f"mode {image.mode} in {file.name!r}", "convert them first"
                    )
                images.append(np.asarray(image.convert(MODES[image.mode])))
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise _unreadable(file, "an image", error) from error
        if images[-1].shape[:2] != images[0].shape[:2]:
            sizes = " and ".join(f"{shape[1]}×{shape[0]}" for shape in (images[0].shape, images[-1].shape))
            names = f"{sizes} in {files[0].name!r} and {file.name!r}"
            raise DataError("data", "images of one size", names, "resize or crop them first")
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images]
    return np.stack(images)


def _unreadable(path: Path, expected: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError("data", expected, f"{str(path)!r} ({reason})", "check the file, or fetch it again")
