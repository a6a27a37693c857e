"""train: the alternation of OTS and FIT (Chen et al. 2019, algorithm 3).

Round 0 solves for the potential of the generator as it is given. Each later round fits the generator to the
transported samples, then moves the potential with it, so that at the end of a round both belong together and
W(g#μ, data) is known. A checkpoint of that moment, random state included, makes a resumed run equal to one that was
never stopped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastsdot import checkpoint, theory
from fastsdot.costs import Pairing
from fastsdot.errors import InvalidArgument, RunError, require_number
from fastsdot.fit import LEARNING_RATE, Fitted, Loss, fit, frozen
from fastsdot.ots import Solution
from fastsdot.progress import Progress
from fastsdot.ranks import apart
from fastsdot.report import Report
from fastsdot.semidiscrete import SemiDiscreteOT
from fastsdot.sources import EveryRank, Pushforward, Source, SourceLike, as_source, draw, dtype_of, in_shards
from fastsdot.stages import Ascent
from fastsdot.stopping import Chi2, Rule, as_rule, asks
from fastsdot.storage import fingerprint

CHECKPOINT, REPORT = "checkpoint.safetensors", "report.json"


class Stop(StrEnum):
    """Why training ended."""

    ROUNDS = "all rounds are done"
    SECONDS = "the time is up"
    CALLBACK = "the callback asked to stop"
    REACHED = "the transport cost is within the precision asked for"
    TRANSPORT = "OTS cannot reach the precision that provable progress needs"
    PROGRESS = "FIT cannot follow the map closely enough for provable progress"


@dataclass(frozen=True)
class State:
    """What a callback sees after each round: its record, as in `Trained`, those so far, and the pieces as they are."""

    round: int
    record: dict[str, Any]
    history: list[dict[str, Any]]
    generator: nn.Module
    ot: SemiDiscreteOT
    latent: Source
    report: Report


@dataclass(frozen=True)
class Trained:
    """The outcome of `train`: the generator (trained in place), the transport that belongs to it, a record per round.

    A record has round, w (the semi-dual value, a lower bound of the transport cost), w_error, primal, chi2,
    chi2_error, converged, fit_loss, samples, seconds.
    """

    generator: nn.Module
    ot: SemiDiscreteOT
    history: list[dict[str, Any]]
    stop: Stop
    report: Report
    seconds: float


class Run:
    """One alternation: the pieces that change together and are saved together."""

    def __init__(
        self,
        generator: nn.Module,
        ot: SemiDiscreteOT,
        latent: Source,
        optimizer: torch.optim.Optimizer,
        rule: Rule,
        solve_options: dict[str, Any],
        fit_options: dict[str, Any],
        precision: theory.Precision | None,
        progress: Callable[[Progress], None] | None,
    ):
        self.generator, self.ot, self.optimizer = generator, ot, optimizer
        self.source = Pushforward(generator, latent, fit_options["perturbation"])
        self.rule, self.solve_options, self.fit_options = rule, solve_options, fit_options
        self.precision, self.progress = precision, progress
        self.history: list[dict[str, Any]] = []
        self.report: Report | None = None
        self.seconds = 0.0

    def _progress(self) -> Callable[[Progress], None] | None:
        show, number = self.progress, len(self.history)
        w = {key: self.history[-1][key] for key in ("w", "chi2")} if self.history else {}
        return show and (lambda event: show(replace(event, round=number, values=w | event.values)))

    def solve(self) -> tuple[Solution, bool]:
        """OTS; with a precision, again at half the tolerance until (5) and (6) hold. The flag says that they do."""
        tries = self.precision.tries if self.precision else 1
        rule, source, drawn = self.rule, EveryRank(self.source) if self.ot.ranks else self.source, 0
        for _ in range(tries):
            solution = self.ot.solve(source, tol=rule, progress=self._progress(), **self.solve_options)
            drawn += solution.samples
            solution = replace(solution, samples=drawn)
            if self.precision is None or self.precision.transport_holds(self.ot, solution.report):
                return solution, True
            rule = Chi2(rule.tol / 2) if isinstance(rule, Chi2) else rule
        return solution, False

    def fit(self) -> tuple[Fitted, bool]:
        """FIT; with a precision, further steps towards the same T∘g until (7) holds. The flag says that it does."""
        options = self.fit_options | {"optimizer": self.optimizer, "progress": self._progress()}
        latent = self.source.latent
        if self.precision is None:
            return fit(self.generator, self.ot, latent, **options), True
        reference = frozen(self.source)
        for _ in range(self.precision.tries):
            fitted = fit(self.generator, self.ot, latent, reference=reference, **options)
            before, after = self._followed(reference)
            if (after / before) ** theory.exponent(self.ot.cost) <= self.precision.fit_ratio:
                return fitted, True
        return fitted, False

    @torch.no_grad()
    def _followed(self, reference: Pushforward, samples: int = 8192, batch: int = 1024) -> tuple[float, float]:
        """C(T∘g, g) and C(T∘g, g') on fresh latents, of all ranks."""
        found = torch.zeros(2, dtype=torch.float64, device=self.ot.device)
        for _ in range(samples // batch):
            z = reference.latent(batch)
            x = reference.at(z).float()
            y = apart(self.ot.ranks, x, self.ot.transport)
            found += torch.stack(
                [self.ot.cost.fit_loss(u.float().flatten(1), y.flatten(1)) for u in (x, self.generator(z))]
            )
        before, after = (found if self.ot.ranks is None else self.ot.ranks.sum(found)) / (samples // batch)
        return float(before), float(after)

    def round(self) -> Stop | None:
        """One round; returns the reason to stop that the theory gives, if any."""
        started, stop, fitted = time.perf_counter(), None, None
        if self.history:
            fitted, followed = self.fit()
            self.ot.ascent.candidates = None  # they are samples of the generator as it was
            stop = None if followed else Stop.PROGRESS
        solution, holds = self.solve()
        self.report = report = solution.report
        self.seconds += time.perf_counter() - started
        self.history.append(
            {
                "round": len(self.history),
                "w": report.dual,
                "w_error": report.dual_error,
                "primal": report.primal,
                "chi2": report.chi2,
                "chi2_error": report.chi2_error,
                "converged": solution.converged,
                "fit_loss": fitted and fitted.loss,
                "samples": solution.samples,
                "seconds": self.seconds,
            }
        )
        if self.precision and max(report.dual, 0.0) ** theory.exponent(self.ot.cost) <= self.precision.fit:
            return Stop.REACHED
        return stop or (None if holds else Stop.TRANSPORT)

    def save(self, path: Path, about: dict[str, Any]) -> None:
        ascent = self.ot.ascent
        state = {
            "about": about,
            "history": self.history,
            "seconds": self.seconds,
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "potential": self.ot.potential,
            "ascent": ascent.saved() if ascent else None,
            "report": vars(self.report),
            "random": random_state(self.ot.device),
        }
        if self.ot.ranks:
            state["random"] = self.ot.ranks.gather_objects(state["random"])
            self.ot.ranks.alone(lambda: checkpoint.write(path, state))
        else:
            checkpoint.write(path, state)

    def restore(self, state: dict[str, Any]) -> None:
        self.history, self.seconds = state["history"], state["seconds"]
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ot.potential.copy_(state["potential"])
        self.ot.ascent = Ascent(**state["ascent"]).to(self.ot.device)
        self.report = Report(**state["report"])
        random = state["random"]
        set_random_state(random[self.ot.ranks.rank] if self.ot.ranks else random, self.ot.device)

    def agree(self, stop: bool) -> bool:
        """The answer of rank 0, whose clock and callback decide."""
        return stop if self.ot.ranks is None else self.ot.ranks.agree(stop)

    @property
    def writes(self) -> bool:
        """Whether this process writes the files."""
        return self.ot.ranks is None or self.ot.ranks.rank == 0


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the global generators that sources may draw from: torch's, the device's and NumPy's."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    numpy = [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached]
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": numpy}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"].cpu())
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def train(
    generator: nn.Module,
    targets: Tensor | np.ndarray,
    latent: SourceLike,
    *,
    cost: str | Pairing = "l1",
    p: float | None = None,
    weights: Tensor | np.ndarray | None = None,
    rounds: int = 20,
    tol: float | Rule = 0.05,
    max_samples: int | None = None,
    steps: int = 150,
    batch_size: int = 512,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss | None = None,
    replay: int | None = None,
    perturbation: float = 0.0,
    seconds: float | None = None,
    precision: theory.Precision | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    backend: str | None = None,
    memory: int | None = None,
    group: "torch.distributed.ProcessGroup | None" = None,
    shards: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    callback: Callable[[State], bool | None] | None = None,
) -> Trained:
    """The whole method: alternate OTS and FIT, so that the transport cost from g#μ to the targets falls every round.

    Parameters
    ----------
    generator, latent
        g and its source z; an int latent is the width of N(0, I), in the generator's dtype. The generator is trained
        in place.
    targets, cost, p, weights, backend, memory, shards
        As for `SemiDiscreteOT`.
    rounds, seconds, precision
        When to stop: after so many rounds, before a round that would start after so many seconds, or by
        `fastsdot.theory.Precision`.
    tol, max_samples
        As for `SemiDiscreteOT.solve`, in every round.
    steps, batch_size, optimizer, loss, replay, perturbation
        As for `fit`; one optimizer lives through all rounds.
    out, resume
        A folder for `checkpoint.safetensors` and `report.json`, written after every round. With resume, training
        goes on from there, and on the CPU ends with the bits of a run that was never stopped, provided that `latent`
        draws from torch's or NumPy's global generators.
    group
        Ranks that share the work, for a generator in DistributedDataParallel, or in FSDP with replay= and no out=.
        All call alike, seeded differently: each draws its share of OTS and its own batches of FIT. Rank 0 writes to
        `out`, a folder that all of them see, and its clock and callback decide when to stop.
    progress, callback
        See a `Progress` as it goes on, and a `State` after every round; a callback stops training by True.

    Raises `RunError` when `out` holds another run, `InvalidArgument` for a generator that the group's ranks would train
    apart, and what `solve` and `fit` raise; the checkpoint of the last whole round stays.
    Source: Chen et al. 2019, algorithm 3.
    """
    require_number("rounds", rounds, above=-1, whole=True)
    require_number("steps", steps, above=0, whole=True)
    require_number("batch_size", batch_size, above=0, whole=True)
    require_number("replay", 1 if replay is None else replay, above=0, whole=True)
    require_number("perturbation", perturbation, least=0)
    require_number("seconds", 1 if seconds is None else seconds, least=0)
    if resume and out is None:
        raise InvalidArgument("resume", "a folder to resume from", "out=None", "give out= as well")
    device = next((q.device for q in generator.parameters()), torch.device("cpu"))
    if group is not None:
        require_together(generator, replay, out)
    placed = {"device": device, "memory": memory, "group": group, "shards": shards}
    ot = SemiDiscreteOT(targets, cost=cost, p=p, weights=weights, backend=backend, **placed)
    source = as_source(latent, "latent", device, dtype=dtype_of(generator))
    if precision is not None:
        theory.exponent(ot.cost)
    run = Run(
        generator,
        ot,
        source,
        optimizer or torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE),
        as_rule(tol),
        {"max_samples": max_samples},
        {"steps": steps, "batch_size": batch_size, "loss": loss, "replay": replay, "perturbation": perturbation},
        precision,
        progress,
    )
    about = {
        "targets": fingerprint(ot.targets),
        "weights": fingerprint(ot.weights),
        "cost": ot.cost.name,
        "p": ot.cost.p,
        "generator": {name: list(value.shape) for name, value in generator.state_dict().items()},
        "optimizer": type(run.optimizer).__name__,
    }
    if ot.ranks:
        about["ranks"] = ot.ranks.size
    folder = open_folder(out, resume, about, run) if out is not None else None
    if not run.history:
        draw(run.source, 2, ot.shape, ot.device)
    stop = None
    while stop is None:
        if len(run.history) > rounds:
            stop = Stop.ROUNDS
        elif seconds is not None and run.history and run.agree(run.seconds >= seconds):
            stop = Stop.SECONDS
        else:
            stop = run.round()
            if folder is not None:
                run.save(folder / CHECKPOINT, about)
                write_report(folder, run, stop)
            state = State(len(run.history) - 1, run.history[-1], run.history, generator, ot, source, run.report)
            if callback and run.agree(asks(callback(state))):
                stop = stop or Stop.CALLBACK
    if folder is not None:
        write_report(folder, run, stop)
    return Trained(generator, ot, run.history, stop, run.report, run.seconds)


def require_together(generator: nn.Module, replay: int | None, out: str | Path | None) -> None:
    """Raise `InvalidArgument` for a generator that ranks would train apart, or that cannot be copied or saved whole."""
    sharded = in_shards(generator)
    if not sharded and not isinstance(generator, nn.parallel.DistributedDataParallel):
        remedy = "wrap it in torch.nn.parallel.DistributedDataParallel"
        raise InvalidArgument("generator", "one that the ranks train together", type(generator).__name__, remedy)
    if sharded and replay is None:
        raise InvalidArgument("replay", "a number for a generator in shards, which FIT cannot copy", "None", "give 10")
    if sharded and out is not None:
        remedy = "save it by callback=, with torch.distributed.checkpoint"
        raise InvalidArgument("out", "None for a generator in shards", repr(str(out)), remedy)


def write_report(folder: Path, run: Run, stop: Stop | None) -> None:
    """report.json: why it stopped (null while it runs), the last round's report and the record of every round."""
    if not run.writes:
        return
    value = {
        "stop": stop,
        "seconds": run.seconds,
        "backend": run.ot.backend,
        "report": run.report.to_dict(),
        "history": run.history,
    }
    checkpoint.write_json(folder / REPORT, value)


def open_folder(out: str | Path, resume: bool, about: dict[str, Any], run: Run) -> Path:
    """The run folder, created if need be; restores `run` when resuming from a checkpoint."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError("out", "a folder that can be written", f"{folder} ({error})", "choose another") from error
    path = folder / CHECKPOINT
    if run.ot.ranks:
        run.ot.ranks.require_equal({"out": "a run" if path.exists() else "no run"})
    if not path.exists():
        return folder
    if not resume:
        raise RunError("out", "an empty folder", f"{folder}, which holds a run", "resume it, or choose another folder")
    state = checkpoint.read(path, run.ot.device)
    if state["about"] != about:
        stored = state["about"]
        expected = {key: about.get(key) for key in stored | about if stored.get(key) != about.get(key)}
        other = {key: stored.get(key) for key in expected}
        raise RunError("out", f"a run with {expected}", f"one with {other}", "choose another folder")
    run.restore(state)
    return folder
