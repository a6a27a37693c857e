"""The Triton kernels give the right results: interpreted where there is no GPU, compiled where there is one.

Triton decides when it is imported whether it compiles or interprets, for a whole process, and other tests need it as a
user has it (torch.compile imports it too). So the reductions are tested in processes of their own.
"""

import os
import sys

import pytest
import torch

from fastsdot.kernels import Form, refusal

pytest.importorskip("triton")
# The slowest first.
FILES = ("reductions", "screening", "softening", "keeping", "measuring", "certifying", "scoring", "listing")


def command_of(name):
    command = (sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", f"triton_{name}.py")
    if torch.cuda.is_available():
        return command
    # The interpreter computes in NumPy, which warns of exp2(-inf) and its like; the device has no such warnings.
    return ("TRITON_INTERPRET=1", *command, "-p", "quick_interpreter", "-W", "ignore::RuntimeWarning")


@pytest.mark.parametrize("process", [command_of(name) for name in FILES], ids=FILES, indirect=True)
def test_reductions_agree_with_float64(process):
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter runs on the CPU")
def test_the_cpu_is_refused_without_the_interpreter():
    reason = refusal("triton", Form("power"), "argmin", torch.device("cpu"), 10, 5)
    assert reason == "it needs a CUDA device, not cpu"
