"""Whole reductions by other values of a number in kernels/: how finely targets are split, whether scores are kept."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from unittest.mock import patch

from torch import Tensor

from fastsdot.kernels import triton_launch as library, triton_soft

from .invariance import programs
from .launch_candidates import SMALL_SHAPES, SMALL_SWEEPS, SWEEPS, TARGETS, Shape, Sweep
from .launch_sweep import SECONDS, Contest
from .session import CRASHES, Session, reason

BATCHES, DIMENSION = (256, 1024, 4096, 64), 784
MARGINALS = tuple(sweep for sweep in SWEEPS if sweep.reduction == "soft_marginal")


def again(coordinates: float) -> AbstractContextManager:
    """The second pass of a soft marginal reads scores of so many coordinates and more."""
    return patch.dict(triton_soft.AGAIN, dict.fromkeys(triton_soft.AGAIN, coordinates))


@dataclass(frozen=True)
class Setting:
    """What is changed, its values by name, the library's own first, and the reductions that it is for."""

    name: str
    change: Callable[[float], AbstractContextManager]
    values: dict[str, float]
    problems: tuple[tuple[Sweep, Shape], ...]
    small: tuple[Sweep, int]  # and how many values, where the shape is small


SETTINGS = {
    "splits": Setting(
        "PROGRAMS", programs, {str(count): count for count in dict.fromkeys((library.PROGRAMS, 2, 4, 8, 16, 32))},
        tuple((sweep, (b, TARGETS, DIMENSION)) for b in BATCHES for sweep in SWEEPS), (SMALL_SWEEPS[2], 2),
    ),
    "kept": Setting(
        "scores", again, {"computed again": float("inf"), "kept": 0},
        tuple((sweep, (b, TARGETS, d)) for d in (784, 256, 64, 16) for b in (256, 4096) for sweep in MARGINALS),
        (MARGINALS[0], 2),
    ),
}  # fmt: skip


def contest(session: Session, setting: Setting, sweep: Sweep, shape: Shape) -> dict[str, dict]:
    """{value: seconds and ratio to the first}."""
    held = Contest(session, sweep, shape)
    if held.refusal is not None:
        return {"absent": held.refusal}

    def by(value: float) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            with setting.change(value):
                return held.run(held.x)

        return call

    values = dict(list(setting.values.items())[: setting.small[1] if session.small else None])
    runs, found = {}, {}
    for name, value in values.items():
        if wrong := held.wrong(by(value)()):
            session.failures.append(f"variants: {sweep}, {held.problem}: {setting.name} = {name}: {wrong}")
            found[name] = {"absent": wrong}
        else:
            runs[name] = by(value)
    seconds = session.medians(runs, SECONDS)
    own = seconds.get(next(iter(values)), float("nan"))
    return found | {name: {"seconds": value, "ratio": value / own} for name, value in seconds.items()}


def run(session: Session, _: dict, setting: str) -> Iterator[tuple[str, object]]:
    """{problem: its contest}, or the reason why there is none."""
    chosen = SETTINGS[setting]
    for sweep, shape in [(chosen.small[0], SMALL_SHAPES[0])] if session.small else chosen.problems:
        name = f"{sweep.backend} {sweep.reduction}, {sweep.cost}, " + "B={}, N={}, D={}".format(*shape)
        if session.left < 0:
            yield name, {"absent": "it came after this part's time"}
            continue
        try:
            yield name, contest(session, chosen, sweep, shape)
        except CRASHES as error:
            session.failures.append(f"variants: {name}: {reason(error)}")
            yield name, {"absent": reason(error)}
