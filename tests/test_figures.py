"""Pictures show the pixels and the counts that they were given."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastsdot import figures, sheets
from fastsdot.errors import InvalidArgument


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 8), True),
        ((8, 8, 1), True),
        ((8, 6, 3), True),
        ((3, 8, 6), True),
        ((1, 8, 8), True),
        ((64,), False),
        ((2,), False),
        ((1, 8), False),
        ((4, 8, 8), False),
    ],
)
def test_is_image(shape, expected):
    assert sheets.is_image(shape) is expected


def test_bytes_are_the_rounded_and_clamped_values():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, 10 / 127.5 - 1]).view(6, 1, 1)
    assert sheets.to_bytes(values).flatten().tolist() == [0, 0, 128, 255, 255, 10]


def test_channels_first_and_last_are_the_same_image():
    image = torch.rand(2, 5, 4, 3) * 2 - 1
    assert torch.equal(sheets.to_bytes(image), sheets.to_bytes(image.movedim(-1, 1)))


def test_tiles_stand_where_they_should():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 2, 3, 1)
    sheet = sheets.tile(images, columns=3, gap=1)[..., 0]
    assert sheet.shape == (2 * 3 + 1, 3 * 4 + 1)
    for i in range(5):
        top, left = 1 + 3 * (i // 3), 1 + 4 * (i % 3)
        assert (sheet[top : top + 2, left : left + 3] == i).all()
        sheet[top : top + 2, left : left + 3] = sheets.PAPER
    assert (sheet == sheets.PAPER).all()


@pytest.mark.parametrize("shape", [(8, 8), (3, 12, 10), (12, 10, 3)])
def test_pairs_are_drawn_pixel_by_pixel(tmp_path, shape):
    left, right = torch.rand(2, 10, *shape) * 2 - 1
    figures.draw_pairs(tmp_path / "pairs.png", left, right, "a title", columns=4)
    picture = read(tmp_path / "pairs.png")
    factor = figures.WIDTH // 8 // sheets.to_bytes(left).shape[2]
    height, width = (side * factor for side in sheets.to_bytes(left).shape[1:3])
    sheet_height = 3 * (height + 10) + 10
    for i in (0, 3, 9):
        top = picture.shape[0] - sheet_height + 10 + (height + 10) * (i // 4)
        start = 10 + (2 * width + 12) * (i % 4)
        for images, shift in ((left, 0), (right, width + 2)):
            seen = picture[top + factor // 2 : top + height : factor, start + shift + factor // 2 :][:, :width:factor]
            expected = sheets.to_bytes(images)[i].expand(-1, -1, 3).numpy()
            assert np.array_equal(seen, expected)


def test_the_histogram_counts_every_cell_and_expects_poisson():
    n, samples = 2000, 60_000
    count = torch.bincount(torch.randint(n, (samples,)), minlength=n)
    edges, cells, expected = figures.mass_histogram(count / samples, samples)
    assert cells.sum() == n
    assert abs(float(expected.sum()) - n) < 1e-2 * n
    # equal masses give Poisson counts: the two agree within the noise of a multinomial
    seen = expected > 5
    assert float(((cells - expected)[seen] ** 2 / expected[seen]).sum()) < 2 * int(seen.sum())
    inside = (edges[:-1] <= 1) & (edges[1:] > 1)
    assert int(cells.argmax()) in range(int(inside.nonzero()) - 2, int(inside.nonzero()) + 3)


def test_few_samples_leave_whole_counts_in_bins():
    edges, cells, _ = figures.mass_histogram(torch.tensor([0.0, 0.5, 0.25, 0.25]), samples=4)
    assert torch.allclose(edges[:4], torch.tensor([-0.5, 0.5, 1.5, 2.5]).double())
    assert cells[:3].tolist() == [1, 2, 1]


def test_curves_leave_out_what_a_round_did_not_measure(tmp_path):
    history = [
        {"round": 1, "w": 50.0, "chi2": 0.04, "chi2_error": 0.01, "fit_loss": None},
        {"round": 2, "w": 20.0, "chi2": -0.001, "chi2_error": 0.01, "fit_loss": 19.0},
    ]
    figures.draw_curves(tmp_path / "curves.png", history)
    assert read(tmp_path / "curves.png").std() > 0


def test_points_in_the_plane(tmp_path):
    y = torch.randn(50, 2)
    figures.draw_plane(tmp_path / "plane.png", y[:20] + 0.1, y[:20], y, "a title")
    colours = read(tmp_path / "plane.png").reshape(-1, 3)
    assert (colours == [0x2F, 0x6D, 0xB3]).all(1).any()


def test_without_matplotlib_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(InvalidArgument, match=r"pip install 'fastsdot\[train\]'"):
        figures.Pictures(tmp_path, lambda n: torch.randn(n, 2))


def test_masses_are_drawn(tmp_path):
    figures.draw_masses(tmp_path / "masses.png", torch.full((100,), 0.01), 5000)
    assert math.prod(read(tmp_path / "masses.png").shape) > 0
