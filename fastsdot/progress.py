"""Progress of long calls: what `solve`, `fit` and `train` report, and a display for it.

Anything that takes a `Progress` can be given as ``progress=``; `live` is the one that the command line uses.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Literal

LABELS = {"w": "W", "chi2": "χ²", "loss": "loss"}  # how well-known values are written; others go by their name
LINE_SECONDS = 10.0  # between plain lines of one phase


@dataclass(frozen=True)
class Progress:
    """Where a call stands: the phase, the round of `train` it belongs to, and the values known so far.

    `done` and `total` count samples in "solve" and steps in "fit"; `total` is None while nobody knows it.
    """

    phase: Literal["solve", "fit"]
    round: int | None
    done: int
    total: int | None
    values: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """The values that are known on one line, such as "W 9.71  χ² 0.043"."""
        known = {LABELS.get(name, name): value for name, value in self.values.items() if not math.isnan(value)}
        return "  ".join(f"{label} {value:.4g}" for label, value in known.items())


@contextmanager
def live(file: IO[str] | None = None) -> Iterator[Callable[[Progress], None]]:
    """A callable for ``progress=`` that draws bars on a terminal and writes plain lines anywhere else.

    `file` is where to write, standard error unless given.
    """
    file = sys.stderr if file is None else file
    with _bars(file) if file.isatty() else _lines(file) as show:
        yield show


@contextmanager
def _bars(file: IO[str]) -> Iterator[Callable[[Progress], None]]:
    """One bar a phase; a new round starts its bars again."""
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.fields[label]}", style="bold"),
        rich.BarColumn(bar_width=30),
        rich.TextColumn("{task.fields[count]}", justify="right"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.fields[values]}", style="cyan"),
    )
    with rich.Progress(*columns, console=Console(file=file)) as bars:
        tasks: dict[str, rich.TaskID] = {}
        last: dict[str, Progress] = {}

        def show(event: Progress) -> None:
            before = last.get(event.phase)
            last[event.phase] = event
            text = {"label": _label(event), "count": _count(event), "values": event.describe()}
            if before is None:
                tasks[event.phase] = bars.add_task("", total=event.total, **text)
            elif before.round != event.round or before.done > event.done:
                bars.reset(tasks[event.phase])
            bars.update(tasks[event.phase], completed=event.done, total=event.total, **text)

        yield show


@contextmanager
def _lines(file: IO[str]) -> Iterator[Callable[[Progress], None]]:
    """A line when a phase ends, and every `LINE_SECONDS` while it lasts."""
    last: Progress | None = None  # what is not written yet
    written = time.monotonic()

    def write() -> None:
        nonlocal last, written
        if last is not None:
            print(f"{_label(last)}  {_count(last)}  {last.describe()}".rstrip(), file=file, flush=True)
        last, written = None, time.monotonic()

    def show(event: Progress) -> None:
        nonlocal last
        if last is not None and (last.phase, last.round) != (event.phase, event.round):
            write()
        last = event
        if time.monotonic() - written > LINE_SECONDS:
            write()

    try:
        yield show
    finally:
        write()


def _label(event: Progress) -> str:
    return f"{event.phase:5}" if event.round is None else f"round {event.round:3}  {event.phase:5}"


def _count(event: Progress) -> str:
    return f"{event.done:,}" if event.total is None else f"{event.done:,}/{event.total:,}"
