"""Time against N, B and D with the limit drawn in, the roofline, the race, and CIFAR-10's training; for readers."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fastsdot.costs import LOW_DIMENSION

from .goals import PAPER_BEATEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"n": ("N", {"b": 256, "d": 784}), "b": ("B", {"n": 60_000, "d": 784}), "d": ("D", {"b": 1024, "n": 60_000})}
SMALL_AXES = {"n": ("N", {"b": 8, "d": 20})}
COSTS = ("sqeuclidean", "l1")


def floor(row: dict, ceilings: dict) -> float:
    """Seconds of one read of float32 targets, or of one bf16 product or two additions a coordinate."""
    flops = 2 * row["b"] * row["n"] * row["d"]
    arithmetic = ceilings.get("bf16" if row["cost"] == "sqeuclidean" and row["d"] > LOW_DIMENSION else "fadd")
    limits = [flops / arithmetic] if isinstance(arithmetic, float) else []
    if isinstance(ceilings.get("copy"), float):
        limits.append(4 * row["n"] * row["d"] / ceilings["copy"])
    return max(limits, default=0.0)


def line(axis: "Axes", rows: list[dict], along: str, ceilings: dict) -> None:
    """A curve for each contestant over the rows of one cut through the grid."""
    names = dict.fromkeys(name for row in rows for name, result in row["results"].items() if "seconds" in result)
    for name in names:
        points = [(r[along], r["results"][name]["seconds"]) for r in rows if "seconds" in r["results"].get(name, {})]
        ours = name == "fastsdot"
        axis.loglog(*zip(*points, strict=True), "o-", label=name, lw=2.4 if ours else 1, ms=4, zorder=3 if ours else 2)
    limit = [(row[along], floor(row, ceilings)) for row in rows]
    axis.loglog(*zip(*limit, strict=True), "k--", lw=1, label="limit")


def against(rows: list[dict], cost: str, along: str, fixed: dict[str, int]) -> list[dict]:
    def here(row: dict) -> bool:
        return (
            row["cost"] == cost
            and row["reduction"] == "argmin"
            and all(row[key] == value for key, value in fixed.items())
        )

    return sorted((row for row in rows if here(row)), key=lambda row: row[along])


def draw_times(folder: Path, timings: dict, ceilings: dict, small: bool) -> None:
    from matplotlib.figure import Figure

    axes = SMALL_AXES if small else AXES
    figure = Figure(figsize=(4.2 * len(axes), 7), layout="constrained")
    grid = figure.subplots(len(COSTS), len(axes), squeeze=False)
    for cost, places in zip(COSTS, grid, strict=True):
        for (along, (label, fixed)), axis in zip(axes.items(), places, strict=True):
            rows = against(timings["rows"], cost, along, fixed)
            if rows:
                line(axis, rows, along, ceilings)
                axis.legend(fontsize=6, frameon=False)
            title = ", ".join(f"{key.upper()}={value}" for key, value in fixed.items())
            axis.set(title=f"{cost} argmin, {title}", xlabel=label, ylabel="seconds a call")
    figure.savefig(folder / "times.png", dpi=120)


def draw_roofline(folder: Path, timings: dict, ceilings: dict) -> None:
    """FLOP/s against FLOPs a byte of targets: every argmin of ours under the machine's own ceilings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for cost in COSTS:
        points = [
            (row["b"] / 2, row["results"]["fastsdot"]["flops"])
            for row in timings["rows"]
            if row["cost"] == cost and row["reduction"] == "argmin" and "flops" in row["results"]["fastsdot"]
        ]
        if points:
            axis.loglog(*zip(*points, strict=True), "o", ms=4, label=f"fastsdot, {cost}")
    intensity = [0.5, 4096]
    if isinstance(ceilings.get("copy"), float):
        axis.loglog(intensity, [v * ceilings["copy"] for v in intensity], "k--", lw=1, label="copy")
    for name in ("bf16", "tf32", "fp32", "fadd"):
        if isinstance(ceilings.get(name), float):
            axis.axhline(ceilings[name], color="gray", lw=0.8)
            axis.text(intensity[0], ceilings[name], name, fontsize=7, va="bottom")
    axis.set(xlabel="FLOPs a byte of float32 targets (B/2)", ylabel="FLOP/s")
    axis.legend(fontsize=7, frameon=False)
    figure.savefig(folder / "roofline.png", dpi=120)


def draw_race(folder: Path, race: dict) -> None:
    from race_figures import sheet

    sheet([race], "chi2", folder / "race.png")


def draw_training(folder: Path, history: list[dict]) -> None:
    """W with its error, and χ², against minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    w, chi2 = figure.subplots(1, 2)
    minutes = [entry["seconds"] / 60 for entry in history]
    w.errorbar(minutes, [e["w"] for e in history], [e["w_error"] for e in history], marker=".", label="semi-dual")
    w.plot(minutes, [entry["primal"] for entry in history], "--", lw=1, label="cost of the map")
    w.axhline(PAPER_BEATEN, color="gray", lw=0.8)
    w.set(title="CIFAR-10, l1: W₁", xlabel="minutes")
    w.legend(fontsize=7, frameon=False)
    chi2.plot(minutes, [entry["chi2"] for entry in history], marker=".")
    chi2.set(title="χ² of the masses", xlabel="minutes")
    figure.savefig(folder / "cifar-curve.png", dpi=120)


def draw_pairs(folder: Path) -> dict[str, str]:
    """Samples beside their targets, of every round that was kept."""
    import numpy as np
    import torch

    from fastsdot import figures

    found = {}
    for path in sorted(folder.glob("cifar-*.npz")):
        with np.load(path) as pair:
            left, right = (torch.from_numpy(pair[key]) / 127.5 - 1 for key in ("generated", "transported"))
            title = f"round {pair['round']}  ·  W {pair['w']:.4g}  ·  χ² {pair['chi2']:.2g}"
        figures.draw_pairs(path.with_suffix(".png"), left, right, title)
        found[path.stem] = path.with_suffix(".png").name
    return found


def draw(folder: Path, results: dict) -> dict[str, str]:
    """The names of what was drawn, and the reasons why the rest was not."""
    if find_spec("matplotlib") is None:
        return {"absent": "matplotlib is not installed; `--redraw` draws from results.json where it is"}
    ceilings, found = results.get("ceilings", {}), {}

    def one(name: str, file: str, there: object, make: Callable[[], None]) -> None:
        found[name] = file if there else "not measured"
        if there:
            make()

    timings, small = results.get("timings", {}), results["environment"]["small"]
    race, history = results.get("race", {}), results.get("cifar", {}).get("history")
    one("times", "times.png", timings.get("rows"), lambda: draw_times(folder, timings, ceilings, small))
    one("roofline", "roofline.png", timings.get("rows"), lambda: draw_roofline(folder, timings, ceilings))
    one("race", "race.png", race.get("contestants"), lambda: draw_race(folder, race))
    one("training", "cifar-curve.png", history, lambda: draw_training(folder, history))
    return found | draw_pairs(folder)
