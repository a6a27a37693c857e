"""Every reduction and backend on a grid of problems, beside the peers, over the ceilings of the same machine.

An argmin is checked before it is timed (problems.py): one of ours that is worse than float32 rounding is a failure; a
peer's regret is written beside its time. What is not timed has its reason in the time's place.
"""

from collections.abc import Callable

import torch
from contestants import OURS, AbsentError, Run, fastsdot
from problems import ROUNDING, Problem

from fastsdot.costs import LOW_DIMENSION, make_cost
from fastsdot.kernels import BACKENDS, Form
from fastsdot.kernels.select import select

from .peers import PEERS
from .rows import Row, rows
from .session import CRASHES, Session, reason

ROW_SECONDS = 0.6  # of timing for a row of the table
CALL_SECONDS = 1.5  # a contestant that would take longer, at its best rate so far, is left out
LAID_OUT = 512  # targets whose layout says how many bytes a coordinate takes
PASSES = {"argmin": 1, "softmin": 1, "soft_marginal": 2, "topk": 1, "sample": 1}  # over all pairs
LAYOUTS, PEER_LAYOUTS = 6, 2  # times the targets' bytes that a row may need: float64 squares, layouts, peers' casts
OUTPUT_BYTES = {"argmin": 12, "softmin": 4, "soft_marginal": 4, "topk": 96, "sample": 8}  # a row of x


def ours(session: Session, row: Row) -> tuple[dict[str, Callable[[Problem], Run]], str]:
    """fastsdot as it chooses and its other backends by name, and the name of its choice."""
    form = form_of(row)
    chosen = select(form, row.reduction, session.device, row.n, row.d, None)
    others = [name for name in session.backends if name != chosen]

    def by_name(problem: Problem, backend: str) -> Run:
        if BACKENDS[backend].requires == "triton" and not session.cuda:
            raise AbsentError("interpreted without a GPU, which is not worth a time")
        return fastsdot(problem, backend, row.reduction)

    named = {f"{OURS}[{name}]": lambda problem, name=name: by_name(problem, name) for name in others}
    return {OURS: lambda problem: fastsdot(problem, None, row.reduction), **named}, chosen


def form_of(row: Row) -> Form:
    return make_cost(row.cost).embed_targets(torch.zeros(1, row.d)).form


def stored_bytes(name: str, row: Row, chosen: str, device: torch.device) -> float:
    """Of a coordinate in the smallest layout that holds all targets; 4 for a peer, who reads float32."""
    backend = chosen if name == OURS else name.removeprefix(f"{OURS}[").removesuffix("]")
    if backend not in BACKENDS:
        return 4.0
    few = torch.zeros(LAID_OUT, row.d, device=device)
    layout = BACKENDS[backend].load().prepare(few, form_of(row))
    return min(t.nbytes for t in layout if t.numel() >= few.numel()) / few.numel()


class Contest:
    """One row: who runs, who does not and why, and what they took."""

    def __init__(self, session: Session, row: Row, rates: dict[tuple[str, str, str], float]):
        self.session, self.row, self.rates = session, row, rates
        self.problem = Problem(row.cost, row.b, row.n, row.d, str(session.device))
        self.runs: dict[str, Run] = {}
        self.results: dict[str, dict] = {}

    def enter(self, name: str, make: Callable[[Problem], Run]) -> None:
        """Prepare, check and warm one contestant, unless its best rate so far says that it would take too long."""
        rate = self.rates.get((name, self.row.cost, self.row.reduction))
        seconds = self.row.coordinates / rate if rate else 0.0
        if seconds > CALL_SECONDS:
            self.results[name] = {"absent": f"left out: {seconds:.1f} s a call at its best rate so far"}
            return
        try:
            run = make(self.problem)
            self.results[name] = self.checked(name, run)
            self.results[name] |= self.memory(run)
            self.runs[name] = run
        except AbsentError as error:
            self.results[name] = {"absent": str(error)}
        except (torch.OutOfMemoryError, ImportError) as error:
            self.results[name] = {"absent": reason(error)}
            self.session.free()  # what the failed call held
        except CRASHES as error:
            self.results[name] = {"absent": reason(error)}
            if name.startswith(OURS):
                self.fail(f"{name}: {reason(error)}")

    def checked(self, name: str, run: Run) -> dict:
        result = run()
        if self.row.reduction != "argmin":
            return {}
        regret = self.problem.regret(result)
        backend = name.removeprefix(f"{OURS}[").removesuffix("]")
        low = backend in BACKENDS and BACKENDS[backend].precision == "low"
        if name.startswith(OURS) and not low and not regret <= ROUNDING:
            self.fail(f"{name}: a chosen target is worse than the best by {regret:.3g} of its cost's size")
        return {"regret": regret}

    def memory(self, run: Run) -> dict:
        """The most that a call holds beside targets and results, in bytes and as a share of B·N float32."""
        if not self.session.cuda:
            return {}
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        outputs = OUTPUT_BYTES[self.row.reduction] * self.row.b
        outputs += 4 * self.row.n if self.row.reduction == "soft_marginal" else 0
        extra = max(0, torch.cuda.max_memory_allocated() - before - outputs)
        return {"extra_bytes": extra, "extra_share": extra / (4 * self.row.b * self.row.n)}

    def fail(self, message: str) -> None:
        self.session.failures.append(f"timings: {self.row}: {message}")

    def time(self) -> None:
        for name, seconds in self.session.medians(self.runs, ROW_SECONDS).items():
            self.results[name]["seconds"] = seconds
            key, rate = (name, self.row.cost, self.row.reduction), self.row.coordinates / seconds
            self.rates[key] = max(self.rates.get(key, 0.0), rate)


def achieved(row: Row, seconds: float, stored: float, ceilings: dict[str, float | str]) -> dict[str, float]:
    """Rates, and their share of what the machine was measured to reach.

    flops = 2·B·N·D a pass for products, two additions a coordinate otherwise; bytes = one read of the targets a pass,
    as they are stored for it.
    """
    passes = PASSES[row.reduction]
    rates = {
        "coordinates/s": passes * row.coordinates / seconds,
        "flops": 2 * passes * row.coordinates / seconds,
        "bytes/s": stored * passes * row.n * row.d / seconds,
    }
    limits = {"copy": rates["bytes/s"]}
    product = row.cost == "sqeuclidean" and row.d > LOW_DIMENSION
    limits |= {"bf16": rates["flops"], "tf32": rates["flops"]} if product else {"fadd": rates["flops"]}
    return rates | {f"of {name}": rate / ceilings[name] for name, rate in limits.items() if _number(ceilings, name)}


def _number(ceilings: dict[str, float | str], name: str) -> bool:
    return isinstance(ceilings.get(name), float)


def contest(session: Session, row: Row, rates: dict, ceilings: dict) -> dict:
    held = Contest(session, row, rates)
    mine, chosen = ours(session, row)
    for name, make in (mine | (PEERS if row.peers else {})).items():
        held.enter(name, make)
    held.time()
    for name, result in held.results.items():
        if "seconds" in result:
            stored = stored_bytes(name, row, chosen, session.device)
            result |= achieved(row, result["seconds"], stored, ceilings) | {"stored_bytes": stored}
    return {"row": str(row), **vars(row), "chosen": chosen, "results": held.results}


def run(session: Session, ceilings: dict[str, float | str]) -> dict:
    rates: dict[tuple[str, str, str], float] = {}
    table, left_out = [], {}
    for row in rows(session.small):
        needed = (LAYOUTS + row.peers * PEER_LAYOUTS) * row.n * row.d * 4
        if session.left < 0:
            left_out[str(row)] = "it came after this part's time"
        elif needed > session.free():
            left_out[str(row)] = f"it needs about {needed / 2**30:.0f} GiB"
        else:
            try:
                table.append(contest(session, row, rates, ceilings))
            except CRASHES as error:
                session.failures.append(f"timings: {row}: {reason(error)}")
    return {"rows": table, "left_out": left_out}
