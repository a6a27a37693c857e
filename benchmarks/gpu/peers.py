"""What others offer for the same argmin on a GPU; each is as in `contestants.py`, and says why it does not run.

Targets are prepared where a peer allows it: ‖y‖² − ψ is computed once, as fastsdot does. KeOps is fastsdot's own
backend "keops", which hands it the formula and nothing else.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from contestants import AbsentError, Run, cdist, need
from problems import Problem

CHUNK_SCORES = 2**27  # of a chunk of products: 512 MiB of float32, enough for cuBLAS to run at full speed
AUTOTUNED = 784  # the dimension at which flash-sinkhorn may search its 44 launches, which takes a minute


def squares(problem: Problem) -> torch.Tensor:
    """‖y‖² − ψ for ψ = 0, [N]."""
    if problem.cost != "sqeuclidean":
        raise AbsentError(f"it has no {problem.cost}")
    return problem.y.square().sum(1)


def only_cuda(problem: Problem) -> None:
    if not problem.device.startswith("cuda"):
        raise AbsentError(f"it needs CUDA, not {problem.device}")


def cublas(problem: Problem, precision: str) -> Run:
    """Chunks of products and their smallest entries, merged at the end."""
    square, x, b = squares(problem), problem.x, problem.b
    width = max(1024, CHUNK_SCORES // b)
    y, bias = problem.y.split(width), square.split(width)

    def run() -> torch.Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            found = [torch.addmm(add, x, part.T, alpha=-2).min(1) for part, add in zip(y, bias, strict=True)]
        finally:
            torch.set_float32_matmul_precision(before)
        best = torch.stack([low for low, _ in found]).argmin(0)
        return torch.stack([index + i * width for i, (_, index) in enumerate(found)]).gather(0, best[None])[0]

    return run


@cache
def compiled(cost: str) -> Callable[..., torch.Tensor]:
    def products(x: torch.Tensor, y: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return (square - 2 * x @ y.T).argmin(1)

    def differences(x: torch.Tensor, y: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return (x[:, None] - y[None]).abs().sum(-1).argmin(1)

    return torch.compile(differences if cost == "l1" else products, dynamic=True)


def torch_compile(problem: Problem) -> Run:
    only_cuda(problem)
    x, y, square = problem.x, problem.y, problem.y.square().sum(1)
    nearest = compiled(problem.cost)
    return lambda: nearest(x, y, square)


def flash_sinkhorn(problem: Problem, autotune: bool) -> Run:
    """`c_transform_fwd(x, y, psi)`: TF32, one program for each block of samples."""
    only_cuda(problem)
    squares(problem)
    if autotune and problem.d != AUTOTUNED:
        raise AbsentError(f"its search takes a minute for each dimension, and is made for D={AUTOTUNED} alone")
    transform = need("flash_sinkhorn", "flash-sinkhorn").c_transform_fwd
    x, y, psi = problem.x, problem.y, problem.x.new_zeros(problem.n)
    return lambda: transform(x, y, psi, autotune=autotune)[1]


def flash_kmeans(problem: Problem) -> Run:
    """Assignment to centroids y, with ‖y‖² − ψ in the place of their norms."""
    only_cuda(problem)
    norms = squares(problem)[None]
    assign = need("flash_kmeans.assign_euclid_triton", "flash-kmeans").euclid_assign_triton
    x, y = problem.x[None], problem.y[None]
    square = x.square().sum(2)
    return lambda: assign(x, y, square, c_sq=norms)[0]


PEERS: dict[str, Callable[[Problem], Run]] = {
    "cuBLAS chunks, fp32": partial(cublas, precision="highest"),
    "cuBLAS chunks, tf32": partial(cublas, precision="high"),
    "torch.cdist + argmin": cdist,
    "torch.compile": torch_compile,
    "flash-sinkhorn": partial(flash_sinkhorn, autotune=False),
    "flash-sinkhorn, autotuned": partial(flash_sinkhorn, autotune=True),
    "flash-kmeans": flash_kmeans,
}
