"""Sources: anything that can be sampled, as a function `source(n) -> [n, *shape]`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastsdot.errors import InvalidArgument, SourceError, require_finite
from fastsdot.ranks import Ranks

Source = Callable[[int], Tensor]
SourceLike = int | Source | torch.distributions.Distribution


@dataclass(frozen=True)
class Gaussian:
    """z ~ N(0, I): `gaussian(n)` is [n, width]."""

    width: int
    device: torch.device | str = "cpu"
    generator: torch.Generator | None = None
    dtype: torch.dtype = torch.float32

    def __call__(self, n: int) -> Tensor:
        return torch.randn(n, self.width, device=self.device, generator=self.generator, dtype=self.dtype)


@dataclass(frozen=True)
class Pushforward:
    """g(z) + σ ξ for z from a latent source and ξ ~ N(0, I): the distribution g#μ, sampled without gradients.

    With `perturbation` σ > 0 the distribution has a density even where g is piecewise linear and its range is thin,
    which is what makes the optimal map unique (Chen et al. 2019, remark on ReLU networks after theorem 3.2).
    """

    generator: nn.Module
    latent: Source
    perturbation: float = 0.0

    def __call__(self, n: int) -> Tensor:
        return self.at(self.latent(n))

    @torch.no_grad()
    def at(self, z: Tensor) -> Tensor:
        """The samples that belong to the latents z."""
        x = replica(self.generator)(z)
        return x + self.perturbation * torch.randn_like(x) if self.perturbation else x


@dataclass(frozen=True)
class EveryRank:
    """One source of all ranks of a process group: each draws its share of n, and all get the same n samples.

    For a generator that all ranks must run together, as FSDP's, since of other sources rank 0 alone draws where the
    `SemiDiscreteOT` has a group; and for potentials that agree where it has none and every rank solves for itself.
    The group is that of the `SemiDiscreteOT` where it has one, and else the default one unless given. A `Pushforward`
    of an FSDP module is taken as one of every rank; a function has to say so itself, since it hides what it runs.

    Raises `SourceError` when ranks 0 and 1 drew the same samples, and `RankError` when one does not answer.
    """

    source: Source
    group: torch.distributed.ProcessGroup | None = None

    def __call__(self, n: int) -> Tensor:
        ranks = Ranks(self.group or torch.distributed.group.WORLD)
        parts = ranks.gather(self.source(-(-n // ranks.size)))
        if ranks.size > 1 and torch.equal(parts[0], parts[1]) and not torch.equal(parts[0], parts[0].roll(1, 0)):
            remedy = "seed every rank differently, with torch.manual_seed(seed + rank) say"
            raise SourceError("source", "other samples on every rank", "the same on ranks 0 and 1", remedy)
        return parts.flatten(0, 1)[:n]


def over_ranks(source: SourceLike, ranks: Ranks | None) -> SourceLike:
    """The source that ranks draw from together: of every rank where FSDP has shared its generator out.

    Raises `SourceError` for a generator of DTensors without FSDP, as of tensor parallelism, where rank 0 would wait for
    the others: they have to run it on the same latents, which `EveryRank` does not do.
    """
    generator = source.generator if isinstance(source, Pushforward) else None
    if isinstance(generator, nn.Module):
        if in_shards(generator):
            source = EveryRank(source)
        elif ranks is not None and any(hasattr(q, "device_mesh") for q in generator.parameters()):
            expected = "a generator that is whole on every rank, or in shards by FSDP"
            remedy = "leave group= out, and draw the same latents on every rank"
            raise SourceError("source", expected, "parameters that are DTensors", remedy)
    if ranks is not None and isinstance(source, EveryRank):
        return replace(source, group=ranks.group)
    return source


def in_shards(generator: nn.Module) -> bool:
    """Whether FSDP has shared the parameters out, so that all ranks have to run the module together."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel  # not loaded by torch itself

    return any(isinstance(part, FSDPModule | FullyShardedDataParallel) for part in generator.modules())


def replica(generator: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, which can run on one rank alone; any other module as it is."""
    return generator.module if isinstance(generator, nn.parallel.DistributedDataParallel) else generator


def dtype_of(generator: nn.Module) -> torch.dtype:
    """The dtype of a module's first floating point parameter, which latents made for it should have; or float32."""
    return next((q.dtype for q in generator.parameters() if q.is_floating_point()), torch.float32)


def as_source(
    source: SourceLike,
    argument: str = "source",
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Source:
    """`source` as a function of the batch size; an int means N(0, I) of that width, drawn with `generator` in `dtype`.

    Raises `InvalidArgument` when it is neither an int above 0, a distribution nor a callable.
    """
    if isinstance(source, torch.distributions.Distribution):
        return lambda n: source.sample((n,))
    if isinstance(source, int) and not isinstance(source, bool) and source > 0:
        return Gaussian(source, device, generator, dtype)
    if callable(source):
        return source
    raise InvalidArgument(
        argument,
        "a callable n -> [n, ...], a torch distribution, or an int above 0 (the width of N(0, I))",
        repr(source),
        "wrap your sampler in a function of the batch size",
    )


def draw(source: Source, n: int, shape: torch.Size, device: torch.device, finite: bool = True) -> Tensor:
    """A checked batch, flattened to [n, D] float32; whether it is `finite` may be left to the caller.

    Raises `SourceError` when the batch is not a finite tensor of shape [n, *shape] on `device`.
    """
    x = source(n)
    if not isinstance(x, Tensor):
        raise SourceError("source", "a torch.Tensor", type(x).__name__, "convert it, with torch.as_tensor say")
    if tuple(x.shape) != (n, *shape):
        sizes = ", ".join(("n", *map(str, shape)))
        remedy = f"return samples shaped like one target, as lambda n: torch.randn({sizes}) does"
        raise SourceError("source", f"shape {(n, *shape)}", f"shape {tuple(x.shape)}", remedy)
    if x.device.type != device.type or (device.index is not None and x.device != device):
        raise SourceError("source", f"device {device}", f"device {x.device}", "sample there, or move the targets")
    if not x.is_floating_point():
        raise SourceError("source", "a floating point dtype", str(x.dtype), "return x.float()")
    x = x.detach().reshape(n, shape.numel()).float()
    if finite:
        require_finite("source", x, SourceError)
    return x
