"""FIT: regress a generator onto the transported samples of the generator it started from.

minimise over g'    E_z c(g'(z), T(g(z)))        g and T = argmin_j c(g(z), y_j) − ψ_j fixed
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastsdot.errors import InvalidArgument, SourceError, require_number
from fastsdot.progress import Progress
from fastsdot.ranks import apart
from fastsdot.semidiscrete import SemiDiscreteOT, decode
from fastsdot.sources import Pushforward, Source, SourceLike, as_source, draw, dtype_of, in_shards, replica

Loss = Callable[[Tensor, Tensor], Tensor]

LEARNING_RATE = 1e-3  # of the Adam that fit makes when it is given no optimizer


@dataclass(frozen=True)
class Fitted:
    """The loss of every step, in units of cost unless a loss was given."""

    losses: list[float]

    @property
    def loss(self) -> float:
        """The mean over the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


def frozen(pushforward: Pushforward) -> Pushforward:
    """The same distribution with a copy of the generator that no longer learns.

    Raises `InvalidArgument` for a generator in shards (FSDP), which cannot be copied.
    """
    if in_shards(pushforward.generator):
        remedy = "give replay=, which stores its samples instead, and no precision="
        raise InvalidArgument("generator", "one that FIT can copy", "one in shards (FSDP)", remedy)
    return replace(pushforward, generator=copy.deepcopy(replica(pushforward.generator)).requires_grad_(False))


def draw_pairs(pushforward: Pushforward, ot: SemiDiscreteOT, batch_size: int) -> tuple[Tensor, Tensor]:
    """New latents z and the indices of T(g(z)); of several ranks each has its own."""
    z = pushforward.latent(batch_size)
    x = draw(lambda n: pushforward.at(z), batch_size, ot.shape, ot.device)
    return z, apart(ot.ranks, x.reshape(batch_size, *ot.shape), ot.assign)


def take(ot: SemiDiscreteOT, index: Tensor) -> Tensor:
    """The targets of these indices, [B, *shape] float32; of several ranks each asks for its own."""
    return apart(ot.ranks, index, lambda i: decode(ot.targets[i]))


def fresh_pairs(pushforward: Pushforward, ot: SemiDiscreteOT, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(z, T(g(z))) for new latents every time."""
    while True:
        z, index = draw_pairs(pushforward, ot, batch_size)
        yield z, take(ot, index)


def stored_pairs(
    pushforward: Pushforward, ot: SemiDiscreteOT, batch_size: int, batches: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The paper's replay: `batches` batches of (z, index) are stored, then replayed in a new order every pass."""
    store = [draw_pairs(pushforward, ot, batch_size) for _ in range(batches)]
    while True:
        for i in torch.randperm(batches).tolist():
            z, index = store[i]
            yield z, take(ot, index)


def together(device: torch.device) -> int:
    """Steps whose losses are looked at together: on a GPU many, so that the host waits once for all."""
    return 1 if device.type == "cpu" else 100


def looked_at(values: list[Tensor], done: int) -> list[float]:
    """The losses of the latest of so many steps. Raises `SourceError` for the first that is not finite."""
    reached = torch.stack(values).tolist()
    for step, value in enumerate(reached, done - len(values) + 1):
        if not math.isfinite(value):
            raise SourceError("loss", "a finite value", f"{value} at step {step}", "lower the learning rate")
    return reached


def fit(
    generator: nn.Module,
    ot: SemiDiscreteOT,
    latent: SourceLike,
    *,
    steps: int = 150,
    batch_size: int = 512,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss | None = None,
    replay: int | None = None,
    perturbation: float = 0.0,
    reference: Pushforward | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Fitted:
    """FIT: train `generator` in place towards T(g(z)), g being the generator as it was when called.

    latent(n) gives the latents; an int is the width of N(0, I). Samples are fresh and T is computed for each, or,
    with replay=k, k batches of (z, index) are stored once and replayed. The loss is the cost's own, the mean of
    c(g'(z), T(g(z))), unless `loss(generated, transported)` is given; the optimizer is Adam unless one is given.
    perturbation is the standard deviation of noise added to g(z) before T, as in the source that ψ was solved for;
    reference is g where that is not the generator as it stands. `progress` gets a `Progress` after every step; on a GPU
    losses are looked at a hundred steps at a time, and one that is not finite is found after as many.

    Raises `InvalidArgument` for numbers out of range, and for a generator in shards (FSDP) without `replay`, since it
    cannot be copied; `SourceError` when the generator's samples do not have the shape of a target or are not finite.
    Source: Chen et al. 2019, algorithm 2.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("replay", 1 if replay is None else replay)):
        require_number(name, value, above=0, whole=True)
    require_number("perturbation", perturbation, least=0)
    source: Source = as_source(latent, "latent", ot.device, dtype=dtype_of(generator))
    optimizer = optimizer or torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE)
    loss = loss or (lambda x, y: ot.cost.fit_loss(x.flatten(1), y.flatten(1)))
    reference = reference or Pushforward(generator, source, perturbation)
    if replay is None and reference.generator is generator:  # stored pairs are all drawn before the first step
        reference = frozen(reference)
    pairs = (
        fresh_pairs(reference, ot, batch_size) if replay is None else stored_pairs(reference, ot, batch_size, replay)
    )
    losses, unseen, most = [], [], together(ot.device)
    for step, (z, transported) in zip(range(1, steps + 1), pairs, strict=False):
        optimizer.zero_grad(set_to_none=True)
        value = loss(generator(z), transported)
        unseen.append(value.detach())
        if len(unseen) == most or step == steps:
            losses += looked_at(unseen, step)
            unseen.clear()
        value.backward()
        optimizer.step()
        if progress:
            progress(Progress("fit", None, step, steps, {"loss": losses[-1]} if losses else {}))
    return Fitted(losses)
