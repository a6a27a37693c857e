"""Quasi-random samples: as a source's own, but spread evenly, so that means over them are nearer to their expectations.

A scrambled Sobol' sequence u in (0, 1)^d is mapped by quantiles, coordinate by coordinate. Each point has the source's
distribution, all together have not: they are for fits, never for a verdict.
Source: Owen, Scrambled net variance for integrals of smooth functions, Annals of Statistics 1997.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.quasirandom import SobolEngine

from fastsdot.sources import Gaussian, Pushforward, Source, SourceLike

WIDEST = 8  # coordinates; the more there are, the less is gained over samples that serve a verdict as well


def evenly(source: SourceLike, device: torch.device, generator: torch.Generator | None) -> Source | None:
    """A source of quasi-random samples in place of `source`, or None where none is known.

    Known are independent coordinates, up to `WIDEST`, of Gaussian noise and of distributions with quantiles (`icdf`),
    and what a `Pushforward` makes of them.
    """
    if isinstance(source, Pushforward):
        latent = evenly(source.latent, device, generator)
        return latent and replace(source, latent=latent)
    if isinstance(source, int):
        source = Gaussian(source, device, generator)
    if isinstance(source, Gaussian):
        zero, dtype = torch.zeros(source.width, device=source.device, dtype=torch.float64), source.dtype
        spread = evenly(Normal(zero, 1 + zero), device, source.generator)
        return spread and (lambda n: spread(n).to(dtype))
    while isinstance(source, Independent):
        source = source.base_dist
    if not isinstance(source, Distribution) or source.event_shape or source.batch_shape.numel() > WIDEST:
        return None
    return quantiles(source, generator)


def quantiles(distribution: Distribution, generator: torch.Generator | None) -> Source | None:
    """Quantiles of a scrambled Sobol' sequence, seeded by the generator; None where they or the mean are not known."""
    shape = distribution.batch_shape
    try:
        median = distribution.mean.new_tensor(0.5)
        distribution.icdf(median.expand(shape))
    except NotImplementedError:
        return None
    exact = torch.finfo(median.dtype).eps
    device = generator.device if generator else "cpu"
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    engine = SobolEngine(shape.numel(), scramble=True, seed=seed)

    def draw(n: int) -> Tensor:
        u = engine.draw(n, dtype=torch.float64).clamp(exact, 1 - exact)  # 0 and 1 may be at infinity
        return distribution.icdf(u.to(median).view(n, *shape))

    return draw
