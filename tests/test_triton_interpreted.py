"""The Triton kernels give the right results: interpreted where there is no GPU, compiled where there is one.

Triton decides when it is imported whether it compiles or interprets, for a whole process, and other tests need it as a
user has it (torch.compile imports it too). So the reductions are tested in a process of their own.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fastsdot.kernels import Form, refusal

pytest.importorskip("triton")
HERE = Path(__file__).parent
# The slowest first.
FILES = ("reductions", "screening", "softening", "keeping", "measuring", "certifying", "scoring", "listing")


def run(name):
    environment, options = os.environ, ["-q", "--no-header", "-p", "no:cacheprovider"]
    if not torch.cuda.is_available():
        environment = environment | {"TRITON_INTERPRET": "1"}
        # The interpreter computes in NumPy, which warns of exp2(-inf) and its like; the device has no such warnings.
        options += ["-p", "quick_interpreter", "-W", "ignore::RuntimeWarning"]
    command = [sys.executable, "-m", "pytest", *options, str(HERE / f"triton_{name}.py")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE)


@pytest.fixture(scope="module")
def runs(request):
    """One process for each file that was asked for, as many at once as there are cores: the interpreter takes one."""
    items = [item for item in request.session.items if "runs" in getattr(item, "fixturenames", ())]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {item.callspec.params["name"]: pool.submit(run, item.callspec.params["name"]) for item in items}


@pytest.mark.parametrize("name", FILES)
def test_reductions_agree_with_float64(name, runs):
    done = runs[name].result()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter runs on the CPU")
def test_the_cpu_is_refused_without_the_interpreter():
    reason = refusal("triton", Form("power"), "argmin", torch.device("cpu"), 10, 5)
    assert reason == "it needs a CUDA device, not cpu"
