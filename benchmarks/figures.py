"""The picture of the sweep: time of the argmin against B, D and N, for fastsdot and its peers, and the limits.

    python benchmarks/figures.py benchmarks/results/<cpu>/sweep.json --out docs/argmin-cpu.png

Two limits are drawn, each the larger of one read of the targets as they are stored and the arithmetic at the machine's
measured peak: in float32 (products, or two additions a coordinate for l1), and in bytes (products or distances).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import machine
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

TITLES = {"sqeuclidean": "‖x − y‖²", "l1": "Σ|x − y|"}
AXES = {"b": "samples B", "d": "dimension D", "n": "targets N"}
OURS, OURS_COLOUR = "fastsdot", "#c1272d"
COLOURS = {
    "blocked torch": "#1f4e79",
    "torch.cdist + argmin": "#2a7f9e",
    "torch.compile": "#6a51a3",
    "fastsdot[keops]": "#3f7d3a",
    "FAISS": "#8c6d31",
    "scikit-learn": "#7a7a7a",
}
NAMES = {
    "torch.cdist + argmin": "torch.cdist",
    "blocked torch": "torch, best blocks",
    "fastsdot[keops]": "KeOps",
}
LIMIT = "#555555"
STORED = {"float32": 4, "bytes": 1}  # bytes a coordinate, and
BYTES_A_TARGET = {"sqeuclidean": 16, "l1": 4}  # of codes, beside the coordinates: a start, and three factors
WORK = {  # a pair's coordinate takes so many of which limit
    ("sqeuclidean", "float32"): (1, "float32_products"),
    ("sqeuclidean", "bytes"): (1, "byte_products"),
    ("l1", "float32"): (2, "additions"),
    ("l1", "bytes"): (1, "byte_distances"),
}
GAP = 0.052  # of a panel's height between two labels


def limit(kind: str, point: dict, limits: dict) -> tuple[float, float]:
    """Seconds of one read of the targets, and of the arithmetic."""
    n, d = point["n"], point["d"]
    stored = n * (STORED[kind] * d + (BYTES_A_TARGET[point["cost"]] if kind == "bytes" else 0))
    times, unit = WORK[point["cost"], kind]
    return stored / limits["bytes_read"], times * point["b"] * n * d / limits[unit]


def kinds(cost: str, limits: dict) -> list[str]:
    return [kind for kind in STORED if limits.get(WORK[cost, kind][1])]


def lines(found: dict, cost: str, axis: str) -> Iterator[tuple[str, list[float], list[float]]]:
    """(name, values of the axis, seconds) of every contestant and limit."""
    points = sorted((p for p in found["points"] if p["cost"] == cost and axis in p["axes"]), key=lambda p: p[axis])
    for name in (OURS, *COLOURS):
        timed = [(p[axis], p["seconds"][name]) for p in points if name in p["seconds"]]
        if len(timed) > 1:
            yield name, *map(list, zip(*timed, strict=True))
    for kind in kinds(cost, found["limits"]):
        bounds = [limit(kind, p, found["limits"]) for p in points]
        read, work = bounds[-1]
        what = "reading" if read > work else WORK[cost, kind][1].split("_")[-1]
        adjective = "byte" if kind == "bytes" else "float32"
        yield f"limit: {adjective} {what}", [p[axis] for p in points], [max(bound) for bound in bounds]


def spread(places: list[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, each as near its place as the others allow, for places in ascending order."""
    groups: list[list[float]] = []  # of (sum of places less their rank's offset, count)
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1 and _middle(groups[-2]) + gap * (groups[-2][1] + groups[-1][1]) / 2 > _middle(groups[-1]):
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    heights = []
    for group in groups:
        heights += [_middle(group) + gap * (i - (group[1] - 1) / 2) for i in range(group[1])]
    return heights


def _middle(group: list[float]) -> float:
    return group[0] / group[1]


def draw(axes: Axes, found: dict, cost: str, axis: str) -> list[tuple[float, float, str, str]]:
    """Draw one panel and return where its lines end: (seconds, value, name, colour)."""
    ends, ticks = [], []
    for name, values, seconds in lines(found, cost, axis):
        limiting = name.startswith("limit")
        colour = OURS_COLOUR if name == OURS else LIMIT if limiting else COLOURS[name]
        style = {"ls": (0, (4, 2)), "lw": 1.2} if limiting else {"lw": 2.6 if name == OURS else 1.3, "marker": "o"}
        axes.plot(
            values, seconds, color=colour, ms=4.5 if name == OURS else 3, zorder=3 if name == OURS else 2, **style
        )
        ends.append((seconds[-1], values[-1], NAMES.get(name, name), colour))
        ticks = max(ticks, values, key=len)
    axes.set(xscale="log", yscale="log", xlabel=AXES[axis])
    axes.set_xticks(ticks, [f"{value:,}".replace(",", " ") for value in ticks])
    axes.minorticks_off()
    return ends


def label(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Each line's name beside the panel, at the height where it ends or as near as its neighbours let it."""
    height = axes.transScale + axes.transLimits
    ends = sorted(ends)
    places = [float(height.transform((x, y))[1]) for y, x, *_ in ends]
    for (y, x, name, colour), place, at in zip(ends, places, spread(places, GAP), strict=True):
        start = float(height.transform((x, y))[0])
        axes.annotate(
            name,
            (start, place),
            (1.04, at),
            "axes fraction",
            "axes fraction",
            color=colour,
            fontsize=8.5,
            va="center",
            weight="bold" if name == OURS else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.5, "shrinkA": 0, "shrinkB": 2},
            annotation_clip=False,
        )


def picture(found: dict, out: Path) -> None:
    costs = [cost for cost in TITLES if any(p["cost"] == cost for p in found["points"])]
    figure, panels = plt.subplots(len(costs), 3, figsize=(14, 4.4 * len(costs)), sharey="row", squeeze=False)
    for row, cost in zip(panels, costs, strict=True):
        ends = [draw(axes, found, cost, axis) for axes, axis in zip(row, AXES, strict=True)]
        for axes, axis, places in zip(row, AXES, ends, strict=True):
            fixed = (f"{other.upper()} = {found['centre'][other]:,}" for other in AXES if other != axis)
            axes.set_title(f"{TITLES[cost]},  {', '.join(fixed)}".replace(",0", " 0"), fontsize=10, loc="left")
            axes.grid(color="#e6e6e6", lw=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            label(axes, places)
        row[0].set_ylabel("seconds")
    cores = found["machine"]["cores"]
    figure.suptitle(
        f"argmin over all targets, {found['machine']['cpu']}, {cores} cores, float32", x=0.01, ha="left", fontsize=12
    )
    figure.tight_layout(rect=(0, 0, 0.995, 0.98), w_pad=3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, nargs="?", default=machine.folder() / "sweep.json")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "argmin-cpu.png")
    options = parser.parse_args(arguments)
    picture(json.loads(options.sweep.read_text()), options.out)


if __name__ == "__main__":
    main()
