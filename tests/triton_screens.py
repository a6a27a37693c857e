"""How tests ask the certified screens, and what they hold the answers to."""

import torch
from compare import reference
from kernel_cases import FORMS

from fastsdot.kernels import triton_screen as screen
from fastsdot.kernels.triton_launch import Launch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INNER, L1 = FORMS["inner"], FORMS["l1"]
TILES = {"inner": Launch(16, 64, 16, 4, 2), "power": Launch(16, 256, 4, 4, 2)}  # so that few targets fill several


def certify(x, y, bias, form=INNER, **options):
    """Value, index, candidate parts and undecided rows, and the index that float64 gives."""
    layout, launch = screen.prepare(y.to(DEVICE), form), options.get("launch", TILES[form.kind])
    results = screen.certify(x.to(DEVICE), layout, bias.to(DEVICE), form, launch)
    return *(result.cpu() for result in results), reference(x, y, bias, form).argmin(1)


def assert_certified(x, y, bias, form=INNER, **options):
    """The index is the float64 argmin in every row, and no row needed the plain kernels."""
    value, index, parts, undecided, expected = certify(x, y, bias, form, **options)
    assert torch.equal(index, expected)
    assert not undecided.any()
    assert (parts > 0).all()
    torch.testing.assert_close(value.double(), reference(x, y, bias, form).amin(1), rtol=1e-6, atol=1e-30)
    return parts


def assert_smallest(x, y, bias, k, value, index, form=INNER):
    """The k smallest float64 scores, rounded once, in order of value and then of index."""
    score = reference(x, y, bias, form).float()
    expected = torch.sort(score, dim=1, stable=True)
    assert torch.equal(index, expected.indices[:, :k])
    torch.testing.assert_close(value, expected.values[:, :k], rtol=3e-7, atol=1e-30)
