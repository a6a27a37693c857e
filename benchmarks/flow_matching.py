"""Flow matching with three couplings: the same network, the same training seconds, torchcfm's own training step.

    python benchmarks/flow_matching.py race digits        independent, minibatch OT and semi-discrete OT
    python benchmarks/flow_matching.py race fashion
    python benchmarks/flow_matching.py overhead           of a coupling in a training step of a U-Net, 60 000 targets
    python benchmarks/flow_matching.py table digits       the results in Markdown

Everything runs on one thread, and seconds are those that the process had the core. Methods train in turns of a second,
so that other work slows them alike. A coupling's time counts as training; the one solve before it is counted apart.

    curvature   ∫ E‖Ż_t − (Z_1 − Z_0)‖² dt / E‖Z_1 − Z_0‖² along the adaptive solution in 16 intervals; 0 is straight
    W₂          √ of the optimal squared cost between generated images and those trained on, which is what a flow is
                trained to reach, or those held out; exact (POT), pixels in [−1, 1]
    Fréchet     ‖m − m'‖² + tr(C + C' − 2(C C')^½) of 64 features of a classifier trained on the training images
"""

import gzip
import json
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev

import machine
import matplotlib
import numpy as np
import ot as pot
import scipy.stats
import torch
import torchdiffeq
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torchcfm import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from torchcfm.models.unet import UNetModel

from fastsdot import SemiDiscreteOT, sheets
from fastsdot.couplings import Coupling
from fastsdot.data import load, pixels

matplotlib.use("agg")
import matplotlib.pyplot as plt

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
METHODS = ("independent", "minibatch", "semidiscrete")
NAMES = {"independent": "independent", "minibatch": "minibatch OT (torchcfm)", "semidiscrete": "semi-discrete OT"}
EULER, ADAPTIVE = (1, 2, 4, 8), "adaptive"
BATCH, RATE, GENERATED, INTERVALS, SHOWN = 128, 1e-3, 600, 16, 8
DOCS = Path(__file__).parent.parent / "docs"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Problem:
    """Images [N, H, W] in [−1, 1] and labels, to train on and held out; width of the network, seconds of training."""

    train: Tensor
    labels: Tensor
    held: Tensor
    held_labels: Tensor
    width: int
    seconds: float


def digits() -> Problem:
    """1 297 digits 8×8, and 500 held out."""
    from sklearn.datasets import load_digits

    images, labels = pixels(load("digits").images), torch.as_tensor(load_digits().target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, held = order[:-500], order[-500:]
    return Problem(images[train], labels[train], images[held], labels[held], 256, 120.0)


def fashion() -> Problem:
    """2 000 Fashion-MNIST images as means over 2×2 pixels, 14×14, and 1 000 of the test set."""

    def part(name: str, n: int) -> tuple[Tensor, Tensor]:
        images = pixels(load(FASHION / f"{name}-images-idx3-ubyte.gz").images[:n])
        labels = np.frombuffer(
            gzip.decompress((FASHION / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, n, offset=8
        )
        return F.avg_pool2d(images[:, None], 2)[:, 0], torch.as_tensor(labels.astype(np.int64))

    return Problem(*part("train", 2_000), *part("t10k", 1_000), 384, 80.0)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.net(h)


class Velocity(nn.Module):
    """v(t, x), a residual network on flat pixels and 16 sines and cosines of t."""

    def __init__(self, pixels: int, width: int):
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(8) / 2)
        self.net = nn.Sequential(
            nn.Linear(pixels + 16, width),
            *(Block(width) for _ in range(3)),
            nn.LayerNorm(width),
            nn.Linear(width, pixels),
        )

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        angle = t.expand(len(x))[:, None] * self.frequencies
        return self.net(torch.cat([x.flatten(1), angle.sin(), angle.cos()], 1)).view_as(x)


def matcher(method: str, coupling: Coupling) -> ConditionalFlowMatcher:
    if method == "independent":
        return ConditionalFlowMatcher(sigma=0.0)
    found = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    if method == "semidiscrete":
        found.ot_sampler = coupling
    return found


class Training:
    """A network in training for the problem's seconds, in turns; it draws from random states of its own."""

    def __init__(self, problem: Problem, flow: ConditionalFlowMatcher, seed: int):
        self.problem, self.flow, self.steps, self.spent, self.pairing = problem, flow, 0, 0.0, 0.0
        torch.manual_seed(seed)
        self.net = Velocity(problem.train[0].numel(), problem.width)
        self.optimizer = torch.optim.Adam(self.net.parameters(), RATE)
        self.torch = torch.get_rng_state()
        self.numpy = np.random.RandomState(seed).get_state()  # torchcfm draws its pairs with it

    def turn(self, seconds: float) -> None:
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        begun, before = time.process_time(), self.spent
        while self.spent < min(before + seconds, self.problem.seconds):
            self.optimizer.param_groups[0]["lr"] = RATE * (1 - self.spent / self.problem.seconds)
            self._step()
            self.spent = before + time.process_time() - begun
        self.torch, self.numpy = torch.get_rng_state(), np.random.get_state()

    def _step(self) -> None:
        x1 = self.problem.train[torch.randint(len(self.problem.train), (BATCH,))]
        x0 = torch.randn_like(x1)
        before = time.process_time()
        t, xt, ut = self.flow.sample_location_and_conditional_flow(x0, x1)
        self.pairing += time.process_time() - before
        self.optimizer.zero_grad()
        (self.net(t, xt) - ut).square().mean().backward()
        self.optimizer.step()
        self.steps += 1


def train(problem: Problem, ot: SemiDiscreteOT, seed: int) -> dict[str, Training]:
    """A network for every method, from the same first weights, in turns of a second: what slows the core slows all."""
    trainings = {method: Training(problem, matcher(method, Coupling(ot)), seed) for method in METHODS}
    while any(training.spent < problem.seconds for training in trainings.values()):
        for training in trainings.values():
            training.turn(1.0)
    return trainings


@torch.no_grad()
def generate(net: Velocity, x0: Tensor) -> tuple[dict[str, Tensor], float, int]:
    """Images by each number of Euler steps and by dopri5, the curvature, and dopri5's evaluations of the network."""
    images = {}
    for steps in EULER:
        x = x0
        for k in range(steps):
            x = x + net(torch.tensor(k / steps), x) / steps
        images[str(steps)] = x
    evaluations = 0

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return net(t, x)

    path = torchdiffeq.odeint(velocity, x0, torch.linspace(0, 1, INTERVALS + 1), rtol=1e-4, atol=1e-4)
    images[ADAPTIVE] = path[-1]
    chord = path[-1] - path[0]
    bend = (path.diff(dim=0) * INTERVALS - chord).square().mean() / chord.square().mean()
    return images, float(bend), evaluations


def w2(x: Tensor, y: Tensor) -> float:
    x, y = x.flatten(1).double().numpy(), y.flatten(1).double().numpy()
    return math.sqrt(pot.emd2([], [], pot.dist(x, y), numItermax=10_000_000))


class Features(nn.Module):
    """64 features of images [B, H, W], each pixel clamped to [−1, 1]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images[:, None].clamp(-1, 1))


def classifier(problem: Problem) -> tuple[Features, float]:
    """64 features of a small convolutional network, and its accuracy on the images held out."""
    torch.manual_seed(0)
    side = problem.train.shape[-1] // 2
    features = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * side * side, 64), nn.ReLU()),
    )
    head = nn.Linear(64, 10)
    optimizer = torch.optim.Adam([*features.parameters(), *head.parameters()], 1e-3)
    for _ in range(6 * 10_000 // BATCH):
        rows = torch.randint(len(problem.train), (BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(head(features(problem.train[rows, None])), problem.labels[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        right = head(features(problem.held[:, None])).argmax(1) == problem.held_labels
    return Features(features).requires_grad_(False), float(right.float().mean())


def frechet(x: Tensor, y: Tensor) -> float:
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b) - 2 * root)


def interval(values: list[float]) -> dict[str, float]:
    """Mean and half of the 95 % t-interval."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean(values), "half": float(half)}


def summary(runs: list[dict]) -> dict:
    """Intervals over seeds of every figure, and of what semi-discrete differs by from each other, seed by seed."""

    def figures(run: dict) -> dict[str, float]:
        found = {"curvature": run["curvature"], "evaluations": run["evaluations"]}
        for name in ("w2", "w2 held out", "frechet"):
            found |= {f"{name} {steps}": value for steps, value in run[name].items()}
        return found

    by = {m: [figures(run) for run in runs if run["method"] == m] for m in METHODS}
    ours = by["semidiscrete"]
    result = {m: {key: interval([f[key] for f in by[m]]) for key in ours[0]} for m in METHODS}
    for m in METHODS[:-1]:
        pairs = list(zip(ours, by[m], strict=True))
        result[f"semidiscrete − {m}"] = {key: interval([a[key] - b[key] for a, b in pairs]) for key in ours[0]}
    return result


def draw(name: str, samples: dict[str, dict[str, Tensor]], found: dict) -> None:
    """docs/flow-matching-NAME.png: images from the same noise by method and steps, and the figures beside them."""
    columns = [*map(str, EULER), ADAPTIVE]
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.9), layout="constrained", width_ratios=(1, 1, 1, 1.1))
    for axis, method in zip(axes, METHODS, strict=False):
        rows = [samples[method][steps] for steps in columns]
        tiles = sheets.tile(sheets.to_bytes(torch.cat(rows)), SHOWN)
        axis.imshow(tiles[..., 0], cmap="gray", vmin=0, vmax=255)
        size = tiles.shape[0] / len(columns)
        axis.set(title=NAMES[method], xticks=[], yticks=[size * (i + 0.5) for i in range(len(columns))])
        axis.set_yticklabels(columns)
        axis.tick_params(length=0)
    axes[0].set_ylabel("Euler steps")
    for shift, method in zip((-0.06, 0, 0.06), METHODS, strict=True):
        values = [found[method][f"w2 {steps}"] for steps in columns]
        axes[3].errorbar(
            [i + shift for i in range(len(columns))],
            [v["mean"] for v in values],
            [v["half"] for v in values],
            fmt="o-",
            capsize=3,
            label=NAMES[method],
        )
    axes[3].set(xlabel="Euler steps", title="W₂ to the training images", xticks=range(len(columns)))
    axes[3].set_xticklabels(columns)
    axes[3].legend(fontsize=8)
    figure.savefig(DOCS / f"flow-matching-{name}.png", dpi=110)


def compete(
    problem: Problem, ot: SemiDiscreteOT, features: Features, seed: int
) -> tuple[list[dict], dict[str, dict[str, Tensor]]]:
    """Every method with one seed, from the same first weights and the same noise: its figures, and images by steps."""
    held, runs, samples = features(problem.held), [], {}
    x0 = torch.randn(GENERATED, *ot.shape, generator=torch.Generator().manual_seed(1000 + seed))
    for method, training in train(problem, ot, seed).items():
        images, curvature, evaluations = generate(training.net.eval(), x0)
        samples[method] = {k: v[:SHOWN].clone() for k, v in images.items()}
        run = {"method": method, "seed": seed, "steps": training.steps, "pairing": training.pairing / training.spent}
        run |= {"curvature": curvature, "evaluations": evaluations}
        run |= {"w2": {k: w2(v, problem.train) for k, v in images.items()}}
        run |= {"w2 held out": {k: w2(v, problem.held) for k, v in images.items()}}
        run |= {"frechet": {k: frechet(features(v), held) for k, v in images.items()}}
        runs.append(run)
        print(json.dumps(run), flush=True)
    return runs, samples


@app.command()
def race(name: str, seeds: int = 4, seconds: float | None = None, processes: int = 1, out: Path | None = None) -> None:
    """Train and measure on `digits` or `fashion`, each seed in a process of one thread."""
    torch.set_num_threads(1)
    title, problem = name, {"digits": digits, "fashion": fashion}[name]()
    if seconds is not None:
        title, problem = f"{name}-{seconds:g}s", replace(problem, seconds=seconds)
    features, accuracy = classifier(problem)
    ot = SemiDiscreteOT(problem.train)
    torch.manual_seed(0)
    before = time.process_time()
    solution = ot.solve(lambda n: torch.randn(n, *ot.shape), tol=0.05)
    solve = {"seconds": time.process_time() - before, "chi2": solution.report.chi2, "samples": solution.samples}
    print(name, "accuracy", accuracy, "solve", solve, solution.reason, flush=True)
    chosen = problem.train[torch.randperm(len(problem.train), generator=torch.Generator().manual_seed(0))[:GENERATED]]
    floor = {"w2 held out": w2(chosen, problem.held), "frechet": frechet(features(chosen), features(problem.held))}
    about = {"machine": machine.facts(), "train": len(problem.train), "held": len(problem.held)}
    about |= {"shape": list(ot.shape), "batch": BATCH, "seconds": problem.seconds, "generated": GENERATED}
    about |= {"classifier_accuracy": accuracy, "solve": solve}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        done = [pool.submit(compete, problem, ot, features, seed) for seed in range(seeds)]
        runs, samples = done[0].result()
        for future in done[1:]:  # an interval takes two; what is there is written, should the rest be cut off
            runs += future.result()[0]
            found = summary(runs) | {"floor": floor}
            write(f"flow-matching-{title}.json", {**about, "summary": found, "runs": runs}, out)
            draw(title, samples, found)


@app.command()
def overhead(steps: int = 9, batch: int = 64, out: Path | None = None) -> None:
    """Seconds of a training step of torchcfm's U-Net on Fashion-MNIST and of the pairs in it, step by step in turn."""
    images = pixels(load(FASHION / "train-images-idx3-ubyte.gz").images)[:, None]
    ot = SemiDiscreteOT(images)
    ot.potential.copy_(torch.randn(len(images)))  # any: the pass over the targets is the same
    net = UNetModel(dim=(1, 28, 28), num_channels=32, num_res_blocks=1, channel_mult=(1, 2, 2))
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    flows, rows = {m: matcher(m, Coupling(ot)) for m in METHODS}, {m: [] for m in METHODS}
    for _ in range(steps + 1):
        for method, flow in flows.items():
            x1 = images[torch.randint(len(images), (batch,))]
            x0 = torch.randn_like(x1)
            marks = [(time.perf_counter(), time.process_time())]
            t, xt, ut = flow.sample_location_and_conditional_flow(x0, x1)
            marks.append((time.perf_counter(), time.process_time()))
            optimizer.zero_grad()
            (net(t, xt) - ut).square().mean().backward()
            optimizer.step()
            marks.append((time.perf_counter(), time.process_time()))
            rows[method].append(np.diff(marks, axis=0))
    found = {}
    for method, times in rows.items():
        pairs, step = np.median(times[1:], axis=0)
        found[method] = {"pairs": list(pairs), "step": list(step)}
    base = [median(found[m]["step"][clock] for m in METHODS) for clock in (0, 1)]
    for row in found.values():
        row["overhead"] = [(row["pairs"][c] - found["independent"]["pairs"][c]) / base[c] for c in (0, 1)]
    about = {"targets": len(images), "batch": batch, "steps": steps, "clocks": ["wall", "process"]}
    about |= {"parameters": sum(p.numel() for p in net.parameters()), "backend": ot.backend}
    write("flow-matching-overhead.json", {"machine": machine.facts(), **about, "methods": found}, out)
    print(json.dumps(found, indent=1))


@app.command()
def table(name: str) -> None:
    """The summary of a race in Markdown: mean and half of the interval."""
    found = json.loads((machine.folder() / f"flow-matching-{name}.json").read_text())
    kinds = {"w2": "W₂ to the training images", "w2 held out": "W₂ to images held out", "frechet": "Fréchet"}
    columns = [*map(str, EULER), ADAPTIVE]
    print(f"| {name} | coupling |", " | ".join(columns), "|\n|---|---|" + "---|" * len(columns))
    for kind, title in kinds.items():
        for method in METHODS:
            row = [found["summary"][method][f"{kind} {steps}"] for steps in columns]
            cells = [f"{figure['mean']:.3g} ± {figure['half']:.2g}" for figure in row]
            print(f"| {title} | {NAMES[method]} |", " | ".join(cells), "|")
    print(f"\n| {name} | curvature | evaluations, adaptive | steps | of the time, pairs |\n|---|---|---|---|---|")
    for method in METHODS:
        figures, runs = found["summary"][method], [run for run in found["runs"] if run["method"] == method]
        cells = [f"{figures['curvature']['mean']:.3g} ± {figures['curvature']['half']:.2g}"]
        cells += [f"{figures['evaluations']['mean']:.0f}", f"{mean(run['steps'] for run in runs):.0f}"]
        print(f"| {NAMES[method]} |", " | ".join([*cells, f"{mean(run['pairing'] for run in runs):.1%}"]), "|")


def write(name: str, content: dict, out: Path | None) -> None:
    folder = out or machine.folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    app()
