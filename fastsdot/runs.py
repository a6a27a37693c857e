"""Run folders: the settings that a run was started with, kept in run.json so that it can be continued and looked at."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsdot import checkpoint, data as datasets, networks
from fastsdot.alternate import CHECKPOINT, REPORT
from fastsdot.costs import make_cost
from fastsdot.errors import InvalidArgument, RunError
from fastsdot.semidiscrete import SemiDiscreteOT
from fastsdot.stopping import as_rule
from fastsdot.storage import fingerprint

SETTINGS = "run.json"


LEAST = {"targets": 1, "seed": 0, "latent_dim": 1, "rounds": 0, "steps": 1, "batch_size": 1}


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; `targets` of the data's samples, chosen by `seed`, or all for None.

    Raises `InvalidArgument` for numbers out of range.
    """

    data: str
    targets: int | None = None
    cost: str = "l1"
    p: float | None = None
    seed: int = 0
    latent_dim: int = 100
    hidden: tuple[int, ...] = (512, 512, 512)
    rounds: int = 20
    tol: float = 0.05
    steps: int = 150
    batch_size: int = 512
    shape: tuple[int, ...] = ()  # of one target, once the data is read

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidArgument(name, f"at least {least}", str(value), "raise it")
        as_rule(self.tol)

    def read_targets(self) -> Tensor:
        """The targets [N, *shape], float32 in [−1, 1].

        Raises `DataError` for unreadable data, `InvalidArgument` for more targets than it has.
        """
        images = datasets.pixels(datasets.load(self.data).images)
        if self.targets is None:
            return images
        if self.targets > len(images):
            raise InvalidArgument("targets", f"at most {len(images)}", str(self.targets), "leave it out to take all")
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))[: self.targets]
        return images[chosen.sort().values]

    def make_generator(self) -> nn.Module:
        """The network that the run starts from; the same for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return networks.mlp(self.latent_dim, self.shape, self.hidden)


FIXED = ("data", "targets", "cost", "p", "seed", "latent_dim", "hidden")  # what makes a run this run and no other


def start(out: Path, given: Mapping[str, Any]) -> Settings:
    """The settings of a new run in `out`.

    Raises `RunError` when the folder holds a run or cannot be one, `InvalidArgument` for settings that cannot be used.
    A run that has no checkpoint yet has nothing to lose, and may be started again.
    """
    if (out / CHECKPOINT).exists():
        raise RunError(
            "out",
            "a new or empty folder",
            f"{str(out)!r}, which holds a run",
            "continue it with --resume, or name another",
        )
    if out.exists() and not out.is_dir():
        raise RunError("out", "a folder", f"{str(out)!r}, which is a file", "name another")
    if "data" not in given:
        raise InvalidArgument("data", datasets.EXPECTED, "nothing", "give --data digits, say")
    settings = Settings(**given)
    make_cost(settings.cost, settings.p)
    if settings.data == datasets.DIGITS:
        return settings
    return replace(settings, data=os.path.abspath(os.path.expanduser(settings.data)))


def resume(out: Path, given: Mapping[str, Any]) -> Settings:
    """The settings of the run in `out`, with what is given now in place of what may change.

    Raises `RunError` when there is no run or when it is another one.
    """
    stored = read(out)
    asked = replace(stored, **given)
    if "data" in given and given["data"] != datasets.DIGITS:
        asked = replace(asked, data=os.path.abspath(os.path.expanduser(given["data"])))
    for name in FIXED:
        if getattr(asked, name) != getattr(stored, name):
            remedy = "leave it out to continue this run, or start another in another folder"
            raise RunError(name, f"{getattr(stored, name)!r}, as in {str(out)!r}", repr(getattr(asked, name)), remedy)
    return asked


def read(out: Path) -> Settings:
    """The settings of the run in `out`.

    Raises `RunError` when there is none.
    """
    try:
        values = json.loads((out / SETTINGS).read_text())
        known = {field.name: values[field.name] for field in fields(Settings)}
        return Settings(**known | {name: tuple(known[name]) for name in ("hidden", "shape")})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            "run",
            f"a run folder with its {SETTINGS}",
            f"{str(out)!r} ({error})",
            "check the path, or start with fastsdot train",
        ) from error


def write(out: Path, settings: Settings) -> None:
    """Make the folder and keep the settings in it, replacing the file whole."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        new = out / f"{SETTINGS}.new"
        new.write_text(json.dumps(asdict(settings), indent=2) + "\n")
        new.replace(out / SETTINGS)
    except OSError as error:
        raise RunError("out", "a folder that can be written", f"{str(out)!r} ({error})", "name another") from error


def history(out: Path) -> list[dict[str, Any]]:
    """The record of every finished round of the run in `out`; empty when none is."""
    try:
        return json.loads((out / REPORT).read_text())["history"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError("run", f"a readable {REPORT}", f"{str(out)!r} ({error})", "resume the run") from error


def open_generator(out: Path, settings: Settings, device: torch.device) -> nn.Module:
    """The generator of the run's last finished round.

    Raises `RunError` when no round is finished.
    """
    generator = settings.make_generator().to(device)
    generator.load_state_dict(checkpoint.read(out / CHECKPOINT, device)["generator"])
    return generator.requires_grad_(False)


def open_transport(out: Path, settings: Settings, device: torch.device) -> SemiDiscreteOT:
    """The transport of the run's last finished round.

    Raises `RunError` when no round is finished, `DataError` when the data cannot be read any more.
    """
    state = checkpoint.read(out / CHECKPOINT, device)
    ot = SemiDiscreteOT(settings.read_targets().to(device), cost=settings.cost, p=settings.p)
    if state["about"]["targets"] != fingerprint(ot.targets):
        raise RunError(
            "data", "what the run was trained on", f"{settings.data!r}, which has changed", "restore the data"
        )
    ot.potential.copy_(state["potential"])
    return ot
