"""Progress is shown as lines in a pipe and as bars on a terminal."""

import io
import math

import pytest

from fastsdot import progress
from fastsdot.progress import Progress, live


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rounds() -> list[Progress]:
    return [
        Progress("solve", 1, 512, 1024, {"w": 50.25, "chi2": math.nan}),
        Progress("solve", 1, 1024, 1024, {"w": 41.5, "chi2": 0.0421, "loss": math.nan}),
        Progress("fit", 1, 300, 300, {"loss": 12.0}),
        Progress("solve", 2, 512, None, {}),
    ]


def test_a_pipe_gets_the_last_state_of_every_phase():
    file = io.StringIO()
    with live(file) as show:
        for event in rounds():
            show(event)
    assert file.getvalue().splitlines() == [
        "round   1  solve  1,024/1,024  W 41.5  χ² 0.0421",
        "round   1  fit    300/300  loss 12",
        "round   2  solve  512",
    ]


def test_a_pipe_hears_from_a_long_phase(monkeypatch):
    clock = iter([0.0, 5.0, 11.0, 11.0, 12.0, 22.5, 22.5, 23.0])  # start, a look per event, one more per line
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with live(file) as show:
        for done in (1, 2, 3, 4):
            show(Progress("solve", None, done, None))
    assert file.getvalue().splitlines() == ["solve  2", "solve  4"]


def test_what_was_known_is_written_when_the_call_fails():
    file = io.StringIO()

    def interrupted():
        with live(file) as show:
            show(Progress("solve", None, 7, None))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.getvalue() == "solve  7\n"


def test_nothing_is_written_when_nothing_happened():
    file = io.StringIO()
    with live(file):
        pass
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_for_each_phase(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    file = Terminal()
    with live(file) as show:
        for event in rounds():
            show(event)
    screen = file.getvalue()
    for text in ("round   2  solve", "round   1  fit", "300/300", "loss 12"):
        assert text in screen
