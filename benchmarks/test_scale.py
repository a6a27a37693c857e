"""A solve step on targets that outgrow memory: seconds beside the same step in memory, and the peak of memory.

FASTSDOT_SCALE is the number of targets of 3 × 32 × 32 bytes, 10⁶ by default, which is a file of 3 GB. Each case runs in
a process of its own; VmHWM is the most memory that it ever held, Python, torch and numba included.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

SHAPE = (3, 32, 32)
N = int(os.environ.get("FASTSDOT_SCALE", 10**6))
BATCH = int(os.environ.get("FASTSDOT_BATCH", 256))
ROUNDS = int(os.environ.get("FASTSDOT_ROUNDS", 3))
LIMIT = 2**30  # of layouts: what is larger is read in blocks
MOST = 1536  # MiB
WARM = 12_000  # targets in blocks of the same size


def write(path: Path, n: int) -> None:
    """Images from a 32-dimensional model with noise, so that neighbours differ."""
    random = np.random.default_rng(0)
    basis = 8 * random.normal(size=(32, int(np.prod(SHAPE)))).astype(np.float32)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, *SHAPE))
    for start in range(0, n, 10_000):
        rows = images[start : start + 10_000].reshape(-1, basis.shape[1])
        values = random.normal(size=(len(rows), len(basis))).astype(np.float32) @ basis
        rows[:] = np.clip(128 + values + random.integers(-8, 9, values.shape), 0, 255)
    images.flush()


def memory() -> dict[str, int]:
    """MiB at the peak and now, anonymous pages apart from those of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {name[:-1]: int(rest[0]) // 1024 for name, *rest in lines if name in ("VmHWM:", "RssAnon:", "RssFile:")}


def run(path: str, places: list[str]) -> None:
    """Time hard and smoothed steps with targets in each place, in turn, and print seconds and memory as JSON."""
    from fastsdot import SemiDiscreteOT

    x = torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))
    transports, found = {}, {}
    for place in places:
        targets = np.load(path, mmap_mode="r")
        if place != "file":
            targets = torch.from_numpy(np.array(targets))
        clock = time.perf_counter()
        ot = SemiDiscreteOT(targets, memory=None if place == "layouts" else LIMIT)
        found[f"{place}, built"] = time.perf_counter() - clock
        few = SemiDiscreteOT(targets[:WARM], memory=None if place == "layouts" else 2**28)
        for epsilon in (0.0, 1.0):  # compile
            few._marginal(ot._flat(x), few.potential, epsilon)
        transports[place] = ot
    for name, epsilon in (("hard", 0.0), ("smoothed", 1.0)):
        times: dict[str, list[float]] = {place: [] for place in places}
        spent: dict[str, list[float]] = {place: [] for place in places}
        for _ in range(ROUNDS if len(places) > 1 else 1):
            for place, ot in transports.items():
                clock, cpu = time.perf_counter(), time.process_time()
                ot._marginal(ot._flat(x), ot.potential, epsilon)
                times[place].append(time.perf_counter() - clock)
                spent[place].append(time.process_time() - cpu)
        found |= {f"{place}, {name}": median(seconds) for place, seconds in times.items()}
        found |= {f"{place}, {name}, CPU": min(seconds) for place, seconds in spent.items()}
    print(json.dumps(found | memory()))


def measure(path: Path, *places: str) -> dict[str, float]:
    command = [sys.executable, __file__, str(path), *places]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("scale") / "images.npy"
    write(path, N)
    yield path
    path.unlink()


def test_peak_memory(benchmark, row, images):
    found = benchmark.pedantic(measure, (images, "file"), rounds=1)
    benchmark.extra_info |= found | {"targets": N, "batch": BATCH}
    for name in ("built", "hard", "smoothed"):
        row(f"{N} targets in a file, B={BATCH}, {found['VmHWM']} MiB at the peak", name, found[f"file, {name}"])
    assert found["VmHWM"] <= MOST


@pytest.mark.parametrize("place", ["host", "layouts"])
def test_speed_beside_memory(benchmark, row, images, place):
    """The same step on bytes in memory, and on float32 layouts where they fit."""
    if place == "layouts" and N > 10**5:
        pytest.skip("set FASTSDOT_SCALE to at most 100 000, whose layouts take 2.8 GB")
    found = benchmark.pedantic(measure, (images, "file", place), rounds=1)
    benchmark.extra_info |= found | {"targets": N, "batch": BATCH}
    for name in ("hard", "smoothed"):
        title = f"{N} targets, B={BATCH}, {name} step"
        row(title, "file", found[f"file, {name}"])
        row(title, place, found[f"{place}, {name}"])
        assert place == "layouts" or found[f"{place}, {name}, CPU"] >= 0.8 * found[f"file, {name}, CPU"]


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
