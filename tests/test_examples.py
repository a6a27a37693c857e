"""Every guide runs at a small size, leaves its picture, and reaches what its docstring promises."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
GUIDES = Path(__file__).parent.parent / "docs" / "guides.md"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def size(picture="out.png"):
    with Image.open(picture) as image:
        assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1]
        return image.size


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_docstring_names_its_command_and_the_guides_list_it(path):
    docstring = re.match(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.S).group(1)
    assert re.search(rf"^    (python|torchrun [-a-z0-9 ]+) examples/{path.name}", docstring, re.M)
    if GUIDES.exists():  # not beside an installed wheel
        assert f"examples/{path.name}" in GUIDES.read_text(encoding="utf-8")


def test_generator():
    trained = load("generator").main(rounds=1, steps=30, targets=50, out=Path("out.png"))
    w = [row["w"] for row in trained.history]
    assert w[1] < 0.7 * w[0]
    assert size()[0] > 400


def test_adversary():
    curve = load("adversary").main(steps=31, targets=60, out=Path("out.png"))
    assert len(curve) == 4
    assert curve[-1] < 0.9 * curve[0]
    assert size()[0] > 400


def test_autoencoder():
    noise, soft, hard, data = load("autoencoder").main(epochs=20, targets=200, tol=0.3, out=Path("out.png"))
    assert data < 1e-3 < hard
    assert max(soft, hard) < 0.8 * noise
    assert size() == (785, 197)


def test_embeddings():
    nearest, solution = load("embeddings").main(targets=150, tol=0.2, out=Path("out.png"))
    assert solution.report.chi2 < 0.3 < nearest.chi2
    assert Path("out.safetensors").exists()
    size()


def test_texture():
    costs = load("texture").main(size=24, scales=2, steps=5, out=Path("out.png"))
    assert len(costs) == 2
    assert 0 < costs[-1] < 0.2
    assert size() == (48, 24)


def test_larger_than_memory():
    solution, peak = load("larger_than_memory").main(path=Path("images.npy"), count=200, memory=1, samples=10)
    assert solution.samples <= 10 * 200
    assert solution.report.empty < 200
    assert peak > 0


def test_four_gpus(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(EXAMPLES / "four_gpus.py"), "--rounds", "1", "--steps", "20", "--targets", "60", "--out", "out.png"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    w = [float(value) for value in re.findall(r"W\s+([\d.]+)", done.stdout)]
    assert len(w) == 2  # rank 0 alone speaks
    assert w[1] < 0.9 * w[0]
    assert torch.tensor(size()).min() > 30
