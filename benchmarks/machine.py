"""Which machine a result comes from, and where its results are kept."""

import os
import platform
import re
from pathlib import Path

import torch

from fastsdot.environment import versions

RESULTS = Path(__file__).parent / "results"


def cpu() -> str:
    """The processor's name as the system gives it."""
    try:
        names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def folder() -> Path:
    """benchmarks/results/<cpu name>."""
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", cpu().lower()).strip("-")


def facts() -> dict[str, object]:
    """What a figure depends on beside the code."""
    units = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in _flags()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "units": units,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **versions(),
    }


def _flags() -> list[str]:
    try:
        found = re.search(r"^flags\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return []
    return found.group(1).split() if found else []
