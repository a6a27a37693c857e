"""The command line: ``fastsdot train | evaluate | sample | info``."""

import json
import math
import platform
import sys
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from fastsdot import environment, runs, sheets
from fastsdot.alternate import train as train_generator
from fastsdot.bracket import Bracket
from fastsdot.errors import InvalidArgument
from fastsdot.figures import Pictures
from fastsdot.progress import live
from fastsdot.report import INTERVALS, Report, require_confidence
from fastsdot.runs import Settings
from fastsdot.sources import Gaussian, Pushforward

UsageError = typer.BadParameter.__base__  # click's, wherever typer keeps it
EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
STARVED = 0.1  # of its weight, under which a target is said to get too little


class Commands(TyperGroup):
    """Shows an `InvalidArgument`, or a command line that cannot be read, as one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InvalidArgument as error:
            message = str(error)
        except UsageError as error:
            message = error.format_message()
        print("fastsdot:", " ".join(message.split()), file=sys.stderr)
        raise typer.Exit(EXIT_BAD_INPUT)


app = typer.Typer(
    cls=Commands,
    help="Semi-discrete optimal transport onto a data set, and generators trained with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Run = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="Where to compute.", show_default="cuda if there is one, else cpu")]


def option(text: str, default: Any = None) -> Any:
    """An option that is None when it is not given; `default` is only shown."""
    return typer.Option(help=text, show_default=False if default is None else str(default))


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The run's folder: checkpoint, report and pictures.", show_default=False)],
    data: Annotated[
        str | None, option("'digits', an idx(.gz), .npy or .npz file (path.npz:key), or a folder of images.")
    ] = None,
    targets: Annotated[int | None, option("Train on this many samples of the data, chosen by the seed.", "all")] = None,
    cost: Annotated[str | None, option("l1, lp, sqeuclidean, euclidean, dot or cosine.", Settings.cost)] = None,
    p: Annotated[float | None, option("The exponent of --cost lp.")] = None,
    rounds: Annotated[int | None, option("Rounds of OTS and FIT.", Settings.rounds)] = None,
    tol: Annotated[float | None, option("OTS ends when χ² is at most this.", Settings.tol)] = None,
    steps: Annotated[int | None, option("FIT steps in a round.", Settings.steps)] = None,
    batch_size: Annotated[int | None, option("Samples in a FIT step.", Settings.batch_size)] = None,
    seconds: Annotated[float | None, option("Start no round after this time.", "no limit")] = None,
    seed: Annotated[int | None, option("Of the network, the subset and the samples.", Settings.seed)] = None,
    latent_dim: Annotated[int | None, option("Width of the Gaussian latent.", Settings.latent_dim)] = None,
    hidden: Annotated[str | None, option("Widths of the hidden layers.", "512,512,512")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out with its own settings.")] = False,
    pictures: Annotated[bool, typer.Option(help="Draw pictures into --out.")] = True,
    device: Device = None,
) -> None:
    """Train a generator on a data set: alternate OTS, which solves the transport, and FIT, which follows it."""
    asked = {
        "data": data, "targets": targets, "cost": cost, "p": p, "rounds": rounds, "tol": tol, "steps": steps,
        "batch_size": batch_size, "seed": seed, "latent_dim": latent_dim, "hidden": hidden and _widths(hidden),
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    settings = (runs.resume if resume else runs.start)(out, given)
    place = _device(device)
    y = settings.read_targets().to(place)
    settings = replace(settings, shape=tuple(y.shape[1:]))
    generator = settings.make_generator().to(place)
    draw = Pictures(out, _latent(settings, place, stream=1)) if pictures else None
    runs.write(out, settings)
    torch.manual_seed(settings.seed)  # a checkpoint brings its own random state
    try:
        with live() as show:
            result = train_generator(
                generator,
                y,
                settings.latent_dim,
                cost=settings.cost,
                p=settings.p,
                rounds=settings.rounds,
                tol=settings.tol,
                steps=settings.steps,
                batch_size=settings.batch_size,
                seconds=seconds,
                out=out,
                resume=resume,
                progress=show,
                callback=draw,
            )
    except KeyboardInterrupt:
        print(f"fastsdot: interrupted; continue with: fastsdot train --resume --out {out}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print(f"{_summary(result.history)}; {result.stop.value}")
    if draw:
        draw.finish(result)
        print("pictures:", *sorted(out.glob("*.png")))


@app.command()
def evaluate(
    run: Run,
    samples: Annotated[int, typer.Option(help="How many fresh samples to draw.", min=3)] = 100_000,
    bracket: Annotated[int | None, option("Draw this many more for an interval that holds W itself.")] = None,
    confidence: Annotated[float, typer.Option(help="Of every interval and bound.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples; training never draws the same ones.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = None,
) -> None:
    """Measure a run on fresh samples: marginal error, primal, dual and gap, with intervals; and a bracket on W."""
    require_confidence(confidence)
    settings, place = runs.read(run), _device(device)
    source, transport = _fresh(run, settings, place, seed), runs.open_transport(run, settings, place)
    report = transport.evaluate(source, samples)
    held = transport.bracket(source, bracket, confidence=confidence) if bracket is not None else None
    if as_json:
        print(json.dumps(_values(report, held, confidence), indent=2))
    else:
        console = Console(soft_wrap=True)
        console.print(
            f"{run}: {report.samples:,} fresh samples, intervals and bounds at {confidence:.4g}", highlight=False
        )
        _print_report(console, report, held, confidence)


@app.command()
def sample(
    run: Run,
    n: Annotated[int, typer.Option("-n", help="How many samples.", min=1)] = 64,
    out: Annotated[
        Path | None, typer.Option(help="A picture (.png) or an array (.npy).", show_default="RUN/samples.png")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    device: Device = None,
) -> None:
    """Draw samples from the generator of a run, into a picture or an array [n, ...] of float32 in [−1, 1]."""
    samples = _fresh(run, runs.read(run), _device(device), seed)(n).cpu()
    out = run / "samples.png" if out is None else out
    if not out.parent.is_dir():
        raise InvalidArgument("out", "a file in a folder that exists", repr(str(out)), "create the folder first")
    if out.suffix == ".npy":
        np.save(out, samples.numpy())
    elif sheets.is_image(tuple(samples.shape[1:])):
        images = sheets.enlarge(sheets.to_bytes(samples), width=64)
        sheets.save(out, sheets.tile(images, columns=math.ceil(n**0.5), gap=4))
    else:
        raise InvalidArgument(
            "out", "a .npy file for samples that are no images", repr(str(out)), "use --out samples.npy"
        )
    print(out)


@app.command()
def info(
    run: Annotated[Path | None, typer.Argument(help="The folder of a run.", show_default="this machine")] = None,
) -> None:
    """Say what this machine can run, and why not the rest; or what a run folder holds."""
    console = Console(soft_wrap=True)
    if run is not None:
        _print_run(console, run)
        return
    packages = ", ".join(f"{name} {version or '(missing)'}" for name, version in environment.versions().items())
    console.print(
        f"fastsdot {metadata.version('fastsdot')}, Python {platform.python_version()}, {packages}", highlight=False
    )
    for name, description in environment.devices().items():
        console.print(f"\n{name}: {description}", highlight=False)
        _print_backends(console, environment.backends(torch.device(name)))


def main() -> None:
    """The console script."""
    app()


def _print_backends(console: Console, choices: list[environment.Choice]) -> None:
    """Which backend runs each cost, and each reason once with the costs that it holds for."""
    table = Table("cost", "runs on", "could also run on", box=None, header_style="bold")
    reasons: dict[tuple[str, str], list[str]] = {}
    for choice in choices:
        others = [name for name, reason in choice.refusals.items() if reason is None and name != choice.fastest]
        table.add_row(choice.cost, choice.fastest, ", ".join(others))
        for backend, reason in choice.refusals.items():
            if reason is not None:
                reasons.setdefault((backend, reason), []).append(choice.cost)
    console.print(table)
    for (backend, reason), names in reasons.items():
        which = "" if len(names) == len(choices) else f" for {', '.join(names)}"
        console.print(f"[bold]{backend}[/bold] cannot run{which}: {reason}", highlight=False)


def _values(report: Report, held: Bracket | None, confidence: float) -> dict[str, Any]:
    """What `evaluate` prints as JSON: the numbers of the report, its intervals and bounds, and the bracket, if any."""
    values: dict[str, Any] = {name: _finite(value) for name, value in report.to_dict().items()}
    values["confidence"] = confidence
    values["interval"] = {name: [_finite(end) for end in report.interval(name, confidence)] for name in INTERVALS}
    values["starved"] = {"share": STARVED, "targets": report.starved(STARVED, confidence)}
    values["unseen"] = report.unseen(confidence)
    if held is not None:
        values["bracket"] = {name: _finite(value) for name, value in asdict(held).items()}
    return values


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print_report(console: Console, report: Report, held: Bracket | None, confidence: float) -> None:
    """A row for each estimate, and a line for each bound."""
    table = Table("", "value", "± standard error", "from", "to", box=None, header_style="bold")
    values = report.to_dict()
    for name in (*INTERVALS, "max_ratio", "empty"):
        ends = report.interval(name, confidence) if name in INTERVALS else ()
        table.add_row(name, f"{values[name]:.5g}", f"{values[name + '_error']:.2g}", *(f"{end:.5g}" for end in ends))
    n = int((report.weights > 0).sum())
    starved, unseen = report.starved(STARVED, confidence), report.unseen(confidence)
    bounds = [f"under {STARVED:.0%} of their weight: at most {starved:,} of {n:,} targets"]
    if report.empty:
        bounds.append(f"a target that no sample chose: at most {unseen:.2g} of all mass, {n * unseen:.2g} mean weights")
    if held is not None:
        bounds.append(f"[bold]{held}[/bold]")
    console.print(table, *bounds, sep="\n", highlight=False)


def _print_run(console: Console, run: Path) -> None:
    settings, history = runs.read(run), runs.history(run)
    table = Table("setting", "value", box=None, header_style="bold")
    for name, value in asdict(settings).items():
        table.add_row(name, "default" if value is None else str(value))
    console.print(table, "", _summary(history), sep="\n", highlight=False)
    console.print("holds", ", ".join(sorted(path.name for path in run.iterdir())), highlight=False)


def _fresh(run: Path, settings: Settings, device: torch.device, seed: int) -> Pushforward:
    """The run's generator, sampled with latents that training has not seen."""
    return Pushforward(runs.open_generator(run, settings, device), _latent(settings, device, stream=2 + seed))


def _summary(history: list[dict[str, Any]]) -> str:
    """The last round in one line."""
    if not history:
        return "no round is finished yet"
    last = history[-1]
    return f"round {last['round']}: W {last['w']:.4g}, χ² {last['chi2']:.3g} ± {last['chi2_error']:.1g}"


def _device(name: str | None) -> torch.device:
    """The device of that name, or the best there is.

    Raises `InvalidArgument` for one that torch cannot use here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InvalidArgument("device", "a device of this machine", f"{name!r} ({reason})", "leave it out") from error


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(width) for width in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise InvalidArgument("hidden", "widths above 0 such as 512,512", repr(text), "separate them with commas")
    return widths


def _latent(settings: Settings, device: torch.device, stream: int) -> Gaussian:
    """z ~ N(0, I) of a stream of its own; training has stream 0, pictures 1, and fresh samples the rest."""
    seed = int(np.random.SeedSequence((settings.seed, stream)).generate_state(1)[0])
    return Gaussian(settings.latent_dim, device, torch.Generator(device).manual_seed(seed))
