"""Launches beside the one that the library's table chooses: compiled, checked, then timed in turn.

The table is replaced while a candidate runs, and the whole reduction is checked: chosen targets against float64 by
their regret, and every result against the table's own, by rounding (another depth adds in another order). What is timed
is the kernel alone that the table is for, by the launch that was recorded.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from types import ModuleType

import torch
from compare import ROUNDING as FLOAT_ROUNDING
from problems import ROUNDING, Problem
from torch import Tensor

from fastsdot.costs import make_cost
from fastsdot.kernels import (
    BACKENDS,
    prepare,
    triton_argmin,
    triton_launch as library,
    triton_screen_inner,
    triton_screen_l1,
    triton_soft,
    triton_topk,
)
from fastsdot.kernels.triton_launch import Launch

from .invariance import EXACT, caller, same
from .launch_candidates import SMALL_CANDIDATES, TABLES, Shape, Sweep, candidates, problems
from .recorded import recorded
from .session import CRASHES, Session, reason

SECONDS = 0.5  # of timing for a problem; a small one is timed once
SLOW = 2.0  # times the table's choice: so much slower in one call, a candidate is not timed again
THREADS = 12  # that compile at once
KERNELS: dict[str, ModuleType] = {
    "tile_minima": triton_argmin,
    "part_minima": triton_topk,
    "row_sums": triton_soft,
    "column_sums": triton_soft,
    "tile_bounds": triton_screen_inner,
    "byte_bounds": triton_screen_l1,
}


def literal(launch: Launch) -> str:
    """As the tables write it."""
    return f"Launch({launch.rows}, {launch.columns}, {launch.depth}, {launch.warps}, {launch.stages})"


@contextmanager
def only(table: str, family: str, launch: Launch) -> Iterator[None]:
    """The table with that launch alone."""
    rows = TABLES[table]
    before, rows[family] = rows[family], {0: (launch,)}
    try:
        yield
    finally:
        rows[family] = before


class Contest:
    """One reduction on one problem, by every candidate."""

    def __init__(self, session: Session, sweep: Sweep, shape: Shape):
        self.session, self.sweep = session, sweep
        self.problem = Problem(sweep.cost, *shape, str(session.device))
        cost = make_cost(sweep.cost)
        embedding = cost.embed_targets(self.problem.y)
        self.form, self.column, self.x = embedding.form, embedding.column, cost.embed(self.problem.x, embedding.centre)
        self.y = embedding.y
        self.module = BACKENDS[sweep.backend].load()
        self.refusal = self.module.refusal(self.form, sweep.reduction, session.device, *shape[1:])
        if self.refusal is None:
            layout = prepare(embedding.y, self.form, sweep.backend).layouts[sweep.backend]
            self.run = caller(self.module, sweep.reduction, layout, self.column, self.form, shape[0])

    @cached_property
    def chosen(self) -> Launch:
        return library.choose(TABLES[self.sweep.table], self.form, self.session.device, *self.x.shape)

    @property
    def capability(self) -> int:
        return library.capability(self.session.device)

    @property
    def current(self) -> tuple[Launch, ...]:
        """The table's row for this device."""
        return library.available(TABLES[self.sweep.table], self.form, self.capability)

    @cached_property
    def expected(self) -> tuple[Tensor, ...]:
        return self.run(self.x)

    @cached_property
    def allowed(self) -> Tensor:
        """What rounding explains of a score, [B] (tests/compare.py); the values of a power form are its size."""
        size = self.expected[0].reshape(len(self.x), -1).amax(1).abs()
        if self.form.kind == "inner":
            longest = torch.linalg.vector_norm(self.y, dim=1).max()
            size = self.form.scale * self.x.norm(dim=1) * longest + self.column.abs().max()
        return 4 * FLOAT_ROUNDING * self.x.shape[1] ** 0.5 * size

    def by(self, launch: Launch) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            with only(self.sweep.table, library.family(self.form), launch):
                return self.run(self.x)

        return call

    def compile(self, launches: list[Launch]) -> None:
        """Fill Triton's cache by many threads; what does not compile says so again when it is checked."""

        def attempt(launch: Launch) -> None:
            with suppress(CRASHES):
                self.run(self.x, launch=launch)

        self.run(self.x)  # loads the kernels that all candidates share, which two threads must not do at once
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(attempt, launches))

    def attempt(self, launch: Launch) -> Callable[[], object] | str:
        """The kernel's own launch, or why it is not timed: it does not compile, does not fit, spills, or is wrong."""
        try:
            with recorded((KERNELS[self.sweep.kernel], self.sweep.kernel)) as launched:
                result = self.by(launch)()
            if launched[0].spills:
                return f"spills {launched[0].spills} registers"
            if self.session.cuda:
                torch.cuda.synchronize()
        except CRASHES as error:
            return reason(error)[:160]
        if wrong := self.wrong(result):
            self.session.failures.append(f"variants: {self.sweep}, {self.problem}: {literal(launch)}: {wrong}")
            return wrong
        return launched[0].again()

    def wrong(self, result: tuple[Tensor, ...]) -> str | None:
        if self.sweep.reduction in EXACT:
            error = (result[0] - self.expected[0]).abs().reshape(len(self.x), -1).amax(1)
            right = bool((error <= self.allowed).all())
        else:
            right = same(self.sweep.reduction, self.expected, result)
        if not right:
            return "wrong: it does not give the table's result"
        if self.sweep.reduction == "argmin" and not (regret := self.problem.regret(result[1])) <= ROUNDING:
            return f"wrong: a chosen target is worse than the best by {regret:.3g} of its cost's size"
        return None

    def results(self, launches: list[Launch]) -> dict[str, dict]:
        """{launch: seconds and ratio to the table's choice, or the reason why there are none}."""
        attempts = {literal(launch): self.attempt(launch) for launch in launches}
        runs = {name: run for name, run in attempts.items() if not isinstance(run, str)}
        once = {name: self.session.clock(run) for name, run in runs.items()}
        table = literal(self.chosen)
        slowest = 0.0 if self.session.small else SLOW * once.get(table, torch.inf)
        seconds = once | self.session.medians({name: runs[name] for name in runs if once[name] <= slowest}, SECONDS)
        found = {name: {"absent": why} for name, why in attempts.items() if isinstance(why, str)}
        base = seconds.get(table)
        return found | {name: {"seconds": s} | ({"ratio": s / base} if base else {}) for name, s in seconds.items()}


def run(session: Session, _: dict) -> Iterator[tuple[str, object]]:
    """Rows of all problems so far, and those that were left out."""
    rows, left_out, compiled = [], {}, set()
    for sweep, shape in problems(session.small):
        b, n, d = shape
        name = f"{sweep}, B={b}, N={n}, D={d}"
        if session.left < 0:
            left_out[name] = "it came after this part's time"
            continue
        try:
            contest = Contest(session, sweep, shape)
            if contest.refusal is not None:
                left_out[str(sweep)] = contest.refusal
                continue
            launches = candidates(sweep, contest.form, contest.chosen)
            if session.small:
                launches = launches[:SMALL_CANDIDATES]
            elif (sweep, d) not in compiled:
                contest.compile(launches)
                compiled.add((sweep, d))
            row = {"name": name, **vars(sweep), "family": library.family(contest.form), "b": b, "n": n, "d": d}
            row |= {"capability": contest.capability, "chosen": literal(contest.chosen)}
            row["current"] = [literal(launch) for launch in contest.current]
            rows.append(row | {"results": contest.results(launches)})
        except CRASHES as error:
            session.failures.append(f"variants: {name}: {reason(error)}")
        yield "rows", rows
    yield "left_out", left_out
