"""Flow matching in five lines: a training loop of torchcfm that learns straight paths to the whole data set.

    pip install 'fastsdot[train,flow]' && pip install --no-deps torchcfm
    python examples/flow_matching.py --out digits.png

The loop is the usual one; the five numbered lines make it semi-discrete. The network may be any function of (t, x). The
batch of data that torchcfm pairs the noise with is no longer needed: the coupling chooses from all of the data set.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
import typer
from torch import nn
from torchcfm import ExactOptimalTransportConditionalFlowMatcher

from fastsdot import SemiDiscreteOT, sheets
from fastsdot.background import Background
from fastsdot.couplings import Coupling
from fastsdot.data import load, pixels


class Velocity(nn.Module):
    """v(t, x), a small network for small images."""

    def __init__(self, shape: torch.Size, width: int = 256):
        super().__init__()
        size = shape.numel()
        layers = [nn.Linear(size + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)]
        self.net = nn.Sequential(*layers)

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([x.flatten(1), t.expand(len(x))[:, None]], 1)).view_as(x)


@torch.no_grad()
def sample(net: nn.Module, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Euler's method from t = 0 to 1."""
    x = noise
    for k in range(steps):
        x = x + net(torch.tensor(k / steps), x) / steps
    return x


def main(
    out: Path = Path("flow.png"), data: str = "digits", steps: int = 5_000, batch: int = 128, beside: bool = False
) -> None:
    """Train on DATA for so many STEPS and write images made with 1, 2, 4 and 8 Euler steps to OUT.

    With --beside the coupling goes on solving while the network trains.
    """
    images = pixels(load(data).images)
    net = Velocity(images.shape[1:])
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def noise(n: int) -> torch.Tensor:
        return torch.randn(n, *images.shape[1:])

    ot = SemiDiscreteOT(images)  # 1: the targets are the whole data set
    solution = ot.solve(noise, tol=0.1)  # 2: once
    matcher.ot_sampler = coupling = Coupling(ot)  # 3
    print(solution.reason, solution.report, sep="\n")
    with Background(coupling, noise, tol=0.02) if beside else nullcontext():  # 4: or without
        for step in range(steps):
            t, xt, ut = matcher.sample_location_and_conditional_flow(noise(batch), None)  # 5: no batch of data
            loss = (net(t, xt) - ut).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % max(1, steps // 10) == 0:
                print(f"step {step}: loss {loss.item():.3f}")

    start = noise(16)
    rows = torch.cat([sample(net, start, count) for count in (1, 2, 4, 8)])
    sheets.save(out, sheets.enlarge(sheets.tile(sheets.to_bytes(rows), columns=16)[None], 640)[0])
    print(f"{out}: 1, 2, 4 and 8 Euler steps, a row each")


if __name__ == "__main__":
    typer.run(main)
