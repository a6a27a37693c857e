"""What every part of the suite is given: the device, the clock, and how long it may take."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import torch
from problems import interleave, wall

if find_spec("triton") is None:
    COMPILER_ERRORS: tuple[type[Exception], ...] = ()
else:
    from triton.errors import TritonError

    COMPILER_ERRORS = (TritonError,)

# What a kernel that is wrong may raise. Each is written down as a failure of that check, and the others still run.
CRASHES = (RuntimeError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError, *COMPILER_ERRORS)
CALL_SECONDS = 2e-3  # shorter calls are repeated between two events, so that launching is not all that is timed


@dataclass
class Session:
    """One run of the suite; `failures` are what makes it end with an error."""

    device: torch.device
    small: bool
    backends: tuple[str, ...]
    folder: Path | None = None  # where results are written
    images: Path | None = None  # 60 000 images for the solves, where they are there
    cifar: Path | None = None
    training: Path | None = None  # where CIFAR-10's training is kept
    named: str | None = None  # the backend of solves, where it is not fastsdot's own choice
    until: float = float("inf")  # of `time.perf_counter`, for the part that is running
    part: str = ""
    failures: list[str] = field(default_factory=list)
    found: dict[str, dict] = field(default_factory=dict)  # by the parts of this run
    write: Callable[[], None] = lambda: None

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds that the part still has."""
        return self.until - time.perf_counter()

    def keep(self, found: dict) -> None:
        """Write down what the running part has found so far, which stays if it is cut short."""
        self.found[self.part] = found
        self.write()

    def clock(self, run: Callable[[], object]) -> float:
        """Seconds of one call, between two events of the device's stream where it has one."""
        if not self.cuda:
            return wall(run)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def medians(self, runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
        """Median seconds of a call of each, interleaved, 3 to 25 rounds in about that many seconds; all are warm.

        Without a GPU, where times mean nothing, of one call.
        """
        if not self.cuda:
            return {name: self.clock(run) for name, run in runs.items()}
        calls = {name: ceil(CALL_SECONDS / max(self.clock(run), 1e-6)) for name, run in runs.items()}
        repeated = {name: repeat(run, calls[name]) for name, run in runs.items()}
        once = sum(interleave(repeated, 1, self.clock).values())
        times = interleave(repeated, max(3, min(25, int(seconds / max(once, 1e-9)))), self.clock)
        return {name: total / calls[name] for name, total in times.items()}

    def free(self) -> int:
        """Bytes that can still be allocated on the device; unlimited for a CPU, whose problems are small."""
        if not self.cuda:
            return 2**62
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]


def repeat(run: Callable[[], object], calls: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(calls):
            run()

    return repeated


def reason(error: Exception) -> str:
    """The error's type and first lines, without the stack."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
