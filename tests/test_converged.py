"""What `converged` claims, on random problems and every exit; and that the check notices a claim that is wrong."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of the wheel", allow_module_level=True)
sys.path.append(str(BENCHMARKS))

import converged  # noqa: E402

from fastsdot import NotConverged, Reason, SemiDiscreteOT  # noqa: E402

EXITS = tuple(converged.EXITS)


@pytest.mark.parametrize("seed", [*range(20), 1001])
def test_converged_is_right(seed):
    exits = (EXITS[seed % len(EXITS)],)
    for problem, name, _, wrong in converged.check(range(seed, seed + 1), most_targets=40, exits=exits):
        assert wrong is None, f"{problem.about}, {name}"


@pytest.fixture
def false_claim(monkeypatch):
    """A solve that claims what it has not reached, however it ends."""
    solve = SemiDiscreteOT.solve

    def claim(self, *arguments, **options):
        solution = solve(self, *arguments, **(options | {"max_samples": 40, "throw": False}))
        return replace(solution, converged=True, reason=Reason.CONVERGED)

    monkeypatch.setattr(SemiDiscreteOT, "solve", claim)


def test_a_false_claim_is_found(false_claim):
    found = [wrong for *_, wrong in converged.check(range(6), 300, ("tol 0.05",))]
    assert any(wrong and wrong.startswith("converged at 0.05, but χ²") for wrong in found)


def test_an_exception_that_is_swallowed_or_raised_without_need_is_found(monkeypatch):
    problem = converged.case(2, 60)
    solve = SemiDiscreteOT.solve

    def quiet(self, *arguments, **options):
        return replace(solve(self, *arguments, **(options | {"throw": False})), converged=False, reason=Reason.CALLBACK)

    monkeypatch.setattr(SemiDiscreteOT, "solve", quiet)
    assert converged.run(problem, "throw") == ("returned", "not converged, and nothing raised")

    def loud(self, *arguments, **options):
        raise NotConverged(solve(self, *arguments, **options))

    monkeypatch.setattr(SemiDiscreteOT, "solve", loud)
    assert converged.run(problem, "tol 0.2") == ("raised", "NotConverged without need")


def test_problems_repeat_and_differ():
    one, again, other = (converged.case(seed, 200) for seed in (7, 7, 8))
    assert one.about == again.about != other.about
    assert torch.equal(one.build().targets, again.build().targets)
    assert {converged.case(seed, 200).n for seed in range(60)} >= {1, 2}
    assert max(converged.case(seed, 200).n for seed in range(60)) > 100
