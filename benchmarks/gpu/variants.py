"""What to change in the kernels, measured: other launches, and other ways to write what takes the time.

Each step runs in a process of its own on a GPU (alone.py), the short ones first; the sweep over launches takes what is
left. Nothing here is part of the library until it wins.
"""

from functools import partial

from . import alone, bounds_variants, gluon_variants, launch_choice, launch_sweep, predictions, split_sweep
from .session import Session

# In this order, each until its share of the part's time is used up by it and those before it.
STEPS: dict[str, tuple[alone.Step, float]] = {
    "predictions": (predictions.run, 0.12),
    "bounds": (bounds_variants.run, 0.22),
    "specialised": (partial(bounds_variants.run, specialised=True), 0.3),
    "gluon": (gluon_variants.run, 0.36),
    "launches": (launch_sweep.run, 0.92),
    "splits": (split_sweep.run, 1.0),
}


def run(session: Session, ceilings: dict[str, float | str]) -> dict:
    """{step: what it found}, and the launches that the tables should hold by it."""
    whole, until, found = session.left, session.until, {}
    for name, (step, share) in STEPS.items():
        session.until = until - (1 - share) * whole
        found[name] = alone.outside(name, session, ceilings) if session.cuda else alone.inside(step, session, ceilings)
        rows, splits = found.get("launches", {}).get("rows", []), found.get("splits", {})
        found["suggested"] = launch_choice.suggested(rows) + launch_choice.programs(splits)
        session.keep(found)
    session.until = until
    return found
