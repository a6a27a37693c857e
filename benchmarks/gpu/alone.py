"""A step in a process of its own: a kernel that is wrong may take the device's context with it, or never end.

What the step has found is written after each of its entries, so that it stays whatever comes next.

    python -m gpu.alone STEP REQUEST RESULT          # from benchmarks/; REQUEST and RESULT are JSON files
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import checkout
from .session import CRASHES, Session, reason

Step = Callable[[Session, dict], Iterator[tuple[str, object]]]  # of the ceilings, to names and what was found
BENCHMARKS = Path(__file__).parents[1]
GRACE = 45  # seconds after its time, which it looks at between entries: then it waits for ever, and is ended


def entries(step: Step, session: Session, ceilings: dict, keep: Callable[[dict], None]) -> dict:
    """All that a step finds, kept after each entry; its end is a failure where it broke."""
    found: dict[str, object] = {}
    try:
        for name, value in step(session, ceilings):
            found[name] = value
            keep(found)
    except (*CRASHES, ImportError, OSError) as error:
        session.failures.append(f"variants: {reason(error)}")
        found["broke"] = reason(error)
    return found


def inside(step: Step, session: Session, ceilings: dict) -> dict:
    """In this process: without a GPU nothing can be taken along."""
    return entries(step, session, ceilings, lambda _: None)


def outside(name: str, session: Session, ceilings: dict) -> dict:
    """In a process of its own, which is ended when it is not done some time after its share."""
    session.free()  # the device's memory is for both
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.json"
        request.write_text(json.dumps({"small": session.small, "seconds": session.left, "ceilings": ceilings}))
        result.write_text(json.dumps({"found": {}, "failures": []}))
        command = [sys.executable, "-m", "gpu.alone", name, str(request), str(result)]
        try:
            done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=session.left + GRACE)
            said = " ".join(done.stderr.split())[-400:]
            broke = f"status {done.returncode}: {said}" if done.returncode else None
        except subprocess.TimeoutExpired:
            broke = "it did not end"
        written = json.loads(result.read_text())
    session.failures += written["failures"]
    if broke:
        session.failures.append(f"variants: {name}: {broke}")
        written["found"]["broke"] = broke
    return written["found"]


def main(name: str, request: Path, result: Path) -> None:
    checkout.use()
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from .variants import STEPS

    asked = json.loads(request.read_text())
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    session = Session(device, asked["small"], (), until=time.perf_counter() + asked["seconds"])

    def keep(found: dict) -> None:
        whole = result.with_suffix(".whole")
        whole.write_text(json.dumps({"found": found, "failures": session.failures}))
        whole.replace(result)  # at once, should this process be ended now

    keep(entries(STEPS[name][0], session, asked["ceilings"], keep))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
