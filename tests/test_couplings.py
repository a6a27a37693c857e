"""Couplings: pairs by the assignment or the plan, in the order of the noise, with the data set's own targets."""

import math

import numpy as np
import pytest
import torch

from fastsdot import InvalidArgument, SemiDiscreteOT
from fastsdot.couplings import Coupling
from fastsdot.storage import decode

N, SHAPE = 200, (1, 4, 3)
RANDOM = torch.Generator().manual_seed(0)
IMAGES = torch.randint(256, (N, *SHAPE), dtype=torch.uint8, generator=RANDOM)
LABELS = torch.randint(10, (N,), generator=RANDOM)
X0 = torch.randn(64, *SHAPE, generator=RANDOM)


@pytest.fixture
def coupling():
    ot = SemiDiscreteOT(IMAGES)
    ot.potential.copy_(torch.randn(N, generator=torch.Generator().manual_seed(1)))
    return Coupling(ot, LABELS)


def soft(epsilon=0.5, **options):
    ot = SemiDiscreteOT(IMAGES, epsilon=epsilon)
    ot.potential.copy_(torch.randn(N, generator=torch.Generator().manual_seed(1)))
    return Coupling(ot, LABELS, **options)


def test_pairs_are_the_assignment_in_the_order_of_the_noise(coupling):
    pairs = coupling(X0)
    assert pairs.x0 is X0
    assert torch.equal(pairs.index, coupling.ot.assign(X0))
    assert torch.equal(pairs.x1, IMAGES[pairs.index].float() / 255)
    assert torch.equal(pairs.labels, LABELS[pairs.index])
    x0, x1 = pairs
    assert x0 is X0
    assert x1 is pairs.x1
    assert len(pairs.index.unique()) > 10  # or the rest says little


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_targets_come_in_the_dtype_of_the_noise(coupling, dtype):
    pairs = coupling(X0.to(dtype))
    assert pairs.x1.dtype == dtype
    assert torch.equal(pairs.x1, decode(IMAGES[pairs.index]).to(dtype))


def test_a_network_that_made_the_noise_gets_no_gradient_through_the_targets(coupling):
    x0 = X0.clone().requires_grad_()
    assert coupling(x0).x0.requires_grad
    assert not coupling(x0).x1.requires_grad


def test_the_plan_of_a_solved_coupling_has_the_data_sets_weights():
    ot = SemiDiscreteOT(decode(IMAGES))
    ot.solve(lambda n: torch.randn(n, *SHAPE), tol=0.05)
    x0 = torch.randn(20_000, *SHAPE, generator=RANDOM)
    counts = Coupling(ot)(x0).index.bincount(minlength=N).double()
    chi2 = float((counts * (counts - 1)).sum() * N / (20_000 * 19_999)) - 1
    assert chi2 < 0.06


def test_positive_temperature_draws_from_the_entropic_plan():
    x0 = X0[:1].expand(20_000, *SHAPE)
    coupling = soft(generator=torch.Generator().manual_seed(2))
    ot, found = coupling.ot, coupling(x0).index.bincount(minlength=N) / 20_000
    logits = (ot.potential - (X0[0] - decode(IMAGES)).square().flatten(1).sum(1)) / ot.epsilon
    expected = torch.softmax(logits.double(), 0)
    error = (expected * (1 - expected) / 20_000).sqrt()
    assert ((found - expected).abs() <= 5 * error + 1e-4).all()
    assert found.max() < 0.99  # or it could be the assignment


def test_a_generator_repeats_the_draws():
    draws = [soft(generator=torch.Generator().manual_seed(seed))(X0).index for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    given = [soft()(X0, generator=torch.Generator().manual_seed(3)).index for _ in range(2)]
    assert torch.equal(*given)
    assert torch.equal(given[0], draws[0])


def test_labels_follow_the_targets_and_y0_the_noise(coupling):
    y0, wrong = torch.arange(64), torch.full((64,), -1)
    x0, x1, labels0, labels1 = coupling.sample_plan_with_labels(X0, X0, y0, wrong)
    index = coupling.ot.assign(X0)
    assert x0 is X0
    assert labels0 is y0
    assert torch.equal(x1, decode(IMAGES[index]))
    assert torch.equal(labels1, LABELS[index])
    assert coupling.sample_plan_with_labels(X0)[2] is None


def test_map_and_plan_agree(coupling):
    index = coupling.ot.assign(X0)
    plan = coupling.get_map(X0)
    dense = torch.zeros(64, N)
    dense[torch.arange(64), index] = 1 / 64
    assert torch.equal(plan.to_dense(), dense)
    i, j = coupling.sample_map(plan, 64)
    assert torch.equal(i, torch.arange(64))
    assert torch.equal(j, index)
    i, j = coupling.sample_map(plan, 32, replace=False)
    assert len(i.unique()) == 32
    assert torch.equal(j, index[i])
    i, j = coupling.sample_map(plan, 500)
    assert len(i) == 500
    assert torch.equal(j, index[i])


def test_arrays_and_lists_are_labels_too():
    ot = SemiDiscreteOT(IMAGES)
    for labels in (LABELS.numpy(), LABELS.tolist(), np.eye(10)[LABELS]):
        assert torch.equal(Coupling(ot, labels)(X0).labels, torch.as_tensor(labels)[ot.assign(X0)])


@pytest.mark.parametrize(
    ("argument", "use"),
    [
        ("labels", lambda c: Coupling(c.ot, LABELS[:-1])),
        ("labels", lambda c: Coupling(c.ot, 3)),
        ("y1", lambda c: Coupling(c.ot).sample_plan_with_labels(X0, X0, None, LABELS[:64])),
        ("x1", lambda c: c.sample_plan(X0, X0.flatten(1))),
        ("y", lambda c: c(X0, X0, y=LABELS[:64])),
        ("x", lambda c: c(X0.flatten(1))),
        ("x", lambda c: c(X0 * math.nan)),
        ("batch_size", lambda c: c.sample_map(c.get_map(X0), 65, replace=False)),
    ],
)
def test_what_cannot_be_coupled_is_said(coupling, argument, use):
    with pytest.raises(InvalidArgument) as caught:
        use(coupling)
    assert caught.value.argument == argument
