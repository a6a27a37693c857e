"""What to change in the kernels, measured: other launches, and other ways to write what takes the time.

Each step runs in a process of its own on a GPU (alone.py), the short ones first; the sweep over launches takes what is
left. Nothing here is part of the library until it wins.
"""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from . import alone, launch_choice
from .session import Session


def step(module: str, session: Session, ceilings: dict, **options: object) -> Iterator[tuple[str, object]]:
    """What a module's `run` finds; it is imported now, for without triton it cannot be."""
    yield from import_module(f".{module}", __package__).run(session, ceilings, **options)


# In this order, each until its share of the part's time is used up by it and those before it.
STEPS: dict[str, tuple[alone.Step, float]] = {
    "predictions": (partial(step, "predictions"), 0.12),
    "bounds": (partial(step, "bounds_variants"), 0.22),
    "specialised": (partial(step, "bounds_variants", specialised=True), 0.3),
    "gluon": (partial(step, "gluon_variants"), 0.36),
    "kept": (partial(step, "setting_sweep", setting="kept"), 0.4),
    "launches": (partial(step, "launch_sweep"), 0.92),
    "splits": (partial(step, "setting_sweep", setting="splits"), 1.0),
}


def run(session: Session, ceilings: dict[str, float | str]) -> dict:
    """{step: what it found}, and the launches that the tables should hold by it."""
    if find_spec("triton") is None:
        return {"absent": "triton is not installed"}
    whole, until, found = session.left, session.until, {}
    for name, (steps, share) in STEPS.items():
        session.until = until - (1 - share) * whole
        found[name] = alone.outside(name, session, ceilings) if session.cuda else alone.inside(steps, session, ceilings)
        rows, splits = found.get("launches", {}).get("rows", []), found.get("splits", {})
        found["suggested"] = launch_choice.suggested(rows) + launch_choice.programs(splits)
        session.keep(found)
    session.until = until
    return found
