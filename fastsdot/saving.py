"""What a file keeps of a transport: all but the targets, of which it has a fingerprint."""

from typing import TYPE_CHECKING, Any

from fastsdot.errors import InvalidArgument
from fastsdot.stages import Ascent
from fastsdot.storage import fingerprint

if TYPE_CHECKING:
    from fastsdot.semidiscrete import SemiDiscreteOT


def state_of(ot: "SemiDiscreteOT") -> dict[str, Any]:
    return {
        "cost": ot.cost.name,
        "p": ot.cost.p if ot.cost.name == "lp" else None,
        "epsilon": ot.epsilon,
        "targets": fingerprint(ot.targets),
        "weights": ot.weights,
        "potential": ot.potential,
        "ascent": ot.ascent and ot.ascent.saved(),
    }


def options_of(state: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The constructor's options of a saved transport, over which those given go."""
    if "weights" in options:
        raise InvalidArgument("weights", "none, since the file has them", "some", "load, and use reweight")
    if state["cost"].startswith("callable") and "cost" not in options:
        raise InvalidArgument("cost", "the callable again", "none", "give cost= as when it was saved")
    return {name: state[name] for name in ("cost", "p", "epsilon")} | options


def restore(ot: "SemiDiscreteOT", state: dict[str, Any]) -> None:
    """Put a transport where `state_of` found one. Raises `InvalidArgument` when that had other targets."""
    if fingerprint(ot.targets) != state["targets"]:
        expected, received = f"those the file was saved for ({state['targets']})", fingerprint(ot.targets)
        raise InvalidArgument("targets", expected, received, "load those")
    ot.potential.copy_(state["potential"])
    ot.weights.copy_(state["weights"])
    ot.ascent = state["ascent"] and Ascent(**state["ascent"]).to(ot.device)
