"""Data sets are read back exactly, and what cannot be read says why."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from fastsdot.data import load, pixels
from fastsdot.errors import DataError

BYTES = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)


def idx(values: np.ndarray, code: int) -> bytes:
    header = struct.pack(f">HBB{values.ndim}I", 0, code, values.ndim, *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def save_npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three grey images whose order by name is not the order in which they were written."""
    for name, image in (("b.png", BYTES[1]), ("c.PNG", BYTES[2]), ("a.png", BYTES[0])):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize("suffix", ["idx", "idx.gz"])
@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx(tmp_path, code, dtype, suffix):
    content = idx(BYTES.astype(dtype), code)
    path = tmp_path / f"images.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    images = load(path).images
    assert images.dtype == (torch.uint8 if dtype == "u1" else torch.float32)
    assert torch.equal(images.double(), torch.from_numpy(BYTES).double())


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64", ">f4", "int64", "bool"])
def test_npy(tmp_path, dtype):
    values = BYTES.astype(dtype)
    np.save(tmp_path / "images.npy", values)
    data = load(tmp_path / "images.npy")
    assert data.name == "images.npy"
    assert data.images.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert np.array_equal(data.images.numpy(), values)


def test_npz_takes_the_first_array_or_the_one_named(tmp_path):
    path = save_npz(tmp_path / "many.npz", first=BYTES, second=BYTES[:2])
    assert len(load(path).images) == 5
    assert len(load(f"{path}:second").images) == 2
    with pytest.raises(DataError, match="expected one of first, second, received 'third'"):
        load(f"{path}:third")


def test_folder_is_read_by_name(folder):
    assert torch.equal(load(folder).images, torch.from_numpy(BYTES[:3]))


def test_folder_with_any_colour_is_rgb(folder):
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(colour).save(folder / "d.png")
    images = load(folder).images
    assert images.shape == (4, 3, 4, 3)
    assert np.array_equal(images[3].numpy(), colour)
    assert np.array_equal(images[0].numpy(), np.stack([BYTES[0]] * 3, -1))


def test_digits():
    data = load("digits")
    assert data.name == "digits"
    assert data.images.shape == (1797, 8, 8)
    assert torch.equal(pixels(data.images) * 8 + 8, (data.images * 16).round())  # k/16 becomes k/8 − 1 exactly


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (torch.tensor([[0, 255]], dtype=torch.uint8), [[-1.0, 1.0]]),
        (torch.tensor([[10, 51]], dtype=torch.uint8), [[10 / 127.5 - 1, -0.6]]),
        (torch.tensor([[0.0, 0.5, 1.0]]), [[-1.0, 0.0, 1.0]]),
        (torch.tensor([[-3.0, 5.0], [1.0, 1.0]]), [[-1.0, 1.0], [0.0, 0.0]]),
        (torch.tensor([[7.0, 7.0]]), [[0.0, 0.0]]),
    ],
)
def test_pixels(images, expected):
    assert pixels(images).dtype == torch.float32
    torch.testing.assert_close(pixels(images), torch.tensor(expected))


def truncated(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


UNREADABLE = {
    "empty.idx": (b"", "starts with nothing"),
    "text.idx": (b"hello, world", "starts with 68 65 6c 6c"),
    "type.idx": (idx(BYTES, 0x0A), "starts with 00 00 0a 03"),
    "header.idx": (idx(BYTES, 0x08)[:9], "idx header of 16 bytes, received 9"),
    "short.idx": (idx(BYTES, 0x08)[:-1], "60 bytes of values for shape \\[5, 3, 4\\], received 59"),
    "long.idx": (idx(BYTES, 0x08) + b"\0", "60 bytes of values for shape \\[5, 3, 4\\], received 61"),
    "labels.idx": (idx(BYTES[:, 0, 0], 0x08), "the images, not the labels"),
    "none.idx": (idx(BYTES[:0], 0x08), "\\[0, 3, 4\\]"),
    "short.idx.gz": (truncated(gzip.compress(idx(BYTES, 0x08))), "an idx\\(.gz\\) file, received .*short.idx.gz"),
    "empty.npy": (b"", "a .npy file of plain numbers"),
    "text.npy": (b"hello, world", "a .npy file of plain numbers"),
    "text.npz": (b"hello, world", "a .npz file of plain numbers"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_file(tmp_path, name):
    content, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_truncated_numpy_file(tmp_path, suffix):
    values = np.random.default_rng(0).random((50, 4))
    np.save(tmp_path / "a.npy", values)
    save_npz(tmp_path / "a.npz", values=values)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(truncated(path.read_bytes()))
    with pytest.raises(DataError, match=f"a {suffix} file of plain numbers"):
        load(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([["a", "b"]]), "dtype <U1"),
        (np.array([[1j]]), "dtype complex128"),
        (np.array([[1, None]], dtype=object), "plain numbers"),
        (np.array([[1.0, np.nan]]), "1 NaN or infinite of 2"),
        (np.array(3.0), "\\[\\]"),
        (np.zeros((3, 0)), "\\[3, 0\\]"),
    ],
)
def test_numpy_file_of_anything_else(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.npy")


def test_npz_without_arrays(tmp_path):
    with pytest.raises(DataError, match="an array, received ''"):
        load(save_npz(tmp_path / "a.npz"))


def test_ragged_folder_names_both_files(folder):
    Image.fromarray(BYTES[0].T.copy()).save(folder / "d.png")
    with pytest.raises(DataError, match=r"images of one size, received 4×3 and 3×4 in 'a\.png' and 'd\.png'"):
        load(folder)


def test_broken_image_is_named(folder):
    (folder / "b.png").write_bytes(truncated((folder / "b.png").read_bytes()))
    with pytest.raises(DataError, match=r"an image, received .*b\.png"):
        load(folder)


def test_folder_without_images(tmp_path):
    with pytest.raises(DataError, match="folder with images"):
        load(tmp_path)


@pytest.mark.parametrize("spec", ["digitz", "missing/images.idx.gz", ""])
def test_neither_a_name_nor_a_path(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data: expected 'digits', an idx"):
        load(spec)
