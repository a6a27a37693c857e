"""The quasi-Newton steps on concave functions whose maxima are known."""

import pytest
import torch

from fastsdot.maximise import maximise


def quadratic(top, curvature):
    return lambda psi: (-0.5 * float(curvature @ (psi - top) ** 2), -curvature * (psi - top))


@pytest.mark.parametrize("spread", [1, 1e4])
def test_a_quadratic_of_any_condition(spread):
    top, curvature = torch.linspace(-1, 2, 40).double(), torch.logspace(0, 1, 40, base=spread).double()
    wide = torch.full((40,), 1e9).double()
    found = maximise(
        quadratic(top, curvature), torch.zeros(40).double(), (-wide, wide), 1 / curvature.sqrt(), 1.0, 1e-12, 0
    )
    assert (found - top).abs().max() < 1e-4


def test_a_box_holds_what_would_leave_it_and_the_rest_goes_on():
    top, low, high = torch.tensor([3.0, -3.0, 0.25]).double(), -torch.ones(3).double(), torch.ones(3).double()
    coupling = torch.eye(3).double() + 0.3
    found = maximise(
        lambda psi: (-0.5 * float((psi - top) @ coupling @ (psi - top)), -coupling @ (psi - top)),
        torch.zeros(3).double(),
        (low, high),
        torch.ones(3).double(),
        1.0,
        1e-14,
        0,
    )
    inside = top[2] - (coupling[2, :2] @ (found[:2] - top[:2])) / coupling[2, 2]
    torch.testing.assert_close(found, torch.stack([high[0], low[1], inside.clamp(-1, 1)]), rtol=0, atol=1e-5)


def test_it_ends_where_the_value_no_longer_grows():
    calls = []

    def flat(psi):
        calls.append(psi)
        return -1e-9 * float(psi @ psi), torch.ones_like(psi)  # a slope that the values do not confirm

    maximise(
        flat,
        torch.zeros(3).double(),
        (-torch.ones(3).double(), torch.ones(3).double()),
        torch.ones(3).double(),
        1e-3,
        0,
        1e-3,
    )
    assert len(calls) < 100
