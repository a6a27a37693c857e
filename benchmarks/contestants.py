"""Who is timed: fastsdot as it chooses, each of its backends by name, and the peers that are installed.

A contestant turns a problem into a function without arguments that returns the chosen indices, with everything that
depends on the targets alone done beforehand; where it cannot run it raises `AbsentError` with the reason.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
import torch_peers
from problems import Problem
from torch import Tensor

from fastsdot.costs import Embedding, make_cost
from fastsdot.kernels import BACKENDS, Prepared, argmin, prepare, refusal, sample, soft_marginal, softmin, topk

Run = Callable[[], Tensor]
OURS = "fastsdot"
TEMPERATURE, NEAREST = 0.5, 8  # ε as a share of √D, and k, of the reductions that need them

Reduce = Callable[[Tensor, Prepared, Tensor], Tensor]
REDUCE: dict[str, Reduce] = {
    "argmin": lambda x, y, bias: argmin(x, y, bias)[1],
    "softmin": lambda x, y, bias: softmin(x, y, bias, TEMPERATURE * x.shape[1] ** 0.5),
    "soft_marginal": lambda x, y, bias: soft_marginal(x, y, bias, TEMPERATURE * x.shape[1] ** 0.5)[1],
    "topk": lambda x, y, bias: topk(x, y, bias, NEAREST)[1],
    "sample": lambda x, y, bias: sample(x, y, bias, TEMPERATURE * x.shape[1] ** 0.5, seed=0),
}


class AbsentError(Exception):
    """This contestant does not run this problem here."""


def need(module: str, package: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # faiss's SWIG types
            return import_module(module)
    except ModuleNotFoundError as error:
        raise AbsentError(f"not installed: pip install {package}") from error


@lru_cache(maxsize=1)
def embedded(problem: Problem) -> Embedding:
    return make_cost(problem.cost).embed_targets(problem.y)


def fastsdot(problem: Problem, backend: str | None = None, reduction: str = "argmin") -> Run:
    cost, embedding = make_cost(problem.cost), embedded(problem)
    y, form = embedding.y, embedding.form
    for needed in {"argmin", reduction} if backend is not None else ():
        reason = refusal(backend, form, needed, y.device, *y.shape)
        if reason is not None:
            raise AbsentError(reason)
    targets, reduce = prepare(y, form, backend), REDUCE[reduction]
    x = problem.x
    return lambda: reduce(cost.embed(x, embedding.centre), targets, embedding.column)


def cdist(problem: Problem) -> Run:
    x, y, p = problem.x, problem.y, 1.0 if problem.cost == "l1" else 2.0
    return lambda: torch.cdist(x, y, p=p).argmin(1)


def addmm(problem: Problem) -> Run:
    if problem.cost == "l1":
        raise AbsentError("l1 is not a product")
    x, y = problem.x, problem.y
    square = y.square().sum(1)
    return lambda: torch.addmm(square, x, y.T, alpha=-2).argmin(1)


def blocked(problem: Problem) -> Run:
    if problem.cost == "l1":
        raise AbsentError("l1 is not a product")
    return torch_peers.blocked(problem)


def compiled(problem: Problem) -> Run:
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise AbsentError("inductor needs a C++ compiler: install g++")
    return torch_peers.compiled(problem)


def faiss(problem: Problem) -> Run:
    module = need("faiss", "faiss-cpu")
    index = module.IndexFlat(problem.d, module.METRIC_L1 if problem.cost == "l1" else module.METRIC_L2)
    index.add(problem.y.numpy())
    x = problem.x.numpy()
    return lambda: torch.from_numpy(index.search(x, 1)[1][:, 0])


def scikit_learn(problem: Problem) -> Run:
    nearest = need("sklearn.metrics", "scikit-learn").pairwise_distances_argmin
    x, y, metric = problem.x.numpy(), problem.y.numpy(), "manhattan" if problem.cost == "l1" else "sqeuclidean"
    return lambda: torch.from_numpy(nearest(x, y, metric=metric))


CONTESTANTS: dict[str, Callable[[Problem], Run]] = {
    OURS: fastsdot,
    **{f"fastsdot[{name}]": (lambda problem, name=name: fastsdot(problem, name)) for name in BACKENDS},
    "torch.cdist + argmin": cdist,
    "torch.addmm + argmin": addmm,
    "blocked torch": blocked,
    "torch.compile": compiled,
    "FAISS": faiss,
    "scikit-learn": scikit_learn,
}
