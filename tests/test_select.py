"""Which backend runs, and what a backend that cannot run says."""

import pytest
import torch
from kernel_cases import CPU, FORMS, D, problem, weighted

from fastsdot import SemiDiscreteOT
from fastsdot.errors import BackendUnavailable, InvalidArgument
from fastsdot.kernels import Form, argmin, prepare, refusal, select, topk
from fastsdot.kernels.select import PRECISIONS


def test_a_backend_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(InvalidArgument, match=r"backend: expected one of naive, .* received 'cuda'"):
        prepare(torch.zeros(3, 2), FORMS["l1"], "cuda")


def test_a_backend_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="'keops': the package pykeops is not installed"):
        prepare(torch.zeros(3, 2), FORMS["l1"], "keops")


def test_the_first_choice_that_does_not_refuse_runs(monkeypatch):
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    for name in ("inner", "l1", "callable"):
        assert set(prepare(torch.zeros(3, 2), FORMS[name]).plan.values()) == {"gemm"}


def test_a_precision_is_served_by_the_backends_that_promise_as_much(monkeypatch):
    trio = {name: select.Backend("gemm", precision=name) for name in select.PRECISIONS}
    monkeypatch.setattr(select, "BACKENDS", trio)
    for order in (select.PRECISIONS, select.PRECISIONS[::-1]):
        monkeypatch.setattr(select, "PREFERENCE", {("cpu", "inner"): order})
        for wanted in select.PRECISIONS:
            enough = [name for name in order if select.PRECISIONS.index(name) >= select.PRECISIONS.index(wanted)]
            assert select.select(FORMS["inner"], "argmin", CPU, 5000, 64, None, wanted) == enough[0]


LOW = {"cpu": "screen_low", "cuda": "triton_low"}


@pytest.mark.parametrize(("device", "form"), [("cpu", "inner"), ("cpu", "l1"), ("cuda", "inner")])
def test_the_uncertified_screen_runs_where_it_is_asked_for(monkeypatch, device, form):
    monkeypatch.setattr(select, "refusal", lambda *problem: None)
    on = torch.device(device)
    plan = {p: select.select(FORMS[form], "argmin", on, 60_000, 784, None, p) for p in PRECISIONS}
    assert plan["low"] == LOW[device]
    assert all(select.BACKENDS[name].precision == precision for precision, name in plan.items())


@pytest.mark.parametrize(("form", "n", "d"), [("inner", 499, 784), ("l1", 1023, 64), ("l1", 60_000, 11)])
def test_both_screens_have_the_same_thresholds(form, n, d):
    plan = {select.select(FORMS[form], "argmin", CPU, n, d, None, precision) for precision in PRECISIONS}
    assert plan == {"gemm" if form == "inner" else "numba"}


@pytest.mark.parametrize("cost", ["sqeuclidean", "l1"])
def test_transport_in_low_precision_is_near_the_exact_one(cost):
    if refusal("screen_low", FORMS["inner" if cost == "sqeuclidean" else "l1"], "argmin", CPU, 2000, 64) is not None:
        pytest.skip("this processor has no screen in bytes")
    g = torch.Generator().manual_seed(0)
    y = torch.rand(2000, 64, generator=g)
    exact, low = (SemiDiscreteOT(y, cost=cost, precision=precision) for precision in (None, "low"))
    assert low._kernel.plan == exact._kernel.plan | {"argmin": "screen_low", "topk": "screen_low"}
    low.solve(lambda n: torch.rand(n, 64, generator=g), max_samples=20_000, tol=0.1)
    exact.potential.copy_(low.potential)
    x = torch.rand(500, 64, generator=g)
    loss = low.c_transform(x) - exact.c_transform(x)
    assert (loss >= -1e-5).all()
    assert (low.assign(x) == exact.assign(x)).float().mean() > 0.8
    assert loss.max() < 0.05 * exact.c_transform(x).std() + 0.05


@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [(None, "bf16", "one of low, exact, float32, or None, received 'bf16'"), ("gemm", "low", "None with a backend")],
)
def test_a_precision_that_means_nothing_is_refused(backend, precision, expected):
    with pytest.raises(InvalidArgument, match=f"precision: expected {expected}"):
        SemiDiscreteOT(torch.zeros(3, 2), backend=backend, precision=precision)


def test_a_reduction_that_a_backend_lacks_raises_when_it_is_asked_for(monkeypatch):
    from fastsdot.kernels import gemm

    monkeypatch.setattr(gemm, "refusal", lambda form, reduction, *rest: "not today" if reduction == "topk" else None)
    x, y, bias = problem()
    targets = prepare(y, FORMS["l1"], "gemm")
    argmin(x, targets, bias)
    with pytest.raises(BackendUnavailable, match=r"one that runs topk for the power form on cpu, .*'gemm': not today"):
        topk(x, targets, bias, 3)


def test_a_backend_without_the_argmin_raises_at_once(monkeypatch):
    from fastsdot.kernels import gemm

    monkeypatch.setattr(gemm, "refusal", lambda form, reduction, *rest: "not today")
    with pytest.raises(BackendUnavailable, match="not today"):
        prepare(torch.zeros(3, 2), FORMS["l1"], "gemm")


REFUSED = {
    "must be Tensor, not LazyTensor": lambda x, y: torch.abs(x - y).sum(-1),
    "no attribute 'pow'": lambda x, y: (x - y).pow(2).sum(-1),
    "returned 5 numbers for each pair": lambda x, y: (x - y) ** 2,
    "sums over targets": lambda x, y: (x - y).abs().sum(1),
    "returned float when called": lambda x, y: 0.0,
    "depends on x alone or on y alone": lambda x, y: (x * x).sum(-1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_keops_says_why_a_cost_is_no_formula(reason):
    pytest.importorskip("pykeops")
    y = torch.zeros(3, D)
    form = Form("callable", function=REFUSED[reason])
    with pytest.raises(BackendUnavailable, match=reason):
        prepare(y, form, "keops")
    assert prepare(y, form).plan["argmin"] == "gemm"


def test_keops_refuses_more_targets_than_it_can_count():
    pytest.importorskip("pykeops")
    assert "cannot count" in refusal("keops", FORMS["callable"], "argmin", CPU, 2**24, D)
    assert refusal("keops", FORMS["callable"], "softmin", CPU, 2**24, D) is None
    assert "not on meta" in refusal("keops", FORMS["l1"], "argmin", torch.device("meta"), 10, D)


def test_keops_finds_a_cost_that_means_another_thing_to_it():
    pytest.importorskip("pykeops")
    form = Form("callable", function=lambda x, y: weighted(x, y) * 2 if isinstance(x, torch.Tensor) else weighted(x, y))
    with pytest.raises(BackendUnavailable, match="the same numbers on LazyTensors as on tensors"):
        prepare(problem()[1], form, "keops")
    assert prepare(problem()[1], form).backend("argmin") == "gemm"


def test_keops_compiles_quietly(capfd):
    pykeops = pytest.importorskip("pykeops")
    x, y, bias = problem()
    argmin(x, prepare(y, FORMS["callable"], "keops"), bias)
    assert "".join(capfd.readouterr()) == ""
    assert pykeops.verbose
