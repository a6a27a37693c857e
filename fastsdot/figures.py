"""Pictures of a run of `train`: what the generator makes, how the round's figures fall, how evenly the cells fill."""

from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastsdot import sheets
from fastsdot.errors import InvalidArgument
from fastsdot.sources import Pushforward

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastsdot.alternate import State, Trained

BLUE, ORANGE, INK = "#2f6db3", "#d9772b", "#333333"
WIDTH = 1120  # of a sheet of samples, in pixels
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}


ROUNDS = frozenset((1, 5, 25, 100))
PAIRS = 64
SAMPLES_PER_TARGET = 50  # for the histogram of masses, fewer where that would take long:
COORDINATES = 5e11  # samples · targets · dimensions, about ten seconds on two cores with cost l1


class Pictures:
    """A callback for `train` that draws into the folder `out`; call `finish` with what `train` returned.

    After the rounds in `rounds`, and at the end as ``samples-last.png``, it draws generated samples beside the targets
    they are transported to, for images, or in the plane for targets of shape (2,). ``curves.png`` has W, χ² and the
    FIT loss of every round, ``masses.png`` the histogram of the cells' masses.

    `latent(n)` is the latent source; it is the pictures' own, so that they take no randomness from training.
    Raises `InvalidArgument` without matplotlib.
    """

    def __init__(self, out: str | Path, latent: Callable[[int], Tensor], rounds: Collection[int] = ROUNDS):
        require_matplotlib()
        self.out, self.latent, self.rounds = Path(out), latent, rounds
        self.z = latent(PAIRS)  # the same in every round

    def __call__(self, state: "State") -> None:
        """Draw what is due after a round."""
        if state.round in self.rounds:
            self._samples(f"samples-{state.round:03}.png", state)
            draw_curves(self.out / "curves.png", state.history)

    def finish(self, result: "Trained") -> None:
        """Draw the last round."""
        self._samples("samples-last.png", result)
        draw_curves(self.out / "curves.png", result.history)
        targets = result.ot.targets
        samples = int(min(SAMPLES_PER_TARGET * len(targets), COORDINATES / targets.numel()))
        report = result.ot.evaluate(Pushforward(result.generator, self.latent), samples=max(1000, samples))
        draw_masses(self.out / "masses.png", report.mass, report.samples)

    @torch.no_grad()
    def _samples(self, name: str, trained: "State | Trained") -> None:
        ot, record = trained.ot, trained.history[-1]
        generated = trained.generator(self.z)
        transported = ot.transport(generated)
        title = f"round {record['round']}  ·  W {record['w']:.4g}  ·  χ² {record['chi2']:.2g}"
        if sheets.is_image(tuple(ot.shape)):
            draw_pairs(self.out / name, generated, transported, title)
        elif tuple(ot.shape) == (2,):
            draw_plane(self.out / name, generated, transported, ot.targets, title)


def require_matplotlib() -> None:
    """Raise `InvalidArgument` without matplotlib."""
    if find_spec("matplotlib") is None:
        remedy = "pip install 'fastsdot[train]', or do without pictures"
        raise InvalidArgument("pictures", "matplotlib", "no such package", remedy)


def draw(path: Path, size: tuple[float, float], plot: Callable[["Figure"], None]) -> None:
    """Save what `plot` puts on a figure of `size` inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure)
        figure.savefig(path)


def draw_pairs(path: Path, generated: Tensor, transported: Tensor, title: str, columns: int = 8) -> None:
    """A sheet of images [n, *shape] in [−1, 1], each beside the target it is transported to."""
    left, right = (
        sheets.enlarge(sheets.to_bytes(images), WIDTH // (2 * columns)) for images in (generated, transported)
    )
    sheet = sheets.tile(sheets.beside(left, right, gap=2), columns, gap=10)
    sheet = sheet.expand(-1, -1, 3).numpy()
    height, width = sheet.shape[0] / STYLE["savefig.dpi"], sheet.shape[1] / STYLE["savefig.dpi"]
    header = 0.24  # inches

    def plot(figure: "Figure") -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, height / (height + header)))
        axes.imshow(sheet, interpolation="none")
        axes.axis("off")
        margin, top = 10 / STYLE["savefig.dpi"] / width, 1 - 0.04 / (height + header)
        figure.text(margin, top, title, va="top")
        figure.text(1 - margin, top, "left: g(z), right: T(g(z))", va="top", ha="right")

    draw(path, (width, height + header), plot)


def draw_plane(path: Path, generated: Tensor, transported: Tensor, targets: Tensor, title: str) -> None:
    """Points in the plane: all targets, the generated points, and a line from each to where it is transported."""
    x, t, y = (points.detach().float().cpu() for points in (generated, transported, targets))

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.plot(*torch.stack([x, t], 1).permute(2, 1, 0), color=BLUE, linewidth=0.4, alpha=0.5, zorder=1)
        axes.scatter(*y.T, s=5, color="#b5b5b5", linewidths=0, label="targets")
        axes.scatter(*x.T, s=9, color=BLUE, linewidths=0, label="g(z)")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(title)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, handletextpad=0.2, borderpad=0)

    draw(path, (5.5, 5.5), plot)


def draw_curves(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """W, χ² and FIT's loss for every round of `history`."""
    panels = {
        "w": ("W, the semi-dual value", BLUE),
        "chi2": ("χ² of the cells' masses", ORANGE),
        "fit_loss": ("FIT loss", INK),
    }

    def plot(figure: "Figure") -> None:
        for axes, (name, (title, colour)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            known = [record for record in history if record.get(name) is not None]
            rounds = [record["round"] for record in known]
            values = [record[name] for record in known]
            errors = [record.get(f"{name}_error") or 0.0 for record in known]
            axes.errorbar(rounds, values, yerr=errors, color=colour, marker="o", markersize=3, elinewidth=0.8)
            axes.set(title=title, xlabel="round")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_ylim(bottom=min([0.0, *values]))

    draw(path, (9.0, 2.6), plot)


def mass_histogram(mass: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """How many cells hold how many of M samples: bin edges [K + 1] in n_j·N/M, cells [K], and the cells expected [K].

    `mass` [N] is n_j/M. Counts are Poisson with mean M/N when every cell has the same mass, so a histogram as wide as
    the expected one is the sampling of M points, and a wider one is error of the potential.
    """
    mean = samples / mass.numel()
    count = (mass.double().cpu() * samples).round()
    width = max(1, round(mean**0.5 / 2))
    stop = max(count.max().item(), mean + 5 * mean**0.5) + 2 * width
    edges = torch.arange(0, stop, width, dtype=torch.float64) - 0.5  # every bin holds `width` whole counts
    k = torch.arange(0, int(edges[-1]) + 1, dtype=torch.float64)
    poisson = torch.distributions.Poisson(torch.tensor(mean, dtype=torch.float64)).log_prob(k).exp()
    expected = mass.numel() * torch.histogram(k, edges, weight=poisson).hist
    return edges / mean, torch.histogram(count, edges).hist, expected


def draw_masses(path: Path, mass: Tensor, samples: int) -> None:
    """The histogram of the cells' masses against the one expected of cells of equal mass."""
    edges, cells, expected = (values.numpy() for values in mass_histogram(mass, samples))

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.stairs(cells, edges, fill=True, color=BLUE, alpha=0.75, label="cells")
        axes.stairs(expected, edges, color=ORANGE, linewidth=1.4, label="Poisson")
        axes.axvline(1, color=INK, linewidth=0.6, linestyle=(0, (4, 3)))
        axes.set(title=f"Mass of {mass.numel():,} cells, {samples:,} samples", ylabel="cells")
        axes.set_xlabel("samples in the cell / expected")
        axes.set_xlim(left=max(0.0, edges[0]))
        axes.legend(loc="upper right")

    draw(path, (4.5, 2.8), plot)
