"""The GPU suite proves itself without a GPU: it runs, writes what it found, and notices a kernel that is wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
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
    assert unmeasured == ["solve, l1 from a generator: seconds"]
    assert all(line[2] == "not measured" for line in goals.lines({}))


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
