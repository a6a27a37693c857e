"""Pictures of the races: χ² and the dual gap against samples a target and against time.

python benchmarks/race_figures.py races.json --out docs
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"fastsdot": "#c1272d", "POT": "#1f4e79", "OTT-JAX": "#3f7d3a", "Adam, batch 64": "#8c6d31"}
OTHERS = ("#7a5195", "#4d4d4d", "#2a9d8f")  # of contestants that are not named here
BOUNDS = (0.1, 0.05)
QUANTITIES = {"chi2": "χ²", "gap": "dual gap / σ"}
SAMPLES = {"samples": "samples a target"}
TIMES = {"processor": "processor seconds", "seconds": "seconds"}  # by what a race was measured in
LEAST = 1e-4  # below it a χ² is drawn as it


def panel(axes: Axes, found: dict, quantity: str, against: str) -> None:
    others = (name for name in found["contestants"] if name not in COLOURS)
    colours = COLOURS | dict(zip(others, OTHERS, strict=False))
    for name, entry in found["contestants"].items():
        unit = found["n"] if against == "samples" else 1
        points = [(point[against] / unit, max(LEAST, point[quantity])) for point in entry["curve"]]
        if points:
            axes.plot(
                *zip(*points, strict=True), color=colours[name], marker=".", markersize=4, linewidth=1.4, label=name
            )
    if quantity == "chi2":
        for bound in BOUNDS:
            axes.axhline(bound, color="#999999", linewidth=0.7, linestyle="--", zorder=0)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.2)
    axes.tick_params(labelsize=7)


def sheet(results: list[dict], quantity: str, path: Path) -> None:
    """A row for each way of counting, a column for each problem; five columns wide."""
    columns = min(5, len(results))
    bands = -(-len(results) // columns)
    figure, grid = plt.subplots(
        2 * bands, columns, figsize=(3.1 * columns, 4.6 * bands), squeeze=False, layout="constrained"
    )
    for place, found in enumerate(results):
        band, column = divmod(place, columns)
        measure = found.get("measure", "processor")
        for row, (against, label) in enumerate((SAMPLES | {measure: TIMES[measure]}).items()):
            axes = grid[2 * band + row][column]
            panel(axes, found, quantity, against)
            axes.set_xlabel(label, fontsize=8)
            if row == 0:
                axes.set_title(found["name"], fontsize=8)
            if column == 0:
                axes.set_ylabel(QUANTITIES[quantity], fontsize=9)
    for place in range(len(results), bands * columns):
        band, column = divmod(place, columns)
        for row in range(2):
            grid[2 * band + row][column].axis("off")
    handles, labels = grid[0][0].get_legend_handles_labels()
    wide = min(len(labels), 2 * columns)
    figure.legend(handles, labels, loc="outside upper center", ncols=wide, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(results: list[dict], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for quantity in QUANTITIES:
        sheet(results, quantity, folder / f"solver-{quantity}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("races", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    draw(json.loads(options.races.read_text())["races"], options.out)


if __name__ == "__main__":
    main()
