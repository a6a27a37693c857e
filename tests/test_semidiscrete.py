"""SemiDiscreteOT against the float64 definition: assignment, transport, c-transform, storage, weights, saving."""

import copy
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from fastsdot import BackendUnavailable, InvalidArgument, SemiDiscreteOT

COSTS = [("sqeuclidean", None), ("euclidean", None), ("l1", None), ("lp", 1.5), ("dot", None), ("cosine", None)]


def curved(x, y):
    return (x - y).abs().sum(-1) ** 2


def make(cost="l1", p=None, n=40, shape=(5, 4), seed=0, **options):
    random = torch.Generator().manual_seed(seed)
    ot = SemiDiscreteOT(torch.randn(n, *shape, generator=random), cost=cost, p=p, **options)
    ot.potential.copy_(torch.randn(n, generator=random))
    return ot, torch.randn(13, *shape, generator=random)


def definition(ot, x, y=None):
    """c(x_i, y_j) − ψ_j in float64."""
    y = ot.targets if y is None else y
    return ot.cost(x.double().flatten(1)[:, None], y.double().flatten(1)[None]) - ot.potential.double()


@pytest.mark.parametrize(("cost", "p"), [*COSTS, (curved, None)])
def test_assign_transport_and_c_transform(cost, p):
    ot, x = make(cost, p, backend="gemm" if callable(cost) else None)
    score = definition(ot, x)
    index = ot.assign(x)
    assert index.dtype == torch.int64
    torch.testing.assert_close(score.gather(1, index[:, None]).squeeze(1), score.amin(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ot.transport(x), ot.targets[index])
    torch.testing.assert_close(ot(x), ot.targets[index])
    torch.testing.assert_close(ot.c_transform(x).double(), score.amin(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cost", "p"), COSTS)
def test_soft_c_transform(cost, p):
    weights = torch.arange(40.0)  # the first target can never be chosen
    ot, x = make(cost, p, epsilon=0.7, weights=weights)
    b = weights.double() / weights.sum()
    expected = -0.7 * torch.logsumexp(b.log() - definition(ot, x) / 0.7, dim=1)
    torch.testing.assert_close(ot.c_transform(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.7])
@pytest.mark.parametrize(("cost", "p"), COSTS)
def test_c_transform_is_differentiable_in_x_and_potential(cost, p, epsilon):
    ot, x = make(cost, p, epsilon=epsilon)
    x.requires_grad_()
    ot.potential.requires_grad_()
    found = torch.autograd.grad(ot.c_transform(x).sum(), (x, ot.potential))
    xd, psi = x.detach().double().requires_grad_(), ot.potential.detach().double().requires_grad_()
    score = ot.cost(xd.flatten(1)[:, None], ot.targets.double().flatten(1)[None]) - psi
    value = -epsilon * torch.logsumexp(-score / epsilon - np.log(40), dim=1) if epsilon else score.amin(1)
    expected = torch.autograd.grad(value.sum(), (xd, psi))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_topk_is_sorted_and_starts_with_the_assignment():
    ot, x = make("sqeuclidean")
    value, index = ot.topk(x, 5)
    expected, _ = definition(ot, x).sort(dim=1)
    torch.testing.assert_close(value.double(), expected[:, :5], rtol=1e-5, atol=1e-5)
    assert torch.equal(index[:, 0], ot.assign(x))
    with pytest.raises(InvalidArgument, match="k: expected 1 ≤ k ≤ 40"):
        ot.topk(x, 41)


def test_compiles_into_one_graph():
    ot, x = make("sqeuclidean", shape=(20,))
    torch.compiler.reset()
    compiled = torch.compile(ot.c_transform, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ot.c_transform(x))
    compiled = torch.compile(ot.transport, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ot.transport(x))


def test_no_assignment_to_targets_of_zero_weight():
    targets = torch.tensor([[0.0], [1.0], [2.0]])
    ot = SemiDiscreteOT(targets, weights=torch.tensor([1.0, 0.0, 1.0]))
    x = torch.tensor([[0.9], [1.0], [1.2], [-5.0]])
    assert ot.assign(x).tolist() == [0, 0, 2, 0]
    torch.testing.assert_close(ot.weights, torch.tensor([0.5, 0.0, 0.5]))


def test_ties_and_duplicates_go_to_the_smallest_index():
    ot = SemiDiscreteOT(torch.tensor([[1.0], [0.0], [1.0], [0.0]]), cost="l1")
    assert ot.assign(torch.tensor([[0.5], [0.9], [0.1]])).tolist() == [0, 0, 1]


def test_one_target_takes_everything():
    ot = SemiDiscreteOT(torch.ones(1, 3))
    assert ot.assign(torch.randn(5, 3)).tolist() == [0] * 5


def test_empty_batch():
    ot, x = make()
    assert ot.assign(x[:0]).shape == (0,)
    assert ot.transport(x[:0]).shape == (0, 5, 4)
    assert ot.c_transform(x[:0]).shape == (0,)


def test_adding_a_constant_to_the_potential_moves_nothing():
    ot, x = make("sqeuclidean")
    index, value = ot.assign(x), ot.c_transform(x)
    ot.potential += 3
    assert torch.equal(ot.assign(x), index)
    torch.testing.assert_close(ot.c_transform(x), value - 3)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_far_from_the_origin_the_nearest_target_is_still_found(cost):
    random = torch.Generator().manual_seed(3)
    y = 1e3 + torch.randn(200, 32, generator=random)
    ot = SemiDiscreteOT(y, cost=cost)
    assert torch.equal(ot.assign(y), torch.arange(200))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8])
def test_storage_keeps_its_dtype_and_means_what_it_says(dtype):
    random = torch.Generator().manual_seed(4)
    bytes_ = torch.randint(0, 256, (30, 6, 6), generator=random, dtype=torch.uint8)
    stored = bytes_ if dtype == torch.uint8 else (bytes_ / 255).to(dtype)
    ot = SemiDiscreteOT(stored, cost="l1")
    assert ot.targets.dtype == (torch.float32 if dtype == torch.float64 else dtype)
    values = bytes_.double() / 255 if dtype == torch.uint8 else stored.double()
    x = torch.rand(8, 6, 6, generator=random)
    score = definition(ot, x, values)
    torch.testing.assert_close(ot.transport(x).double(), values[score.argmin(1)], rtol=0, atol=1e-6)


def test_arrays_memory_maps_and_non_contiguous_input(tmp_path):
    array = np.random.default_rng(0).normal(size=(25, 8)).astype(np.float32)
    np.save(tmp_path / "y.npy", array)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(0)).T
    expected = SemiDiscreteOT(torch.from_numpy(array)).assign(x.contiguous())
    for targets in (array, mapped, np.asfortranarray(array), torch.from_numpy(array.T.copy()).T):
        assert torch.equal(SemiDiscreteOT(targets).assign(x), expected)


def test_half_precision_samples_are_computed_in_float32():
    ot, x = make()
    assert torch.equal(ot.assign(x.half()), ot.assign(x.half().float()))
    assert ot.transport(x.half()).dtype == torch.float16


def test_module_behaviour():
    ot, x = make("sqeuclidean")
    assert set(ot.state_dict()) == {"weights", "potential"}
    other, _ = make("sqeuclidean")
    other.potential.zero_()
    other.load_state_dict(ot.state_dict())
    assert torch.equal(other.assign(x), ot.assign(x))
    for cast in (torch.nn.Module.half, torch.nn.Module.double):
        cast(torch.nn.Sequential(other))
        assert all(value.dtype == torch.float32 for value in other.buffers())
        assert torch.equal(other.targets, ot.targets)
        assert torch.equal(other.assign(x), ot.assign(x))


@pytest.mark.parametrize("memory", [None, 600], ids=["here", "in blocks"])
def test_a_cast_and_a_device_at_once(monkeypatch, memory):
    ot = SemiDiscreteOT(np.arange(500, dtype=np.float32).reshape(100, 5), memory=memory)
    monkeypatch.setattr(SemiDiscreteOT, "_prepare", lambda self: None)  # there are no values on that device
    ot.to("meta", torch.float16)
    assert ot.device.type == "meta"
    assert {(value.device.type, value.dtype) for value in ot.buffers()} == {("meta", torch.float32)}


def test_named_backends_agree_and_say_why_they_cannot_run():
    ot, x = make("l1")
    for backend in ("naive", "gemm", "numba"):
        other, _ = make("l1", backend=backend)
        assert other.backend == backend
        assert torch.equal(other.assign(x), ot.assign(x))
    with pytest.raises(BackendUnavailable, match=r"backend: expected one that runs argmin .* 'numba': "):
        SemiDiscreteOT(torch.zeros(2, 2), cost="dot", backend="numba")
    with pytest.raises(InvalidArgument, match="backend: expected one of naive, gemm"):
        SemiDiscreteOT(torch.zeros(2, 2), backend="cuda")


def test_save_and_load(tmp_path):
    ot, x = make("lp", 1.5, weights=torch.arange(40.0), epsilon=0.1)
    ot.save(tmp_path / "ot.safetensors")
    back = SemiDiscreteOT.load(tmp_path / "ot.safetensors", ot.targets)
    assert torch.equal(back.potential, ot.potential)
    assert torch.equal(back.weights, ot.weights)
    assert torch.equal(back.c_transform(x), ot.c_transform(x))
    with pytest.raises(InvalidArgument, match="targets: expected those the file was saved for"):
        SemiDiscreteOT.load(tmp_path / "ot.safetensors", ot.targets + 1)
    with pytest.raises(InvalidArgument, match="path: expected a whole file that fastsdot saved"):
        SemiDiscreteOT.load(tmp_path / "missing", ot.targets)
    other = safetensors.torch.save({"weights": ot.weights}, {"fastsdot": '{"cost": "lp"}'})
    for junk in (b"junk", safetensors.torch.save({"weights": ot.weights}), other):
        (tmp_path / "junk").write_bytes(junk)
        with pytest.raises(InvalidArgument, match="path: expected a whole file that fastsdot saved"):
            SemiDiscreteOT.load(tmp_path / "junk", ot.targets)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (torch.tensor([[1.0], [NAN]]), {}, "targets: expected finite values, received 1 NaN or infinite of 2"),
        (torch.tensor([[1.0], [INF]]), {}, "targets: expected finite values"),
        (torch.tensor([[0.0], [1e19]]), {}, "targets: expected ‖y‖² below 8.51e.37, which .* received 1e.38"),
        (2e19 * torch.eye(3, 40), {}, "targets: expected ‖y‖² below 8.51e.37"),
        (torch.zeros(0, 3), {}, r"targets: expected shape \[N, D\] or"),
        (torch.tensor(1.0), {}, "targets: expected shape"),
        (torch.zeros(2, 3, dtype=torch.int64), {}, "targets: expected one of float32"),
        (np.zeros((2, 3), dtype=np.int32), {}, "targets: expected float or uint8, received int32"),
        ([[0.0]], {}, "targets: expected a Tensor, ndarray or memmap, received list"),
        (torch.zeros(2, 3), {"weights": torch.ones(3)}, r"weights: expected shape \[2\]"),
        (torch.zeros(2, 3), {"weights": torch.tensor([1.0, -1.0])}, "weights: expected values ≥ 0"),
        (torch.zeros(2, 3), {"weights": torch.zeros(2)}, "weights: expected values ≥ 0 with a sum above 0"),
        (torch.zeros(2, 3), {"weights": torch.tensor([1.0, NAN])}, "weights: expected finite"),
        (torch.zeros(2, 3), {"epsilon": -1.0}, "epsilon: expected a finite number of at least 0"),
        (torch.zeros(2, 3), {"epsilon": NAN}, "epsilon: expected a finite number of at least 0"),
    ],
)
def test_unusable_arguments_are_named(targets, options, message):
    with pytest.raises(InvalidArgument, match=message):
        SemiDiscreteOT(targets, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4), r"x: expected shape \[B, 5, 4\], received \[2, 4\]"),
        (torch.zeros(5, 4), r"x: expected shape \[B, 5, 4\]"),
        (torch.full((2, 5, 4), NAN), "x: expected finite values, received 40 NaN or infinite of 40"),
        (torch.zeros(2, 5, 4, dtype=torch.int64), "x: expected a floating point tensor"),
        (np.zeros((2, 5, 4)), "x: expected a floating point tensor, received ndarray"),
    ],
)
def test_unusable_samples_are_named(x, message):
    ot, _ = make()
    for call in (ot.assign, ot.transport, ot.c_transform):
        with pytest.raises(InvalidArgument, match=message):
            call(x)


def test_a_potential_that_is_not_finite_is_named():
    ot, x = make()
    ot.potential[3] = NAN
    with pytest.raises(InvalidArgument, match="potential: expected finite values, received 1 NaN"):
        ot.assign(x)


def dot(x, y):
    """A cost of the user's that has the name of one of ours."""
    return (x - y).abs().sum(-1)


def test_a_callable_is_called_whatever_its_name():
    ot, x = make(dot, backend="gemm")
    other, _ = make("l1", backend="gemm")
    assert torch.equal(ot.assign(x), other.assign(x))
    assert "callable dot" in repr(ot)


@pytest.mark.parametrize(("cost", "p"), [("lp", 1.5), (torch.nn.PairwiseDistance(), None)])
def test_copies_and_pickles_keep_their_cost(cost, p):
    ot, x = make(cost, p, backend="gemm")
    index = ot.assign(x)
    copies = [copy.deepcopy(ot), pickle.loads(pickle.dumps(ot))]
    del ot, cost
    assert all(torch.equal(other.assign(x), index) for other in copies)


def test_a_callable_is_given_again_to_load(tmp_path):
    ot, x = make(dot, backend="gemm")
    ot.save(tmp_path / "ot.safetensors")
    with pytest.raises(InvalidArgument, match="cost: expected the callable again"):
        SemiDiscreteOT.load(tmp_path / "ot.safetensors", ot.targets)
    back = SemiDiscreteOT.load(tmp_path / "ot.safetensors", ot.targets, cost=dot, backend="gemm")
    assert torch.equal(back.assign(x), ot.assign(x))


def test_huge_weights_and_a_default_dtype_of_float64():
    weights = torch.full((40,), 1e308, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        ot = SemiDiscreteOT(torch.randn(40, 30), weights=weights)
        assert ot.assign(torch.randn(3, 30)).shape == (3,)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(ot.weights, torch.full((40,), 1 / 40))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ot, x: SemiDiscreteOT(torch.randn(5)), r"targets: expected shape \[N, D\].*give targets\[:, None\]"),
        (lambda ot, x: SemiDiscreteOT(np.zeros(5, np.float32)), r"targets: .*give targets\[:, None\]"),
        (lambda ot, x: SemiDiscreteOT(ot.targets, epsilon="a"), "epsilon: expected a finite number of at least 0"),
        (lambda ot, x: ot.topk(x, 2.5), "k: expected an integer"),
        (lambda ot, x: ot.topk(x, True), "k: expected an integer"),
        (lambda ot, x: ot.assign(torch.full((1, 5, 4), 1e39, dtype=torch.float64)), "x: expected finite values"),
        (lambda ot, x: ot.solve(20), r"lambda n: torch.randn\(n, 5, 4\)"),
        (lambda ot, x: ot.solve(lambda n: torch.full((n, 5, 4), 1e39, dtype=torch.float64)), "source: expected finite"),
    ],
)
def test_what_cannot_be_used_is_said(call, message):
    ot, x = make()
    with pytest.raises(InvalidArgument, match=message):
        call(ot, x)


def test_a_file_for_another_number_of_targets_or_with_other_weights_is_refused(tmp_path):
    ot, _ = make()
    ot.save(tmp_path / "ot")
    with pytest.raises(InvalidArgument, match="targets: expected those the file was saved for"):
        SemiDiscreteOT.load(tmp_path / "ot", ot.targets[:-1])
    with pytest.raises(InvalidArgument, match="weights: expected none, since the file has them"):
        SemiDiscreteOT.load(tmp_path / "ot", ot.targets, weights=torch.ones(40))
