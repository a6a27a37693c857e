"""compute-sanitizer over the correctness checks on small shapes, where NVIDIA's tool is at hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from fastsdot.kernels import BACKENDS

from .checkout import ROOT
from .session import Session

TOOLS = ("memcheck", "racecheck")
PLACES = ("/usr/local/cuda/bin/compute-sanitizer",)
LEAST = 20.0  # seconds below which it is not worth starting
ERRORS = 86  # its exit status for an error that it found


def binary() -> str | None:
    return shutil.which("compute-sanitizer") or next((place for place in PLACES if Path(place).exists()), None)


def sanitize(session: Session, command: str, tool: str) -> str:
    """ "clean", or what happened."""
    suite = [sys.executable, str(ROOT / "benchmarks/gpu_suite.py"), "--small", "--only", "correctness", "--no-files"]
    suite += ["--backends", *(name for name in session.backends if BACKENDS[name].requires == "triton")]
    # every tensor an allocation of its own, so that reading past its end is noticed
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    options = ["--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "5"]
    try:
        done = subprocess.run(
            [command, *options, *suite],
            capture_output=True,
            text=True,
            env=environment,
            timeout=max(LEAST, session.left),
        )
    except subprocess.TimeoutExpired:
        return "did not finish in this part's time"
    if done.returncode == 0:
        return "clean"
    said = " ".join((done.stdout + done.stderr).split())[-600:]
    if done.returncode == ERRORS:
        session.failures.append(f"sanitizer: {tool}: {said}")
        return f"errors: {said}"
    return f"did not run (status {done.returncode}): {said}"


def run(session: Session) -> dict[str, str]:
    command = binary()
    if not session.cuda or command is None:
        lacks = "a GPU" if not session.cuda else "compute-sanitizer on the path"
        return dict.fromkeys(TOOLS, f"not run: it needs {lacks}")
    return {
        tool: sanitize(session, command, tool) if session.left > LEAST else "not run: no time was left"
        for tool in TOOLS
    }
