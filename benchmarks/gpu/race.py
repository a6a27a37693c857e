"""Who is first at χ² ≤ 0.1, and at 0.05: fastsdot, POT, OTT-JAX, Adam and averaged SGD, from N(0, I).

By benchmarks/races.py. Everyone computes on the session's device. The clock stands still while a potential is judged
on fresh samples.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from .session import CRASHES, Session, reason
from .solver import described, targets

if TYPE_CHECKING:
    from solvers import Contestant, Setting

BOUNDS = (0.1, 0.05)  # χ²; everyone runs to the last
OURS, THEIRS = 0.25, 0.6  # of the time that is left: for our curve, and for the rivals', the rest being for judging
SLOW = ("OTT-JAX", "POT")  # to be imported, and to compile: left out of tiny races
SMALL_CAPS, SMALL_FRESH = (0.2, 0.05), 2000  # seconds of ours and of rivals, and samples that judge, on tiny problems
ANEW = 3  # times the last solve's time that solves with growing numbers of samples take


@dataclass(frozen=True)
class FromNoise:
    """Stands for a `suite_problems.Problem`: N(0, I) onto targets that are at hand."""

    y: Tensor
    name: str
    cost: str = "sqeuclidean"
    weighting: str = "equal"
    p: None = None

    def targets(self, files: None) -> Tensor:
        return self.y

    def weights(self) -> None:
        return None

    def source(self, files: None) -> int:
        return self.y.shape[1]


def tries(contestant: "Contestant", setting: "Setting") -> int:
    """How many caps it takes."""
    return len(contestant.rates(setting)) if contestant.rates else ANEW


def few(contestant: "Contestant") -> "Contestant":
    """With its first rate alone."""
    rates = contestant.rates
    return contestant if rates is None else replace(contestant, rates=lambda setting: rates(setting)[:1])


def run(session: Session) -> dict:
    """A race's record as `races.finished` makes it, with the seconds to each bound, or the reason why there is none."""
    try:
        import races
        import solvers
    except ModuleNotFoundError as error:
        return {"absent": f"not installed: {error.name}"}
    y = targets(session)
    problem = FromNoise(y, f"{described(session)}, {len(y)} × {y.shape[1]}")
    setting = solvers.Setting(problem, None, device=session.device, backend=session.named)
    setting.fresh = SMALL_FRESH if session.small else None
    cap = SMALL_CAPS[0] if session.small else OURS * session.left
    ours = races.follow(setting, solvers.OURS.run(setting, cap), cap, races.OURS_FOR * setting.n, BOUNDS[-1])
    found = {solvers.OURS.name: {"curve": ours, "rate": None, "tried": 1}}
    reached = races.time_to(ours, setting.measure, BOUNDS[-1])
    waiting = [*solvers.LARGE, *solvers.RIVALS]
    if session.small:
        waiting = [few(contestant) for contestant in waiting if contestant.name not in SLOW]
    session.keep(record(setting, found))
    while waiting:
        contestant = waiting.pop(0)
        share = THEIRS * session.left / sum(tries(other, setting) for other in (contestant, *waiting))
        if share <= 0:
            found[contestant.name] = {"absent": "it came after this part's time", "curve": []}
            continue
        cap = min(share, races.HEADSTART * reached if reached else share, SMALL_CAPS[1] if session.small else share)
        try:
            found[contestant.name] = races.entered(setting, contestant, cap, BOUNDS[-1]) | {"cap": cap}
        except CRASHES as error:
            found[contestant.name] = {"absent": reason(error), "curve": []}
            session.free()
        session.keep(record(setting, found))
    return record(setting, found)


def record(setting: "Setting", found: dict[str, dict]) -> dict:
    import races

    for entry in found.values():
        entry["times"] = {str(bound): races.time_to(entry["curve"], setting.measure, bound) for bound in BOUNDS}
    return races.finished(setting, found, max(entry.get("cap", 0.0) for entry in found.values()))
