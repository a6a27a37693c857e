"""The exactness check at a tiny size: it finds nothing wrong with the kernels, and does with broken ones."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from fastsdot.kernels import BACKENDS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of the wheel", allow_module_level=True)
sys.path.append(str(BENCHMARKS))

import exactness  # noqa: E402
from hard_cases import CASES  # noqa: E402

SQUARES, L1 = "sqeuclidean", "l1"


def found(*cases, costs=(SQUARES,), backends=("gemm",), rows=1, tiles=()):
    """What a run with at least 96 rows a case and cost finds."""
    arguments = ["--rows", str(rows), "--identical", "8", "--cases", *cases, "--costs", *costs, "--tiles", *tiles]
    return exactness.run(exactness.parse([*arguments, "--backends", *backends]), lambda line: None)


def backend_of(case, cost):
    """The module that the default runs, and its name."""
    subject = subject_of(case, cost)
    name = subject.prepare(None)[1]
    return BACKENDS[name].load(), name


def subject_of(name, cost):
    case = next(case for case in CASES if case.name == name)
    return exactness.Subject(case, case.targets({}, 0), exactness.make_cost(cost, 1.5 if cost == "lp" else None), 0)


def test_nothing_is_wrong_with_the_kernels():
    result = found("duplicated")
    assert result["over"] == result["late"] == result["differ"] == 0
    assert all(t["rows"] == 96 for t in result["results"])
    assert [(s["rows"], s["arrangements"]) for s in result["identical"]] == [(96, 17)]


@pytest.mark.slow
def test_other_tiles_give_the_same_answers():
    result = found("duplicated", tiles=["4x1"])
    assert result["differ"] == 0
    assert [(s["rows"], s["arrangements"]) for s in result["identical"]] == [(96, 18)]


def test_results_are_the_same_when_repeated():
    first, second = found("duplicated"), found("duplicated")
    assert first["results"] == second["results"]


@pytest.mark.parametrize("cost", exactness.COSTS)
@pytest.mark.parametrize("case", ["Gaussian", "mean 1e3", "Gaussian, D=3"])
def test_the_reference_is_the_cost_in_float64(case, cost):
    subject = subject_of(case, cost)
    x, name = subject.samples.draw(4, 3)
    potential = subject.samples.potentials[name]
    expected = subject.cost(x[:, None].double(), subject.y[None].double()) - potential.double()
    score = subject.scores(x, potential)
    size = expected.abs().amax() + (
        subject.cost(x.double(), -x.double()).abs().amax() if cost in ("dot", "cosine") else 0
    )
    shift = (score - expected)[:, :1]  # terms in x alone are left out
    assert torch.allclose(score - shift, expected, rtol=0, atol=float(1e-10 * size))


def test_a_second_best_choice_is_over(monkeypatch):
    module, name = backend_of("Gaussian, D=3", L1)

    def second(x, layout, bias, form):
        value, index = BACKENDS["naive"].load().topk(x, layout, bias, form, 2)
        return value[:, 1].contiguous(), index[:, 1].contiguous()

    monkeypatch.setattr(module, "argmin", second)
    result = found("Gaussian, D=3", costs=[L1])
    over = {t["backend"]: t["over"] for t in result["results"]}
    assert over.pop(f"default ({name})") > 20  # the rest are ties, and samples at the float32 nearest to one
    assert over == {"gemm": 0}


def test_rounding_of_16_bits_is_over(monkeypatch):
    module, name = backend_of("Gaussian", SQUARES)
    argmin = module.argmin
    monkeypatch.setattr(module, "argmin", lambda x, *rest: argmin(x.bfloat16().float(), *rest))
    result = found("Gaussian", rows=20_000)
    assert next(t["over"] for t in result["results"] if name in t["backend"]) > 0


def test_the_last_of_equal_targets_is_late(monkeypatch):
    module, _ = backend_of("duplicated", SQUARES)
    argmin = module.argmin

    def last(x, layout, *rest):
        value, index = argmin(x, layout, *rest)
        n = len(layout[0])
        return value, index + (n - 1 - index) // (n // 4) * (n // 4)

    monkeypatch.setattr(module, "argmin", last)
    result = found("duplicated")
    assert result["late"] > 0


def test_an_answer_that_depends_on_threads_differs(monkeypatch):
    module, _ = backend_of("duplicated", SQUARES)
    argmin = module.argmin

    def uneasy(*arguments):
        value, index = argmin(*arguments)
        return value, index + (torch.get_num_threads() == 3)

    monkeypatch.setattr(module, "argmin", uneasy)
    assert found("duplicated")["differ"] > 0


@pytest.mark.parametrize("cost", [SQUARES, L1])
def test_other_cuts_of_the_work_reach_the_kernels(monkeypatch, cost):
    module, backend = backend_of("duplicated", cost)
    argmin, seen = module.argmin, set()
    with exactness.shifted(backend, 0) as names:
        assert len(names) >= 3

    def spy(*arguments):
        seen.add(tuple(getattr(module, name) for name in names if hasattr(module, name)))
        return argmin(*arguments)

    monkeypatch.setattr(module, "argmin", spy)
    about, expected = exactness.identical(subject_of("duplicated", cost), 8)
    assert len(seen) == 3
    assert about["differ"] == 0
    assert exactness.differences([index + 1 for index in expected], expected) == about["rows"]


@pytest.mark.parametrize("cost", [SQUARES, L1])
def test_a_tie_is_one(cost):
    subject = subject_of("Gaussian", cost)
    samples, g = subject.samples, torch.Generator().manual_seed(0)
    potential = samples.potentials["random"]
    x = samples.noise(40, g)
    places = (x, samples.tie(x, potential, g))
    gap, left = (torch.diff(subject.scores(t, potential).topk(2, largest=False)[0])[:, 0] for t in places)
    assert left[::4].median() < 1e-5 * gap.median()
    assert 1e-4 * gap.median() < left.mean() < gap.mean()


def test_the_table_and_the_file_say_what_was_found(tmp_path):
    arguments = ["--rows", "1", "--identical", "8", "--cases", "duplicated", "--costs", "dot", "--tiles", "--backends"]
    assert exactness.main([*arguments, "gemm", "--out", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "exactness.json").read_text())
    table = (tmp_path / "exactness.md").read_text()
    assert stored["absent"].keys() >= {"MNIST"}
    assert f"{stored['distinct_rows']:,} distinct rows" in table
    rows = re.findall(r"^\| duplicated .*\|$", table, re.M)
    assert len(rows) == len(stored["results"]) == 2
    assert all(row.count("|") == 13 for row in rows)
