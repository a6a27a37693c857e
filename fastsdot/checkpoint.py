"""Files of nested state: a safetensors file each, the arrays inside and the rest as JSON in its metadata.

A file is written beside its final name and renamed, so a run that is killed leaves the last whole one.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastsdot.errors import InvalidArgument, RunError


def write(path: Path, state: dict[str, Any]) -> None:
    """Save dicts, lists, tensors, JSON values and NumPy scalars; dict keys may be str or int."""
    arrays: dict[str, Tensor] = {}
    tree = json.dumps(_split(state, "state", arrays))
    replace_file(path, safetensors.torch.save(arrays, metadata={"fastsdot": tree}))


def read(
    path: str | Path, device: torch.device | str = "cpu", error: type[InvalidArgument] = RunError
) -> dict[str, Any]:
    """What `write` saved, arrays on `device`. Raises `error` when the file is missing or not whole."""
    try:
        with safetensors.safe_open(path, "pt", device=str(device)) as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            return _join(json.loads(file.metadata()["fastsdot"]), arrays)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as cause:
        received = f"{path} ({cause})"
        raise error("path", "a whole file that fastsdot saved", received, "check the path, or start anew") from cause


def write_json(path: Path, value: Any) -> None:
    """Save a JSON file, whole or not at all."""
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _split(value: Any, name: str, arrays: dict[str, Tensor]) -> Any:
    """JSON of `value` in which each tensor stands as {"tensor": its name} and each dict as {"items": pairs}."""
    if isinstance(value, Tensor):
        arrays[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _split(entry, f"{name}.{key}", arrays)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(entry, f"{name}.{i}", arrays) for i, entry in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _join(value: Any, arrays: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_join(entry, arrays) for entry in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return arrays[value["tensor"]]
        return {key: _join(entry, arrays) for key, entry in value["items"]}
    return value
