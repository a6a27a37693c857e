"""The command line, end to end at a tiny size."""

import inspect
import json
import re
from dataclasses import MISSING, fields

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fastsdot import cli
from fastsdot.alternate import train
from fastsdot.runs import Settings

TINY = ("--targets", "40", "--hidden", "16", "--latent-dim", "4", "--steps", "20", "--seed", "3", "--tol", "0.5")


def call(*arguments) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def succeed(*arguments) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refuse(*arguments) -> str:
    """The one line on standard error with which a command fails."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("fastsdot: ")
    return result.stderr


def samples(run, folder, name="samples.npy") -> np.ndarray:
    succeed("sample", run, "-n", 8, "--out", folder / name)
    return np.load(folder / name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two rounds."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    printed = succeed("train", "--data", "digits", *TINY, "--rounds", 2, "--out", out)
    assert re.match(r"round 2: W \d+\.\d+, χ² ", printed)
    assert str(out / "samples-last.png") in printed
    return out


def test_a_run_leaves_its_settings_its_report_and_pictures(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {"run.json", "report.json", "samples-001.png", "samples-last.png", "curves.png", "masses.png"}
    assert not any(name.endswith(".new") for name in names)
    settings = json.loads((run / "run.json").read_text())
    assert settings["data"] == "digits"
    assert settings["hidden"] == [16]


def test_settings_are_those_of_train_where_it_has_them():
    options = inspect.signature(train).parameters
    shared = [field for field in fields(Settings) if field.name in options and field.default is not MISSING]
    names = {field.name for field in shared if field.name != "targets"}
    assert names == {"cost", "p", "rounds", "tol", "steps", "batch_size"}
    assert all(field.default == options[field.name].default for field in shared if field.name in names)


def test_evaluate(run):
    values = json.loads(succeed("evaluate", run, "--samples", 4000, "--json"))
    assert values["samples"] >= 4000
    assert values["chi2"] < 0.8
    assert values["gap"] == pytest.approx(values["primal"] - values["dual"], abs=1e-3)
    assert values["starved"] == {"share": 0.1, "targets": pytest.approx(0, abs=39)}
    assert "bracket" not in values
    table = succeed("evaluate", run, "--samples", 4000)
    for name in ("chi2", "primal", "dual", "gap", "empty"):
        assert f"{values[name]:.5g}" in next(line for line in table.splitlines() if line.strip().startswith(name))


def row_of(table, name) -> list[float]:
    return [float(cell) for cell in next(line for line in table.splitlines() if line.split()[:1] == [name]).split()[1:]]


def test_evaluate_shows_intervals_bounds_and_a_bracket(run):
    asked = ("evaluate", run, "--samples", 60, "--bracket", 2000, "--confidence", 0.9)
    values, table = json.loads(succeed(*asked, "--json")), succeed(*asked)
    for name in ("chi2", "primal", "dual", "gap"):
        low, high = values["interval"][name]
        assert low < values[name] < high
        assert row_of(table, name) == pytest.approx([values[name], values[f"{name}_error"], low, high], rel=0.1)
    assert f"at most {values['starved']['targets']} of 40 targets" in table
    assert values["empty"] > 0
    assert f"a target that no sample chose: at most {values['unseen']:.2g} of all mass" in table
    bracket = values["bracket"]
    assert bracket["confidence"] == 0.9
    assert bracket["samples"] == 2000
    assert bracket["lower"] < bracket["dual"] < bracket["primal"] < bracket["upper"]
    assert abs(bracket["dual"] - values["dual"]) < 4 * (bracket["dual_error"] + values["dual_error"])
    assert f"{bracket['lower']:.6g} ≤ W ≤ {bracket['upper']:.6g} at 0.9" in table


def test_evaluate_refuses_what_no_bracket_can_be_made_of(run):
    assert "samples: expected an integer above 1" in refuse("evaluate", run, "--bracket", 1)
    assert "confidence: expected a number between 0 and 1" in refuse("evaluate", run, "--confidence", 95)


def test_evaluate_draws_what_the_seed_says(run):
    first, again, other = (succeed("evaluate", run, "--samples", 1000, "--json", "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_sample(run, tmp_path):
    array = samples(run, tmp_path)
    assert array.shape == (8, 8, 8)
    assert array.dtype == np.float32
    assert np.abs(array).max() <= 1
    assert succeed("sample", run, "-n", 9, "--out", tmp_path / "nine.png").strip() == str(tmp_path / "nine.png")
    with Image.open(tmp_path / "nine.png") as image:
        assert image.size == (3 * 68 + 4, 3 * 68 + 4)


def test_info_of_a_run(run):
    printed = succeed("info", run)
    for text in ("digits", "l1", "round 2: W ", "samples-last.png"):
        assert text in printed


def test_info_of_the_machine():
    printed = succeed("info")
    assert f"torch {torch.__version__}" in printed
    assert re.search(r"^\s*l1\s+(screen|numba|triton|gemm)\b", printed, re.M)
    assert "cannot run" in printed


def test_resume_goes_on_as_if_it_had_not_stopped(run, tmp_path):
    out = tmp_path / "run"
    succeed("train", "--data", "digits", *TINY, "--rounds", 1, "--out", out)
    assert not np.array_equal(samples(out, tmp_path), samples(run, tmp_path, "whole.npy"))
    for picture in out.glob("*.png"):
        picture.unlink()
    succeed("train", "--resume", "--out", out)  # nothing is left to do but to draw
    assert (out / "samples-last.png").exists()
    succeed("train", "--resume", "--out", out, "--rounds", 2)
    assert np.array_equal(samples(out, tmp_path), samples(run, tmp_path, "whole.npy"))


def test_pictures_do_not_change_the_run(run, tmp_path):
    out = tmp_path / "run"
    succeed("train", "--data", "digits", *TINY, "--rounds", 2, "--no-pictures", "--out", out)
    assert not list(out.glob("*.png"))
    assert np.array_equal(samples(out, tmp_path), samples(run, tmp_path, "whole.npy"))


def test_vectors_and_points_train_too(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("plane", (30, 2)), ("vectors", (30, 5))):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=shape).astype("float32"))
        out, options = tmp_path / name, ("--cost", "sqeuclidean", *TINY[2:], "--rounds", 1)
        succeed("train", "--data", tmp_path / f"{name}.npy", *options, "--out", out)
        assert (out / "samples-last.png").exists() == (name == "plane")
        assert (out / "curves.png").exists()
    assert "a .npy file" in refuse("sample", tmp_path / "vectors")


def test_an_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train_generator", interrupted)
    result = call("train", "--data", "digits", *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert f"fastsdot train --resume --out {tmp_path / 'run'}" in result.stderr


def test_another_run_is_refused(run):
    before = (run / "run.json").read_bytes()
    assert "holds a run; continue it with --resume" in refuse("train", "--data", "digits", "--out", run)
    assert "cost: expected 'l1'" in refuse("train", "--resume", "--out", run, "--cost", "sqeuclidean")
    assert "hidden: expected (16,)" in refuse("train", "--resume", "--out", run, "--hidden", "32")
    assert (run / "run.json").read_bytes() == before


BAD = {
    "no data": (["train", "--out", "{out}"], "data: expected 'digits'"),
    "unknown data": (["train", "--out", "{out}", "--data", "digitz"], "data: expected 'digits'"),
    "empty file": (["train", "--out", "{out}", "--data", "{empty}"], "starts with nothing"),
    "no targets": (
        ["train", "--out", "{out}", "--data", "digits", "--targets", 0],
        "targets: expected at least 1, received 0",
    ),
    "too many targets": (["train", "--out", "{out}", "--data", "digits", "--targets", 1798], "received 1798"),
    "unknown cost": (["train", "--out", "{out}", "--data", "digits", "--cost", "l2"], "cost: expected one of"),
    "no exponent": (["train", "--out", "{out}", "--data", "digits", "--cost", "lp"], "p: expected a finite number"),
    "exponent": (["train", "--out", "{out}", "--data", "digits", "--cost", "lp", "--p", -1], "p: expected a finite"),
    "widths": (["train", "--out", "{out}", "--data", "digits", "--hidden", "8,x"], "hidden: expected widths"),
    "no out": (["train", "--data", "digits"], "Missing option '--out'"),
    "no number": (["train", "--out", "{out}", "--rounds", "many"], "Invalid value for '--rounds'"),
    "no samples": (["sample", "{out}", "-n", 0], "Invalid value for '-n'"),
    "rounds": (["train", "--out", "{out}", "--data", "digits", "--rounds", -1], "rounds: expected"),
    "tol": (["train", "--out", "{out}", "--data", "digits", "--tol", -1], "tol: expected"),
    "steps": (["train", "--out", "{out}", "--data", "digits", "--steps", -1], "steps: expected"),
    "batch size": (["train", "--out", "{out}", "--data", "digits", "--batch-size", 0], "batch_size: expected"),
    "latent": (["train", "--out", "{out}", "--data", "digits", "--latent-dim", 0], "latent"),
    "device": (["train", "--out", "{out}", "--data", "digits", "--device", "abacus"], "device: expected"),
    "out is a file": (["train", "--out", "{empty}", "--data", "digits"], "out: expected a folder"),
    "nothing to resume": (["train", "--out", "{out}", "--resume"], "a run folder with its run.json"),
    "nothing to evaluate": (["evaluate", "{out}"], "a run folder with its run.json"),
    "nothing to sample": (["sample", "{out}"], "a run folder with its run.json"),
    "nothing to say": (["info", "{out}"], "a run folder with its run.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_no_run(name, tmp_path):
    arguments, message = BAD[name]
    (tmp_path / "empty").touch()
    places = {"{out}": tmp_path / "run", "{empty}": tmp_path / "empty"}
    assert message in refuse(*(places.get(argument, argument) for argument in arguments))
    assert not (tmp_path / "run" / "checkpoint.json").exists()


def test_a_tolerance_that_cannot_be_used_is_not_kept(run):
    settings = (run / "run.json").read_text()
    assert "tol: expected a finite number above 0" in refuse("train", "--resume", "--out", run, "--tol", 0)
    assert (run / "run.json").read_text() == settings


def test_a_run_without_a_checkpoint_cannot_be_evaluated_but_resumed(tmp_path, run):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_bytes((run / "run.json").read_bytes())
    assert "checkpoint" in refuse("evaluate", out)
    assert "no round is finished" in succeed("info", out)
    succeed("train", "--resume", "--out", out, "--rounds", 1, "--no-pictures")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"data": 3}'])
def test_broken_settings(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert "a run folder with its run.json" in refuse("evaluate", tmp_path)


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--cots", "l1"], ["train", "--out"], ["info", "a", "b"]])
def test_a_command_line_that_cannot_be_read_is_one_line_too(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("fastsdot: ")
