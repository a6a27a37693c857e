"""CIFAR-10 by the whole method: 50 000 images, l1 in pixels of [−1, 1], for as long as the part may take.

A second call goes on from the folder of the first. After every round W with its error is written down, and samples
beside the targets that they are transported to, which are drawn where matplotlib is. W is the sum over pixels of
|x − T(x)| that Chen et al. 2019 report as 655.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .session import Session

# Chosen on few or small images on a CPU (docs/gpu-suite.md); at 50 000 none has been tried against another.
GENERATOR = {"latent": 2, "waves": 1024, "reach": 24.0, "hidden": (1024, 1024, 1024)}
CHOICES = GENERATOR | {"learning rate": 1e-3, "steps": 2000, "batch": 2048, "replay": 150, "samples a target": 12}
CHOICES |= {"tol": 0.05}
SMALL = CHOICES | {"waves": 32, "hidden": (32,), "steps": 20, "batch": 32, "replay": 4, "samples a target": 6}
SMALL_IMAGES, SMALL_ROUNDS = 120, 2
PAIRS, SHOWN = 64, {0, 1, 2, 4, 8, 16, 32, 64, 128}  # samples, and rounds after which they are kept
ROUND, LAST = 1.4, 0.12  # times the last round's seconds that a round needs, and of the part's for what is judged last


class Waves(nn.Module):
    """z beside √2 sin(Wz + b), W ~ N(0, reach²) and b uniform, [B, latent + waves].

    The mean over waves of the products at z and z' is e^(−reach² |z − z'|² / 2) in expectation: a perceptron on them
    tells latents apart that are 1 / reach from each other. W and b are trained with the rest.
    Source: Rahimi and Recht, NeurIPS 2007; Tancik et al., NeurIPS 2020.
    """

    def __init__(self, latent: int, waves: int, reach: float):
        super().__init__()
        self.linear = nn.Linear(latent, waves)
        nn.init.normal_(self.linear.weight, std=reach)
        nn.init.uniform_(self.linear.bias, -math.pi, math.pi)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, math.sqrt(2) * self.linear(z).sin()], 1)


def network(shape: Sequence[int], latent: int, waves: int, reach: float, hidden: Sequence[int]) -> nn.Sequential:
    """The perceptron of the paper on waves, or on the latents themselves where there are no waves."""
    from fastsdot.networks import mlp

    first = [Waves(latent, waves, reach)] if waves else []
    return nn.Sequential(*first, *mlp(latent + waves, shape, hidden, std=None))


def targets(session: Session) -> Tensor:
    """The images in [−1, 1], [N, 32, 32, 3]."""
    images = np.load(session.cifar, mmap_mode="r")
    images = images.reshape(len(images), 32, 32, 3)[: SMALL_IMAGES if session.small else None]
    return torch.from_numpy(np.array(images)).to(session.device).float() / 127.5 - 1


class Watch:
    """Writes down every round, and stops when another would not end in time."""

    def __init__(self, session: Session, found: dict, folder: Path | None, latent: int):
        self.session, self.found, self.folder, self.began = session, found, folder, time.perf_counter()
        self.kept = LAST * session.left
        random = torch.Generator(session.device).manual_seed(1)
        self.z = torch.randn(PAIRS, latent, generator=random, device=session.device)

    def __call__(self, state) -> bool:
        self.found["history"] = state.history
        self.found["backend"] = state.ot.backend
        stop = self.session.left - self.kept < ROUND * (time.perf_counter() - self.began)
        self.began = time.perf_counter()
        if self.folder and (stop or state.round in SHOWN):
            self.show(state)
        self.session.keep(self.found)
        print(f"cifar: round {state.round}, W {state.record['w']:.1f} ± {state.record['w_error']:.1f}", flush=True)
        return stop

    @torch.no_grad()
    def show(self, state) -> None:
        """Samples and their targets as bytes, to be drawn anywhere."""
        from fastsdot.sheets import to_bytes

        samples = state.generator(self.z)
        pair = {"generated": to_bytes(samples), "transported": to_bytes(state.ot.transport(samples))}
        about = {key: state.record[key] for key in ("round", "w", "chi2")}
        arrays = about | {key: value.numpy() for key, value in pair.items()}
        np.savez_compressed(self.folder / f"cifar-{state.round:03}.npz", **arrays)


def run(session: Session) -> dict:
    """The record of every round, or the reason why there is none."""
    if session.cifar is None:
        return {"absent": "no images: give --cifar, see benchmarks/gpu/cifar_parts.py"}
    try:
        from fastsdot.alternate import CHECKPOINT, train
    except ModuleNotFoundError as error:
        return {"absent": f"not installed: {error.name}"}
    y, chosen = targets(session), SMALL if session.small else CHOICES
    torch.manual_seed(0)
    generator = network(y.shape[1:], *(chosen[name] for name in GENERATOR)).to(session.device)
    out = session.training or (session.folder and session.folder / "cifar-run")
    found = {"targets": f"{session.cifar.name}, {len(y)} images", "choices": chosen}
    if session.folder:
        session.folder.mkdir(parents=True, exist_ok=True)
    result = train(
        generator,
        y,
        chosen["latent"],
        cost="l1",
        rounds=SMALL_ROUNDS if session.small else 10**6,
        tol=chosen["tol"],
        max_samples=chosen["samples a target"] * len(y),
        steps=chosen["steps"],
        batch_size=chosen["batch"],
        replay=chosen["replay"],
        optimizer=torch.optim.Adam(generator.parameters(), lr=chosen["learning rate"]),
        out=out,
        resume=out is not None and (out / CHECKPOINT).is_file(),
        callback=Watch(session, found, session.folder, chosen["latent"]),
    )
    found |= {"history": result.history, "stop": str(result.stop), "seconds": result.seconds}
    session.keep(found)
    found["last"] = judged(session, result, chosen)
    return found | ({"peak_bytes": torch.cuda.max_memory_allocated()} if session.cuda else {})


def judged(session: Session, result, chosen: dict) -> dict:
    """W of the generator as it is at the end, by a solve that may take all samples it needs, and fresh ones."""
    from fastsdot.sources import Gaussian, Pushforward

    source = Pushforward(result.generator, Gaussian(chosen["latent"], session.device))
    some, seconds = chosen["samples a target"] * len(result.ot.targets), max(1.0, session.left / 2)
    solution = result.ot.solve(source, tol=chosen["tol"], max_samples=4 * some, max_seconds=seconds)
    report = result.ot.evaluate(source, some)
    about = {"w": report.dual, "w_error": report.dual_error, "primal": report.primal, "chi2": report.chi2}
    return about | {"chi2_error": report.chi2_error, "converged": solution.converged, "samples": report.samples}
