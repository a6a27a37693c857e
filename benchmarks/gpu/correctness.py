"""Every backend and reduction against the float64 definition, by regret.

A result's error is written as a share of what float32 rounding explains (tests/compare.py); above 1 the check fails.
A backend that promises less than the best (precision "low") has bfloat16's rounding instead.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from compare import Truth, regret
from torch import Tensor

from fastsdot import kernels
from fastsdot.errors import BackendUnavailable
from fastsdot.kernels import BACKENDS, Form, Prepared, philox, prepare
from fastsdot.kernels.select import REDUCTIONS

from .cases import KINDS, SEED, Case, cases
from .session import CRASHES, Session, reason

NEAREST = 5
TEMPERATURE = 0.05  # ε as a share of the scores' standard deviation, or where that is more,
NOISE_ROUNDING = 2.0**-16  # of Gumbel numbers in float32, which reach 45, in units of ε
ROUNDINGS = 16  # in units of what float32 explains: below that, soft masses are rounding's
SLACK = {"low": 4.0 * 2**15}  # 2⁻⁸ in the place of float32's 2⁻²³
RATIONED, RATIONED_D = {"keops": 4}, 3  # cases of a backend that compiles each formula and dimension for seconds
BEYOND = 2**31 + 2**24  # coordinates of targets that 32 bits cannot count


@dataclass
class Problem:
    """A case's operands on the device, and its truth for each allowance."""

    x: Tensor
    y: Tensor
    bias: Tensor
    form: Form
    first: int  # the target before which a winner must be: later ones are copies
    truths: dict[float, Truth] = field(default_factory=dict)

    def truth(self, precision: str) -> Truth:
        slack = SLACK.get(precision, 4.0)
        if slack not in self.truths:
            self.truths[slack] = Truth(self.x, self.y, self.bias, self.form, slack)
        return self.truths[slack]

    @cached_property
    def epsilon(self) -> float:
        truth = self.truth("float32")
        score = truth.score[torch.isfinite(truth.score)]
        if score.numel() < 2:
            return 1.0
        return max(TEMPERATURE * float(score.std()), ROUNDINGS * float(truth.allowed.max()))

    @cached_property
    def k(self) -> int:
        return min(NEAREST, int(torch.isfinite(self.bias).sum()))


def check_argmin(problem: Problem, targets: Prepared, truth: Truth) -> Tensor:
    value, index = kernels.argmin(problem.x, targets, problem.bias)
    return torch.where(index < problem.first, truth.argmin(value, index), torch.inf)


def check_softmin(problem: Problem, targets: Prepared, truth: Truth) -> Tensor:
    return truth.softmin(kernels.softmin(problem.x, targets, problem.bias, problem.epsilon), problem.epsilon)


def check_soft_marginal(problem: Problem, targets: Prepared, truth: Truth) -> Tensor:
    weight = torch.linspace(-1, 2, len(problem.x), device=problem.x.device)
    value, mass = kernels.soft_marginal(problem.x, targets, problem.bias, problem.epsilon, weight)
    shares = truth.softmin(value, problem.epsilon), truth.mass(mass, problem.epsilon, weight)
    return torch.cat(shares) if len(problem.x) else mass.abs().double()  # no rows, no mass


def check_topk(problem: Problem, targets: Prepared, truth: Truth) -> Tensor:
    return truth.topk(*kernels.topk(problem.x, targets, problem.bias, problem.k))


def check_sample(problem: Problem, targets: Prepared, truth: Truth) -> Tensor:
    """A draw is the argmin of scores less Gumbel noise that seed, row and target decide: its regret among those."""
    b, n = truth.score.shape
    index = kernels.sample(problem.x, targets, problem.bias, problem.epsilon, SEED)
    noisy = truth.score - problem.epsilon * philox.gumbel(torch.tensor(SEED, device=problem.x.device), b, 0, n)
    return regret(noisy, index) / (truth.allowed + NOISE_ROUNDING * problem.epsilon)


CHECKS: dict[str, Callable[[Problem, Prepared, Truth], Tensor]] = {
    "argmin": check_argmin,
    "softmin": check_softmin,
    "soft_marginal": check_soft_marginal,
    "topk": check_topk,
    "sample": check_sample,
}


class Record:
    """Checks and rows that were made, the largest error, by backend, reduction and cost; and what was not run."""

    def __init__(self, session: Session):
        self.session = session
        self.worst: dict[tuple[str, str, str], dict] = {}
        self.refused: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    def add(self, case: Case, backend: str, reduction: str, share: Tensor) -> None:
        worst = float(share.max()) if share.numel() else 0.0
        new = {"backend": backend, "reduction": reduction, "cost": case.cost, "checks": 0, "rows": 0, "worst": 0.0}
        row = self.worst.setdefault((backend, reduction, case.cost), new)
        row["checks"] += 1
        row["rows"] += case.b
        if not worst <= row["worst"]:  # nor is NaN
            row |= {"worst": worst, "case": str(case)}
        if not worst <= 1:
            bad = int((~(share <= 1)).sum())
            self.fail(f"{backend} {reduction}, {case}: {bad} results off by up to {worst:.3g} × rounding")

    def fail(self, message: str) -> None:
        self.session.failures.append(f"correctness: {message}")

    def result(self) -> dict:
        rows = list(self.worst.values())
        total = {"checks": sum(row["checks"] for row in rows), "rows": sum(row["rows"] for row in rows)}
        return {"worst": rows, "refused": self.refused, "left_out": self.left_out} | total


def layout(record: Record, case: Case, backend: str, problem: Problem) -> Prepared | None:
    try:
        return prepare(problem.y, problem.form, backend)
    except BackendUnavailable as error:
        record.refused[f"{backend}, {case.cost}"] = str(error)
        return None


def check(record: Record, case: Case, problem: Problem, backend: str) -> None:
    """All reductions of a case by a backend."""
    try:
        targets = layout(record, case, backend, problem)
    except CRASHES as error:
        return record.fail(f"{backend} prepare, {case}: {reason(error)}")
    if targets is None:
        return None
    truth = problem.truth(BACKENDS[backend].precision)
    for reduction in REDUCTIONS:
        if reduction in targets.refusals:
            record.refused[f"{backend}, {case.cost}, {reduction}"] = str(targets.refusals[reduction])
        elif reduction not in CHECKS:
            record.left_out[reduction] = "the suite has no check for it"
        else:
            try:
                record.add(case, backend, reduction, CHECKS[reduction](problem, targets, truth))
            except CRASHES as error:
                record.fail(f"{backend} {reduction}, {case}: {reason(error)}")
    return None


def beyond(record: Record, d: int = 784) -> None:
    """Targets of more than 2³¹ coordinates, samples near the last of them, nearest where 32 bits would overflow."""
    session, n, b = record.session, BEYOND // d, 8
    needed = 5 * n * d * 4  # targets, a layout, and float64 copies
    if not session.cuda or session.small or session.free() < needed:
        record.left_out["N·D > 2³¹"] = f"it needs {needed / 2**30:.0f} GiB of a GPU"
        return
    g = torch.Generator(session.device).manual_seed(0)
    y = torch.randn(n, d, device=session.device, generator=g)
    x = y[-b:] + 0.1 * torch.randn(b, d, device=session.device, generator=g)
    for cost, form, bias in (
        ("sqeuclidean", Form("inner", scale=2.0), y.square().sum(1)),
        ("l1", Form("power"), y.new_zeros(n)),
    ):
        case, problem = Case(cost, "Gaussian", b, n, d), Problem(x, y, bias, form, n)
        for backend in session.backends:
            if backend not in RATIONED and session.left > 0:
                check(record, case, problem, backend)


def run(session: Session) -> dict:
    record, used = Record(session), dict.fromkeys(session.backends, 0)
    late = 0
    for case in cases(session.small):
        if session.left < 0:
            late += 1
            continue
        problem = Problem(*case.operands(session.device), case.period if case.kind == "duplicated" else case.n)
        for backend in session.backends:
            if backend in RATIONED and (used[backend] >= RATIONED[backend] or case.d != RATIONED_D or not case.b):
                record.left_out[backend] = f"at most {RATIONED[backend]} cases: it compiles each for seconds"
                continue
            check(record, case, problem, backend)
            used[backend] += 1
    if late:
        record.left_out["time"] = f"{late} cases came after this part's time"
    try:
        beyond(record)
    except CRASHES as error:
        record.fail(f"N·D > 2³¹: {reason(error)}")
    return record.result() | {"kinds": list(KINDS)}
