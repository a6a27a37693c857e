"""Data on which the screens are tried: samples, targets and biases for both forms."""

import pytest
import torch
from compare import reference, regret

from fastsdot.kernels import Form

INNER, L1 = Form("inner", scale=2.0), Form("power")
B, N, D = 40, 3001, 97


def residual(v):
    unit = v.abs().amax(1, keepdim=True) / 127
    return v - unit * (v / unit).round()


def squares(x, y):
    return x, y, y.square().sum(1)


def near_ties(g):
    """Scores that differ by the last bits of float32."""
    y = torch.randn(1, D, generator=g) * (1 + 2.0**-23 * torch.randint(-2, 3, (N, D), generator=g))
    return squares(torch.randn(B, D, generator=g), y)


def aligned(g):
    """Samples along the error of a target's code, where the bound leaves no room, and the reverse."""
    y = torch.randn(N, D, generator=g)
    x = torch.cat([1e3 * residual(y)[: B // 2], torch.randn(B // 2, D, generator=g)])
    y[-B // 2 :] = 1e3 * residual(x[B // 2 :])
    return x, y, torch.zeros(N)


def clustered(g):
    centre = torch.randn(10, D, generator=g)
    x, y = (centre[torch.arange(n) % 10] + 1e-3 * torch.randn(n, D, generator=g) for n in (B, N))
    return squares(x, y)


def gaussian(g, scale=1.0, mean=0.0):
    return squares(*(mean + scale * torch.randn(n, D, generator=g) for n in (B, N)))


def heavy_tailed(g):
    x, y = (torch.randn(n, D, generator=g) / torch.randn(n, D, generator=g).abs() for n in (B, N))
    return squares(x, y)


def duplicated(g):
    x, y, bias = gaussian(g)
    return x, y[:100].repeat(31, 1)[:N], bias[:100].repeat(31)[:N]


def images(g, levels=256):
    """Targets that are almost all black at the edge, samples beyond their range; both as `torchvision` scales bytes."""
    y = torch.randint(0, levels, (N, D), generator=g) * (torch.rand(D, generator=g) > 0.3) / (levels - 1)
    return 0.5 + 0.5 * torch.randn(B, D, generator=g), y, torch.zeros(N)


def halfway(g):
    """Samples in the middle between codes, as far from the grid as can be."""
    y = torch.randint(0, 256, (N, D), generator=g) / 255
    return (torch.randint(0, 255, (B, D), generator=g) + 0.5) / 255, y, torch.zeros(N)


def outliers(g):
    """A few targets far from all others, which must not set the unit."""
    x, y, bias = gaussian(g)
    y[::500] *= 1e4
    return x, y, bias


def level(g):
    """Samples near one point and biases that make up for it, as after a solve: only the small differences decide."""
    x, y, _ = gaussian(g)
    x = 1 + 0.02 * x
    return x, y, 2 * y @ x.mean(0)


FAMILIES = {
    "gaussian": gaussian,
    "clustered": clustered,
    "duplicated": duplicated,
    "offset": lambda g: gaussian(g, mean=1e3),
    "tiny": lambda g: gaussian(g, 1e-4),
    "minute": lambda g: gaussian(g, 1e-18),
    "large scores": lambda g: gaussian(g, 20.0),
    "heavy tails": heavy_tailed,
    "bytes": lambda g: squares(*(torch.randint(0, 256, (n, D), generator=g) / 255 for n in (B, N))),
    "near ties": near_ties,
    "aligned": aligned,
    "level": level,
    "large bias": lambda g: (*gaussian(g)[:2], 1e6 + 10 * torch.randn(N, generator=g)),
    "zeros": lambda g: (torch.zeros(B, D), torch.zeros(N, D), torch.zeros(N)),
    "images": images,
    "digits": lambda g: images(g, 17),
    "halfway": halfway,
    "outliers": outliers,
}
ONLY = {"inner": ("aligned", "large scores"), "l1": ("images", "digits", "halfway", "outliers")}
CASES = [
    pytest.param(form, family, id=f"{name}-{family}")
    for name, form, other in (("inner", INNER, "l1"), ("l1", L1, "inner"))
    for family in FAMILIES
    if family not in ONLY[other]
]
every_case = pytest.mark.parametrize(("form", "family"), CASES)
both = pytest.mark.parametrize("form", [INNER, L1], ids=["inner", "l1"])


def make(form, family):
    """Samples, targets and biases; those of l1 are of the size of the cost and level it, as after a solve."""
    x, y, bias = FAMILIES[family](torch.Generator().manual_seed(0))
    if form is L1:
        bias = (bias if family == "large bias" else 0) - reference(x, y, torch.zeros(N), L1).mean(0).float()
    return x, y, bias


def assert_float64(form, x, y, bias, value, index):
    """Regret within the rounding of float64, far below what float32 is allowed."""
    score = reference(x, y, bias, form)
    finite = bias[bias < torch.inf].double()
    size = finite.abs().max() + (
        2 * x.double().norm(dim=1) * y.double().norm(dim=1).max()
        if form is INNER
        else reference(x, y, torch.zeros(len(y)), L1).amax(1)
    )
    assert (regret(score, index) <= 2.0**-44 * size).all()
    assert torch.allclose(value.double(), score.amin(1), rtol=2.0**-23, atol=float(2.0**-44 * size.max()) + 1e-45)
