"""The GPU suite proves itself without a GPU: it runs, writes what it found, and notices a kernel that is wrong."""

import importlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SUITE = BENCHMARKS / "gpu_suite.py"
CIFAR = ("W₁ at the end", "minutes to W₁ ≤ 640")
pytestmark = pytest.mark.skipif(not (BENCHMARKS / "gpu_suite.py").exists(), reason="the suite is in the checkout alone")

# Runs the suite as it is, and again with the second-best target for the best in every fifth row of an argmin.
BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu_suite
from fastsdot.kernels import naive

options = ["--small", "--only", "ceilings", "correctness", "--backends", "naive", "--out"]
first = gpu_suite.main([*options, sys.argv[2]])
argmin = naive.argmin

def wrong(x, layout, bias, form):
    value, index = argmin(x, layout, bias, form)
    if min(len(x), len(bias)) > 1:
        index[::5] = naive.topk(x, layout, bias, form, 2)[1][::5, 1]
    return value, index

naive.argmin = wrong
second = gpu_suite.main([*options, sys.argv[3]])
assert "triton" not in sys.modules or gpu_suite.os.environ["TRITON_INTERPRET"] == "1"
sys.exit(10 * first + second)
"""


def python(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


def test_a_wrong_kernel_is_a_failure_and_a_right_one_is_not(tmp_path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    done = python("-c", BROKEN, BENCHMARKS, right, wrong, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED correctness: naive argmin" in done.stderr
    found = json.loads((right / "results.json").read_text())
    assert found["failures"] == []
    assert {row["reduction"] for row in found["correctness"]["worst"]} >= {"argmin", "softmin", "soft_marginal", "topk"}
    assert all(row["worst"] <= 1 for row in found["correctness"]["worst"])
    assert found["ceilings"]["fp32"] > 0
    found = json.loads((wrong / "results.json").read_text())
    assert all("naive argmin" in failure for failure in found["failures"])
    assert "## Failures\n\n- correctness: naive argmin" in (wrong / "README.md").read_text()


def test_lists_and_the_steps_of_a_solve_are_measured(tmp_path):
    suite = BENCHMARKS / "gpu_suite.py"
    done = python(suite, "--small", "--only", "lists", "solver", "--backends", "naive", "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["failures"] == []
    for part in ("lists", "solver"):
        assert [name for name, values in found[part].items() if "absent" in values] == []
    assert found["lists"]["64 × 33 of 33"]["mass"] < 1e-5
    assert all(found["solver"][f"step, {cost}"]["kernel"] > 0 for cost in ("sqeuclidean", "l1"))
    solves = [values for name, values in found["solver"].items() if name.startswith("solve")]
    assert all(solve["repeats bit for bit"] for solve in solves)
    assert len(solves) == 4
    assert all(0 < values["seconds in lists"] < values["seconds"] for values in solves)


def test_it_imports_the_checkout_without_an_installation(tmp_path):
    script = "import sys; sys.path.insert(0, sys.argv[1]); from gpu import checkout; checkout.use()\n"
    script += "import fastsdot.kernels as k; print(k.__file__)"
    done = python("-I", "-c", script, BENCHMARKS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == BENCHMARKS.parent / "kernels" / "__init__.py"


def test_goals_are_read_from_rows_that_are_timed(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    goals, rows = (importlib.import_module(f"gpu.{name}") for name in ("goals", "rows"))
    who = ("fastsdot", "flash-sinkhorn", "flash-sinkhorn, autotuned")
    result = {"seconds": 2.0, "of bf16": 0.6, "of fadd": 0.4, "of copy": 0.8, "extra_share": 0.01}
    timed = [{"row": str(row), "results": dict.fromkeys(who, result)} for row in rows.rows(few=False)]
    solver = {f"step, {cost}": {"ratio": 1.1} for cost in rows.COSTS}
    solver["solve, sqeuclidean from N(0, I)"] = {"converged": True, "seconds": 1.5}
    solver["solve, l1 from a generator"] = {"converged": False, "seconds": 1.5}
    lines = goals.lines({"timings": {"rows": timed}, "solver": solver})
    verdicts = {what: (measured, met) for what, _, measured, met in lines}
    assert verdicts[f"{goals.LARGE}: share of the bf16 product rate"] == ("0.6", "met")
    assert verdicts[f"{goals.L1}: share of the addition rate"] == ("0.4", "not met")
    assert verdicts[f"{goals.LARGE}: flash-sinkhorn over fastsdot"] == ("1", "not met")
    unmeasured = [what for what, (measured, _) in verdicts.items() if measured == "not measured"]
    whole = ["1.28e6 × 12 288 to χ² ≤ 0.05: minutes, extrapolated", *(f"CIFAR-10, l1: {what}" for what in CIFAR)]
    assert unmeasured == ["solve, l1 from a generator: seconds", *whole]
    keys = ("w", "primal", "w_error", "chi2", "seconds")
    made = ((700, 705, 1, 0.02, 60), (630, 632, 9, 0.02, 90), (600, 610, 1, 0.3, 100))
    found = {"cifar": {"history": [dict(zip(keys, values, strict=True)) for values in made]}}
    assert [line[2:] for line in goals.lines(found)[-2:]] == [("not measured", "")] * 2
    found["cifar"]["last"] = dict(zip(keys, (625, 632, 1, 0.02, 120), strict=True))
    found["cifar"]["history"].append(found["cifar"]["last"])
    assert [line[2:] for line in goals.lines(found)[-2:]] == [("632", "met"), ("2", "met")]
    assert all(line[2] == "not measured" for line in goals.lines({}))


def test_whole_solves_are_measured_and_joined_with_what_is_there(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (130, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    options = ["--small", "--backends", "naive", "--out", tmp_path / "out", "--time-budget", "100"]
    first = python(SUITE, *options, "--only", "ceilings", "race", cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    more = ["--cifar", tmp_path / "images.npy", "--run", tmp_path / "run"]
    done = python(SUITE, *options, "--only", "large", "cifar", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert set(found["runs"]) == {"ceilings", "race", "large", "cifar"}
    assert found["ceilings"]["fp32"] > 0
    race, large, cifar = (found[part] for part in ("race", "large", "cifar"))
    assert all(entry["curve"] for entry in race["contestants"].values())
    assert {"fastsdot", "Adam, batch 64", "averaged SGD, batch 4096"} <= set(race["contestants"])
    assert large["n"] > 4 * large["block"]
    assert large["batches"]["B=32"]["topk"] > 0
    assert large["partial"]["samples"] > large["n"]
    samples = max(entry["samples a target"] for entry in large["smaller"] if entry["converged"]) * large["n"]
    minutes = samples / large["partial"]["samples/s"] / 60
    assert large["extrapolated"]["minutes, as in the partial solve"] == pytest.approx(minutes)
    assert [entry["round"] for entry in cifar["history"]] == [0, 1, 2]
    assert {"race.png", "cifar-curve.png", "cifar-002.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert cifar["last"]["samples"] == 6 * 120
    assert (tmp_path / "run/checkpoint.safetensors").is_file()


def test_tables_are_made_from_results_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    readme, report, runs = (importlib.import_module(f"gpu.{name}") for name in ("readme", "report", "runs"))
    about = {"small": False, "device": "a GPU", "torch": "2", "date": "2026-01-01T00:00", "commit": "c", "sources": "s"}
    curve = [{"chi2": 0.2, "seconds": 1.0}, {"chi2": 0.04, "seconds": 2.0}]
    ours, rival = {"times": {"0.1": 1.5, "0.05": 1.9}}, {"times": {"0.1": None, "0.05": None}, "cap": 24.0}
    entries = {
        "fastsdot": ours | {"curve": curve},
        "Adam": rival | {"curve": [*curve[:1], {"chi2": 0.3, "seconds": 24.0}]},
    }
    entries = {name: entry | {"rate": None, "tried": 1} for name, entry in entries.items()}
    race = {"measure": "seconds", "name": "noise", "contestants": entries | {"POT": {"absent": "no", "curve": []}}}
    race["contestants"]["POT"]["times"] = rival["times"]
    before = {"title": "t", "failures": ["race: broke", "solver: broke"], "environment": about, "seconds": {"race": 1}}
    before |= {"runs": {"race": {"sources": "old"}, "solver": {"sources": "old"}}, "race": {"absent": "broke"}}
    after = {"title": "t", "failures": [], "environment": about, "seconds": {"race": 2}, "race": race}
    found = runs.joined(before, after | {"runs": {"race": {"sources": "new"}}})
    assert found["failures"] == ["solver: broke"]
    assert {name: run["sources"] for name, run in found["runs"].items()} == {"race": "new", "solver": "old"}
    assert "| race to χ² ≤ 0.1 from N(0, I) | 1.5 s; Adam > 16.0 × |" in readme.summary(found)
    assert "| CIFAR-10, 50 000 images, l1 | not measured |" in readme.summary(found)
    text = report.markdown(found)
    assert text.index("| fastsdot | 1.5 | 1.9 |") < text.index("| Adam | > 24 | > 24 |")
    assert "- POT: no" in text
    assert "W₁ at the end | ≤ 640 | not measured" in text
    assert runs.joined(before, after | {"environment": about | {"small": True}})["failures"] == []


def test_cifar_travels_in_parts_without_loss(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    parts = importlib.import_module("gpu.cifar_parts")
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        for batch, part in enumerate(np.array_split(images.transpose(0, 3, 1, 2), 5)):
            content = np.concatenate([np.zeros((10, 1), np.uint8), part.reshape(10, -1)], 1).tobytes()
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{batch + 1}.bin")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    assert np.array_equal(parts.images(tmp_path / "cifar.tar.gz"), images)
    written = parts.split(images, tmp_path, 60_000)
    assert len(written) > 2
    assert max(path.stat().st_size for path in written) <= 60_000
    out = tmp_path / "cifar10.npy"
    for path in written[1:]:
        assert "missing" in parts.join([path], out)
    assert "all 50 images" in parts.join(written[:1], out)
    assert np.array_equal(np.load(out), images)


@pytest.mark.slow
def test_the_small_run_has_every_part(tmp_path):
    done = python(BENCHMARKS / "gpu_suite.py", "--small", "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["failures"] == []
    parts = ("environment", "ceilings", "correctness", "invariance", "solver", "timings", "sanitizer")
    assert all(found[part] for part in parts)
    checked = {row["backend"] for row in found["correctness"]["worst"]}
    assert {"naive", "gemm", "triton"} <= checked
    assert found["correctness"]["refused"]
    for row in found["timings"]["rows"]:
        results = row["results"].values()
        assert "seconds" in row["results"]["fastsdot"]
        assert all(("seconds" in result) != ("absent" in result) for result in results), row["row"]
    assert found["environment"]["commit"] or found["environment"]["sources"]
    assert {"times.png", "roofline.png", "README.md"} <= {path.name for path in tmp_path.iterdir()}
