import numpy as np
import pytest
import torch

from fastsdot import SemiDiscreteOT
from fastsdot.atoms import first_equals


def definition(y):
    rows = [row.tobytes() for row in (y + 0 * y).reshape(len(y), -1).numpy()]
    return torch.tensor([rows.index(row) for row in rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(1,), (3,), (10, 10), (3, 9, 9)])
def test_the_first_of_identical_targets_of_any_dtype_and_shape(dtype, shape):
    whole = torch.randint(0, 200, (400, *shape), generator=torch.Generator().manual_seed(0))
    y = whole[torch.randint(0, 300, (500,), generator=torch.Generator().manual_seed(1))].to(dtype)
    assert torch.equal(first_equals(y), definition(y.long()))


def test_targets_that_differ_in_one_coordinate_are_not_identical():
    y = torch.zeros(300, 299)
    y[torch.arange(1, 300), torch.arange(299)] = 2.0**-149  # the smallest number there is
    assert first_equals(y) is None
    assert torch.equal(first_equals(torch.cat([y, y])), torch.arange(300).repeat(2))


def test_zeros_of_both_signs_are_one():
    assert first_equals(torch.tensor([[0.0, 1.0], [2.0, -0.0], [-0.0, 1.0]])).tolist() == [0, 1, 0]


def test_rows_that_share_a_hash_of_some_coordinates_are_told_apart_by_the_others():
    y = torch.zeros(1000, 500)  # most have the same 64 coordinates, whichever they are
    y[torch.arange(1000), torch.arange(1000) % 500] = torch.arange(1000).float()
    assert first_equals(y) is None
    y[700] = y[3]
    assert (first_equals(y) != torch.arange(1000)).nonzero().tolist() == [[700]]


def test_mapped_files_and_permutations(tmp_path):
    y = np.random.default_rng(0).integers(0, 256, (200, 4, 5), dtype=np.uint8)
    y[150:] = y[20:70]
    np.save(tmp_path / "y.npy", y)
    mapped = SemiDiscreteOT(np.load(tmp_path / "y.npy", mmap_mode="r"), memory=10_000)
    assert torch.equal(mapped.first, definition(torch.from_numpy(y).long()))
    assert float(mapped.atoms[20:70].sum()) == pytest.approx(100 / 200)
    other = SemiDiscreteOT(np.random.default_rng(1).permutation(y))
    assert torch.equal(other.atoms.sort().values, mapped.atoms.sort().values)


def test_weights_of_identical_targets_are_the_first_ones():
    y = torch.tensor([[0.0], [1.0], [0.0], [2.0], [1.0]])
    ot = SemiDiscreteOT(y, weights=torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(ot.weights, torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]) / 10)
    torch.testing.assert_close(ot.atoms, torch.tensor([2.0, 5.0, 0.0, 3.0, 0.0]) / 10)
    ot.potential.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0, 9.0]))
    assert ot.assign(torch.tensor([[0.1], [0.9], [1.8]])).tolist() == [0, 1, 3]
    soft = SemiDiscreteOT(y, epsilon=0.1)
    assert soft.first is None
    assert torch.equal(soft.atoms, soft.weights)


@pytest.mark.parametrize("unlike", [False, True])
def test_a_third_of_copies_is_no_obstacle(unlike):
    torch.manual_seed(0)
    y = torch.randn(200, 3)
    y = torch.cat([y, y[:100]])
    weights = torch.rand(300) if unlike else None
    ot = SemiDiscreteOT(y, weights=weights)
    solution = ot.solve(3, tol=0.02)
    assert solution.converged
    report = ot.evaluate(3, 50_000)
    assert report.chi2 < 0.03
    assert float(report.mass[200:].sum()) == 0


def test_one_point_many_times():
    ot = SemiDiscreteOT(torch.ones(50, 4))
    assert ot.solve(4).converged
    assert ot.evaluate(4).chi2 == pytest.approx(0, abs=1e-5)


def test_a_copy_stays_where_the_first_is_removed():
    torch.manual_seed(0)
    y = torch.randn(60, 2)
    ot = SemiDiscreteOT(torch.cat([y, y[:5]]))
    ot.solve(2, tol=0.01)
    left = ot.remove([0, 1, 2, 3, 4])
    assert left.first is None
    assert torch.equal(left.potential[55:], ot.potential[:5])
    x = torch.randn(500, 2)
    assert torch.equal(left.transport(x), ot.transport(x))


def test_a_file_keeps_the_weights_as_they_were_given(tmp_path):
    y = torch.tensor([[0.0], [1.0], [0.0]])
    ot = SemiDiscreteOT(y, weights=torch.tensor([1.0, 2.0, 3.0]))
    ot.save(tmp_path / "ot.safetensors")
    again = SemiDiscreteOT.load(tmp_path / "ot.safetensors", y)
    assert torch.equal(again.weights, ot.weights)
    assert torch.equal(again.atoms, ot.atoms)
