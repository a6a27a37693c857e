"""The races: everyone's potentials are judged alike, times are read rightly, and tables say what was found."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of the wheel", allow_module_level=True)
sys.path.append(str(BENCHMARKS))

import races  # noqa: E402
import solver_tables  # noqa: E402
import solvers  # noqa: E402
from race_figures import draw  # noqa: E402
from solvers import LARGE, OURS, RIVALS, crossing  # noqa: E402
from suite_problems import row  # noqa: E402
from target_sets import Files  # noqa: E402

NAMES = [rival.name for rival in RIVALS + LARGE]


@pytest.fixture
def files(tmp_path):
    return Files(None, tmp_path)


def test_a_crossing_is_interpolated_in_logarithms():
    assert crossing([1, 10, 100], [1.0, 1.0, 0.01], 0.1) == pytest.approx(math.sqrt(1000))
    assert crossing([1, 10], [1.0, 0.2], 0.1) is None
    assert crossing([3, 10], [0.05, 0.01], 0.1) == 3
    assert crossing([1, 10], [1.0, -0.001], 0.1) < 10  # an unbiased χ² may be below 0


@pytest.mark.parametrize("name", NAMES)
def test_a_rival_climbs_on_an_easy_problem(name, files):
    if name == "OTT-JAX":
        pytest.importorskip("ott")
    setting = solvers.Setting(replace(row("digits", 40, "noise", "sqeuclidean"), n=40), files)
    rival = next(rival for rival in RIVALS + LARGE if rival.name == name)
    rate = rival.rates(setting)[1] if rival.rates else None
    run = rival.run(setting, 1.0) if rate is None else rival.run(setting, 1.0, rate)
    curve = races.follow(setting, run, until=1.0)
    samples, processor = ([point[key] for point in curve] for key in ("samples", "processor"))
    assert samples == sorted(samples)
    assert processor[-1] > 0
    assert min(point["chi2"] for point in curve) < 0.5 * curve[0]["chi2"] or curve[0]["chi2"] < 0.1
    assert max(point["dual"] for point in curve) > curve[0]["dual"] - 1e-3 * setting.spread


@pytest.mark.parametrize("problem", [row("squares", 30, "uniform", "l1"), row("digits", 30, "untrained", "dot", 1e3)])
def test_jax_draws_what_the_source_draws(problem, files):
    jax = pytest.importorskip("jax")
    pytest.importorskip("ott")
    setting = solvers.Setting(problem, files)
    drawn = solvers.jax_sampler(setting)(jax.random.key(0), (20_000, setting.y.shape[1]), jax.numpy.float32)
    theirs, ours = torch.tensor(jax.device_get(drawn)), setting.sampler(20_000)
    scale = ours.std(0)
    assert ((theirs.mean(0) - ours.mean(0)).abs() < 0.05 * scale).all()
    torch.testing.assert_close(theirs.std(0), scale, rtol=0.05, atol=0)


def test_a_race_its_table_and_its_pictures(tmp_path, files, monkeypatch):
    monkeypatch.setattr(races, "AT_LEAST", 2000)
    monkeypatch.setattr(races, "OURS_FOR", 4)
    adam = next(rival for rival in RIVALS if rival.name.startswith("Adam"))
    found = races.race(row("digits", 50, "noise", "sqeuclidean"), files, 0.3, [adam])
    assert set(found["contestants"]) == {OURS.name, adam.name}
    gaps = [point["gap"] for entry in found["contestants"].values() for point in entry["curve"]]
    assert min(gaps) == 0
    draw([found], tmp_path)
    assert (tmp_path / "solver-chi2.png").stat().st_size > 10_000
    assert races.order(found["contestants"][adam.name])[1] < math.inf


def entry(time, chi2=0.1):
    return {"time": time, "rate": None, "curve": [{"chi2": chi2, "samples": 100.0, "processor": 1.0}]}


def test_who_won_and_by_how_much():
    found = {"name": "a", "n": 10, "cap": 12.0}
    found["contestants"] = {OURS.name: entry(1.0), "POT": entry(11.0), "OTT-JAX": entry(None, 0.3)}
    assert races.won(found)
    assert races.ratio(found, "POT") == "11.0 ×"
    assert races.ratio(found, "OTT-JAX") == "> 12 × (χ² 0.3)"
    found["contestants"]["POT"] = entry(9.0)
    assert not races.won(found)
    found["contestants"][OURS.name] = entry(None)
    assert not races.won(found)
    assert races.ratio(found, "POT") == "alone, 9 s"
    found["contestants"]["POT"] = {"absent": "not installed: ot", "curve": []}
    assert races.ratio(found, "POT") == "not installed: ot"


def test_results_take_their_place_in_a_document():
    text = "# A\n<!-- suite -->\nold\n<!-- end -->\nB\n<!-- races -->\n<!-- end -->\n"
    filled = solver_tables.fill(text, "suite", "new")
    assert filled == "# A\n<!-- suite -->\n\nnew\n<!-- end -->\nB\n<!-- races -->\n<!-- end -->\n"
    with pytest.raises(SystemExit, match="expected one <!-- other -->"):
        solver_tables.fill(text, "other", "new")


def test_rows_above_the_goal_are_bold_and_failures_are_counted():
    machine = {"cpu": "c", "cores": 2, "torch": "2", "load": 0.1}
    good = {"name": "good", "n": 10, "d": 2, "chi2": 0.06, "chi2_error": 0.01, "samples_per_target": 20,
            "seconds": 1.0, "reason": "CONVERGED"}  # fmt: skip
    bad = good | {"name": "bad", "chi2": 0.2, "reason": "MAX_SAMPLES"}
    failed = {"name": "failed", "n": 10, "d": 2, "failed": "RuntimeError: broke"}
    table = solver_tables.suite_table(json.loads(json.dumps({"machine": machine, "rows": [good, bad, failed]})))
    assert table.startswith("1 of 3 rows are at χ² ≤ 0.05")
    assert "| 0.0600 ± 0.0100 |" in table
    assert "**0.2000 ± 0.0100**" in table
    assert "RuntimeError: broke" in table


def test_sources_follow_their_targets_and_time_is_the_walls_on_a_gpu():
    pushed = solvers.Pushforward(torch.nn.Linear(2, 3), solvers.Gaussian(2))
    there = solvers.moved(pushed, torch.device("meta"))
    assert {there.generator.weight.device.type, there.latent.device.type} == {"meta"}
    assert solvers.moved(7, torch.device("meta")) == 7
    clock = solvers.Clock(torch.device("cpu"))
    clock.seconds, clock.processor = 2.0, 3.0
    assert clock.spent == 3.0
    clock.device = torch.device("cuda")
    assert clock.snapshot(1, torch.zeros(1)).spent == 2.0
