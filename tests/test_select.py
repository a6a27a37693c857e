"""Which backend runs, and what a backend that cannot run says."""

import pytest
import torch
from kernel_cases import CPU, FORMS, D, problem, weighted

from fastsdot import SemiDiscreteOT
from fastsdot.errors import BackendUnavailable, InvalidArgument
from fastsdot.kernels import Form, argmin, prepare, refusal, select, topk


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
