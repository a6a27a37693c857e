"""Background: a thread that solves while training uses what it has found so far.

The thread maximises the semi-dual on a twin of `ot`, which shares its targets and has a potential of its own. Whenever
a check finds a smaller marginal error χ², that potential waits for the coupling, which takes it between two batches: a
batch sees one potential, and no training step waits for the solver.
"""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait as wait_for
from threading import Event
from typing import Any

from torch import Tensor

from fastsdot.conditional import ConditionalOT
from fastsdot.conditional_report import ConditionalSolution
from fastsdot.couplings import Coupling
from fastsdot.errors import InvalidArgument, require_number
from fastsdot.labels import Label
from fastsdot.ots import Solution
from fastsdot.progress import Progress
from fastsdot.semidiscrete import SemiDiscreteOT
from fastsdot.sources import SourceLike
from fastsdot.stopping import asks


class Stopped(BaseException):
    """Ends a solve at its next step; not an error."""


class Background:
    """`with Background(coupling, source, tol=0.05): ...` improves the coupling's potential while the block runs.

    source and options are those of `ot.solve`. Where the source moves, as a generator in training does, `every` seconds
    after the end of a solve the next begins. `solution` is the last one's, `refreshes` the number of potentials taken;
    a `ConditionalCoupling` takes that of each class by itself.

    Where the workers of a loader draw the pairs, call `refresh` between epochs: they start with that potential.

    The block's end stops the thread at its next batch of samples; what raises in the thread is raised at the next
    batch, or at the end. Raises `InvalidArgument` for an ot that is shared by ranks, whose passes are collective, for
    `every` unless above 0, and for a coupling that has a background already.
    """

    def __init__(
        self,
        coupling: Coupling,
        source: SourceLike,
        *,
        every: float | None = None,
        progress: Callable[[Progress], None] | None = None,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
        **options: Any,
    ):
        if any(part.ranks is not None for _, part in parts(coupling.ot)):
            remedy = "solve before training, or give every rank an ot of its own"
            raise InvalidArgument("coupling", "an ot of this process", "one shared by ranks", remedy)
        if every is not None:
            require_number("every", every, above=0)
        self.coupling, self.source, self.every, self.options = coupling, source, every, options
        self.progress, self.callback = progress, callback
        self.solution: Solution | ConditionalSolution | None = None
        self.refreshes = 0
        self._found: dict[Label | None, Tensor] = {}  # by class; entering and popping are atomic
        self._stop = Event()
        self._thread: Future | None = None

    def __enter__(self) -> "Background":
        if self.coupling.background is not None or self._thread is not None:
            raise InvalidArgument("coupling", "one without a background", "one that has it", "leave that block first")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastsdot-background")
        self._thread = self._pool.submit(self._run, twin(self.coupling.ot))
        self.coupling.background = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self.coupling.background = None
        self._pool.shutdown()
        failure = self._thread.exception()
        self._take()
        if failure is not None and kind is None:
            raise failure

    def refresh(self) -> None:
        """Take the newest potential, if there is one; raise what the thread raised."""
        if self._thread is not None and self._thread.done():
            self._thread.result()
        self._take()

    def wait(self, timeout: float | None = None) -> Solution | ConditionalSolution | None:
        """Wait for the thread, at most `timeout` seconds; then `refresh`. Not for `every`, where it never ends."""
        wait_for([self._thread] if self._thread is not None else [], timeout)
        self.refresh()
        return self.solution

    def _take(self) -> None:
        while self._found:
            label, potential = self._found.popitem()
            dict(parts(self.coupling.ot))[label].potential = potential
            self.refreshes += 1

    def _run(self, ot: SemiDiscreteOT | ConditionalOT) -> None:
        try:
            while not self._stop.is_set():
                self.solution = ot.solve(self.source, progress=self._step, callback=self._offer(ot), **self.options)
                if self.every is None or self._stop.wait(self.every):
                    return
        except Stopped:
            return

    def _step(self, step: Progress) -> None:
        if self._stop.is_set():
            raise Stopped
        if self.progress is not None:
            self.progress(step)

    def _offer(self, ot: SemiDiscreteOT | ConditionalOT) -> Callable[[dict[str, float]], bool]:
        """A callback that hands the potential of a check over when it is the best of this solve."""
        best: dict[Label | None, float] = {}

        def offer(row: dict[str, Any]) -> bool:
            label = row.get("class")
            if row["chi2"] < best.get(label, float("inf")):
                best[label] = row["chi2"]
                self._found[label] = dict(parts(ot))[label].potential.clone()
            return self.callback is not None and asks(self.callback(row))

        return offer


def parts(ot: SemiDiscreteOT | ConditionalOT) -> list[tuple[Label | None, SemiDiscreteOT]]:
    """The transports that have a potential, by class."""
    return list(ot.items()) if isinstance(ot, ConditionalOT) else [(None, ot)]


def twin(ot: SemiDiscreteOT | ConditionalOT) -> SemiDiscreteOT | ConditionalOT:
    """The same targets, weights, kernels and lists with a potential and a state of the solve of its own."""
    names = ("targets", "weights", "first", "cost", "_embedding", "_kernel")
    shared = [getattr(part, name) for _, part in parts(ot) for name in names]
    shared += [part.ascent.candidates for _, part in parts(ot) if part.ascent]  # which no fit changes
    return copy.deepcopy(ot, {id(value): value for value in shared})
