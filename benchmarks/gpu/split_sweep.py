"""How finely the targets are split: whole reductions by other values of `PROGRAMS` (kernels/triton_launch.py)."""

from collections.abc import Callable, Iterator

from torch import Tensor

from fastsdot.kernels import triton_launch as library

from .invariance import programs
from .launch_candidates import SMALL_SHAPES, SMALL_SWEEPS, SWEEPS, TARGETS, Shape, Sweep
from .launch_sweep import SECONDS, Contest
from .session import CRASHES, Session, reason

COUNTS, SMALL_COUNTS = (2, 4, 8, 16, 32), (2, 8)  # programs a multiprocessor
BATCHES, DIMENSION = (256, 1024, 4096, 64), 784


def problems(small: bool) -> list[tuple[Sweep, Shape]]:
    if small:
        return [(SMALL_SWEEPS[2], SMALL_SHAPES[0])]
    return [(sweep, (b, TARGETS, DIMENSION)) for b in BATCHES for sweep in SWEEPS]


def contest(session: Session, sweep: Sweep, shape: Shape) -> dict[str, dict]:
    """{programs: seconds and ratio to the library's number}."""
    held = Contest(session, sweep, shape)
    if held.refusal is not None:
        return {"absent": held.refusal}

    def by(count: int) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            with programs(count):
                return held.run(held.x)

        return call

    counts = dict.fromkeys((library.PROGRAMS, *(SMALL_COUNTS if session.small else COUNTS)))
    runs, found = {}, {}
    for count in counts:
        if wrong := held.wrong(by(count)()):
            session.failures.append(f"variants: {sweep}, {held.problem}: PROGRAMS = {count}: {wrong}")
            found[str(count)] = {"absent": wrong}
        else:
            runs[str(count)] = by(count)
    seconds = session.medians(runs, SECONDS)
    own = seconds[str(library.PROGRAMS)]
    return found | {count: {"seconds": value, "ratio": value / own} for count, value in seconds.items()}


def run(session: Session, _: dict) -> Iterator[tuple[str, object]]:
    """{problem: its contest}, or the reason why there is none."""
    for sweep, shape in problems(session.small):
        name = f"{sweep.backend} {sweep.reduction}, {sweep.cost}, " + "B={}, N={}, D={}".format(*shape)
        if session.left < 0:
            yield name, {"absent": "it came after this part's time"}
            continue
        try:
            yield name, contest(session, sweep, shape)
        except CRASHES as error:
            session.failures.append(f"variants: {name}: {reason(error)}")
            yield name, {"absent": reason(error)}
