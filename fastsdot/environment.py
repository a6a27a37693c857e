"""What this machine has: versions, devices, and the backends that run here with the reasons why others cannot."""

import os
from dataclasses import dataclass
from importlib import metadata

import torch

from fastsdot import costs
from fastsdot.kernels import BACKENDS, refusal
from fastsdot.kernels.select import select

PACKAGES = ("torch", "numpy", "numba", "triton", "pykeops")
TARGETS, DIMENSION = 60_000, 784  # the problem that backends are asked about, the size of MNIST


@dataclass(frozen=True)
class Choice:
    """Which backend runs the argmin of a cost, and why the others cannot (None where one could)."""

    cost: str
    fastest: str
    refusals: dict[str, str | None]


def versions() -> dict[str, str | None]:
    """The installed versions of what fastsdot computes with, None for what is missing."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def devices() -> dict[str, str]:
    """Every device that torch can compute on here, and what it is."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": f"{count} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, sm_{about.major}{about.minor}"
    return found


def backends(device: torch.device) -> list[Choice]:
    """For every cost, which backend runs on `device` for 60 000 targets of dimension 784."""
    choices = []
    y = torch.zeros(1, DIMENSION)
    for name in costs.NAMES:
        cost = costs.make_cost(name, 1.5 if name == "lp" else None)
        if cost.name != name:
            continue  # an alias
        form = cost.embed_targets(y).form
        refused = {b: refusal(b, form, "argmin", device, TARGETS, DIMENSION) for b in BACKENDS}
        choices.append(Choice(name, select(form, "argmin", device, TARGETS, DIMENSION, None), refused))
    return choices
