"""The solver around the kernel: a step's time over its kernel's own, and whole solves to χ² ≤ 0.05."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fastsdot import kernels

from .cases import images
from .session import CRASHES, Session, reason

N, D, SMALL_N, SMALL_D = 60_000, 784, 300, 16
TOLERANCE = 0.05  # χ²
SMALL_SAMPLES = 6  # a target, enough to see that it runs
STEPS, SECONDS, SMALL_SECONDS = 16, 2.0, 0.2  # steps timed as one, since not every step does the same, and for how long
LATENT, WIDTH = 100, 512  # of the generator of the l1 solve


def targets(session: Session) -> Tensor:
    """The images given, [N, D] in [−1, 1], or ones that are like digits."""
    if session.images and not session.small:
        from fastsdot.data import load, pixels

        return pixels(load(session.images).images).flatten(1).to(session.device)
    n, d = (SMALL_N, SMALL_D) if session.small else (N, D)
    return images(n, d, torch.Generator().manual_seed(0)).to(session.device)


def described(session: Session) -> str:
    return session.images.name if session.images and not session.small else "drawn, like digits"


def step_share(session: Session, cost: str) -> dict[str, float]:
    """Seconds of a step with all that is around the kernel, of its lists alone, and their ratio."""
    from fastsdot import fitting, ots, stages
    from fastsdot.semidiscrete import SemiDiscreteOT

    ot = SemiDiscreteOT(targets(session), cost=cost, backend=session.named)
    sampler, batch = stages.Sampler(ot, ot.targets.shape[1]), ots.default_batch(ot)
    ot.ascent, _ = ots.begin(ot, sampler(batch))

    def steps() -> None:
        stage = stages.Stage(ot, fitting.PERPLEXITY)
        for _ in range(STEPS):
            stage.add(sampler(batch))

    with torch.no_grad():
        made = arguments_of("topk", steps)

        def kernel() -> None:
            for arguments in made:
                kernels.topk(*arguments)

        seconds = session.medians({"step": steps, "kernel": kernel}, SMALL_SECONDS if session.small else SECONDS)
        waits = waiting(session, steps)
    step, own = seconds["step"] / STEPS, seconds["kernel"] / STEPS
    found = {"batch": batch, "step": step, "kernel": own, "ratio": step / own, "samples/s": batch / step}
    return found | ({"host waits a step": waits / STEPS} if session.cuda else {})


@contextmanager
def around(reduction: str, call: Callable) -> Iterator[None]:
    """In the place of a reduction `call(reduction, *arguments)`."""
    function = getattr(kernels, reduction)
    setattr(kernels, reduction, partial(call, function))
    try:
        yield
    finally:
        setattr(kernels, reduction, function)


def arguments_of(reduction: str, run: Callable[[], None]) -> list[tuple]:
    """What a reduction is called with while `run` runs."""
    made = []

    def record(function: Callable, *arguments) -> object:
        made.append(arguments)
        return function(*arguments)

    with around(reduction, record):
        run()
    if not made:
        raise LookupError(f"a step made no call of {reduction}")
    return made


def waiting(session: Session, steps: Callable[[], None]) -> int:
    """How often torch waits for the device."""
    if not session.cuda:
        return 0
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in said)


class Spent:
    """The device's seconds in a reduction, told without waiting for it: by events of its stream where it has one."""

    def __init__(self, session: Session):
        self.cuda, self.marks = session.cuda, []

    def mark(self) -> object:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __call__(self, function: Callable, *arguments) -> object:
        before = self.mark()
        result = function(*arguments)
        self.marks.append((before, self.mark()))
        return result

    @property
    def seconds(self) -> float:
        if not self.cuda:
            return sum(after - before for before, after in self.marks)
        torch.cuda.synchronize()
        return sum(before.elapsed_time(after) for before, after in self.marks) / 1e3


class Timed:
    """A source that ends the solve when the part's time is up."""

    def __init__(self, session: Session, source: Callable[[int], Tensor]):
        self.session, self.source, self.samples = session, source, 0

    def __call__(self, n: int) -> Tensor:
        if self.session.left < 0:
            raise TimeoutError(f"not solved in this part's time, after {self.samples} samples")
        self.samples += n
        return self.source(n)


def solve(session: Session, cost: str, source: Callable[[int], Tensor]) -> dict[str, float | bool | str]:
    """One solve from its start, after two short ones that compile and ought to be alike bit for bit."""
    from fastsdot.semidiscrete import SemiDiscreteOT

    y = targets(session)

    def short() -> Tensor:
        torch.manual_seed(0)
        ot = SemiDiscreteOT(y, cost=cost, backend=session.named)
        ot.solve(source, tol=TOLERANCE, max_samples=len(y))
        return ot.potential

    repeats = torch.equal(short(), short())
    if session.cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    ot = SemiDiscreteOT(y, cost=cost, backend=session.named)
    most = SMALL_SAMPLES * len(y) if session.small else None
    timed, lists = Timed(session, source), Spent(session)
    try:
        with around("topk", lists):
            solution = ot.solve(timed, tol=TOLERANCE, max_samples=most)
    except TimeoutError as error:
        return {"absent": str(error), "samples": timed.samples, "seconds": time.perf_counter() - start}
    found = {
        "converged": solution.converged,
        "reason": str(solution.reason),
        "seconds": time.perf_counter() - start,
        "seconds in lists": lists.seconds,
        "chi2": solution.report.chi2,
        "chi2_error": solution.report.chi2_error,
        "samples": solution.samples,
        "repeats bit for bit": repeats,
        "backend": ot.backend,
    }
    return found | ({"peak_bytes": torch.cuda.max_memory_allocated()} if session.cuda else {})


def generator(session: Session) -> Callable[[int], Tensor]:
    """An untrained network's samples, as the first round of `train` sees them."""
    from fastsdot.networks import mlp
    from fastsdot.sources import Gaussian, Pushforward

    d = SMALL_D if session.small else D
    torch.manual_seed(0)
    network = mlp(LATENT, (d,), (WIDTH, WIDTH)).to(session.device)
    return Pushforward(network, Gaussian(LATENT, session.device))


def run(session: Session) -> dict:
    """{what: its figures}, or the reason why there are none."""
    d = SMALL_D if session.small else D

    def noise(n: int) -> Tensor:
        return torch.randn(n, d, device=session.device)

    parts: dict[str, Callable[[], dict]] = {
        "step, sqeuclidean": lambda: step_share(session, "sqeuclidean"),
        "solve, sqeuclidean from N(0, I)": lambda: solve(session, "sqeuclidean", noise),
        "step, l1": lambda: step_share(session, "l1"),
        "solve, l1 from a generator": lambda: solve(session, "l1", generator(session)),
        "solve, sqeuclidean from a generator": lambda: solve(session, "sqeuclidean", generator(session)),
        "solve, l1 from N(0, I)": lambda: solve(session, "l1", noise),
    }
    found: dict[str, dict | str] = {"targets": described(session)}
    for name, part in parts.items():
        if session.left < 0:
            found[name] = {"absent": "it came after this part's time"}
            continue
        try:
            found[name] = part()
        except ModuleNotFoundError as error:
            found[name] = {"absent": f"not installed: {error.name}"}
        except CRASHES as error:
            found[name] = {"absent": reason(error)}
            session.failures.append(f"solver: {name}: {reason(error)}")
        session.keep(found)
    return found
