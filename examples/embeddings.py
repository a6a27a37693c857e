"""Transport noise onto your embeddings, so that every one of them is drawn equally often.

You learn what nearest neighbours get wrong, where a few embeddings attract many samples, and that ψ mends it.

    python examples/embeddings.py --data embeddings.npy --out embeddings.png
"""

from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import torch
import typer

from fastsdot import SemiDiscreteOT
from fastsdot.data import load


def main(
    data: Annotated[str, typer.Option(help="a .npy file of [N, D], or digits, which are embedded by PCA")] = "digits",
    tol: float = 0.05,
    targets: Annotated[int | None, typer.Option(help="use only the first so many")] = None,
    out: Path = Path("embeddings.png"),
    seed: int = 0,
):
    torch.manual_seed(seed)
    points = load(data).images[:targets].flatten(1).float()
    centred = points - points.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh
    points = centred @ axes[:16].T if data == "digits" else points
    noise = torch.distributions.MultivariateNormal(points.mean(0), points.T.cov() + 1e-4 * torch.eye(points.shape[1]))

    ot = SemiDiscreteOT(points)
    nearest = ot.evaluate(noise, 50_000)  # ψ = 0: T(x) is the nearest embedding
    solution = ot.solve(noise, tol=tol)
    ot.save(out.with_suffix(".safetensors"))  # SemiDiscreteOT.load(path, points) brings it back
    for name, report in (("nearest", nearest), ("transport", solution.report)):
        print(f"{name:9}  χ² {report.chi2:6.3f}, most drawn {report.max_ratio:5.1f} × 1/N, never drawn {report.empty}")

    x = noise.sample((100,))
    y = ot.transport(x)
    plane = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh[:2].T
    fig, ax = plt.subplots(figsize=(6, 6), layout="constrained")
    ax.scatter(*(points @ plane).T, s=3, color="0.7", label="embeddings")
    ax.quiver(*(x @ plane).T, *((y - x) @ plane).T, angles="xy", scale_units="xy", scale=1, width=0.002, color="C0")
    ax.scatter(*(x @ plane).T, s=8, color="C3", label="noise")
    ax.set(xlabel="first principal axis", ylabel="second principal axis", title="noise and what it is transported to")
    ax.legend()
    fig.savefig(out, dpi=110)
    plt.close(fig)
    return nearest, solution


if __name__ == "__main__":
    typer.run(main)
