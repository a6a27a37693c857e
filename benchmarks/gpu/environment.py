"""What the figures depend on: device, driver, clocks, versions, and exactly which sources were measured."""

import hashlib
import os
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import machine
import torch

from .checkout import ROOT
from .session import Session

PEERS = ("flash-sinkhorn", "flash-kmeans", "safetensors", "matplotlib")  # beside what fastsdot itself computes with
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"


def slug(device: torch.device) -> str:
    """The name of the folder that results of this device go to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def output(*command: str) -> str | None:
    """What a command prints, None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else None


def sources() -> str:
    """A hash of the package's files, which names them where git is not at hand."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "kernels").glob("*.py"), *(ROOT / "fastsdot").glob("*.py")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run(session: Session) -> dict:
    changed = output("git", "status", "--porcelain", "--", "kernels", "fastsdot")
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": output("git", "rev-parse", "HEAD"),
        "changed": changed.splitlines() if changed else [],
        "sources": sources(),
        "small": session.small,
        "backends": session.backends,
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
        **machine.facts(),
        **{package: installed(package) for package in PEERS},
    }
    if session.cuda:
        about = torch.cuda.get_device_properties(session.device)
        found |= {
            "device": about.name,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "memory_gib": round(about.total_memory / 2**30, 1),
            "l2_mib": about.L2_cache_size / 2**20,
            "cuda": torch.version.cuda,
            "nvidia-smi": clocks(),
        }
    return found


def clocks() -> dict[str, str] | None:
    """Driver, clocks, power and temperature at this moment."""
    values = output("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    return dict(zip(QUERY.split(","), values.splitlines()[0].split(", "), strict=True)) if values else None


def folder(device: torch.device) -> Path:
    return machine.RESULTS / slug(device)
