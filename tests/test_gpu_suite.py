"""The GPU suite proves itself without a GPU: it runs, writes what it found, and notices a kernel that is wrong."""

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


def test_it_imports_the_checkout_without_an_installation(tmp_path):
    script = "import sys; sys.path.insert(0, sys.argv[1]); from gpu import checkout; checkout.use()\n"
    script += "import fastsdot.kernels as k; print(k.__file__)"
    done = python("-I", "-c", script, BENCHMARKS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == BENCHMARKS.parent / "kernels" / "__init__.py"


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
