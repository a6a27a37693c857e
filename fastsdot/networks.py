"""The generator of the paper's experiments."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(
    latent: int, shape: Sequence[int], hidden: Sequence[int] = (512, 512, 512), std: float | None = 0.02
) -> nn.Sequential:
    """A perceptron [B, latent] → [B, *shape] with ReLU between layers and tanh at the end, so values in [−1, 1].

    Weights are N(0, std²) and biases 0; None keeps torch's initialisation. Source: Chen et al. 2019, section 5.
    """
    widths = (latent, *hidden, math.prod(shape))
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    network = nn.Sequential(*layers[:-1], nn.Tanh(), nn.Unflatten(1, tuple(shape)))
    if std is not None:
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)
    return network
