"""The guide to flow matching and its example run as written, at a small size."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from fastsdot.data import load, pixels

ROOT = Path(__file__).parent.parent
EXAMPLE, GUIDE = ROOT / "examples" / "flow_matching.py", ROOT / "docs" / "flow-matching.md"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="a wheel has no examples")
def test_the_example_trains_and_draws(tmp_path, capsys):
    pytest.importorskip("torchcfm")
    runpy.run_path(str(EXAMPLE))["main"](out=tmp_path / "flow.png", steps=50, beside=True)
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines if line.startswith("step ")]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert (tmp_path / "flow.png").stat().st_size > 1_000


@pytest.mark.skipif(not GUIDE.exists(), reason="a wheel has no documents")
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")
def test_the_guides_blocks_run_in_turn():
    for package in ("torchcfm", "torchebm", "flow_matching"):
        pytest.importorskip(package)

    class Still(torch.nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    known = {"images": pixels(load("digits").images)[:150], "labels": torch.arange(150) % 3, "net": Still()}
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S):
        exec(compile(block, GUIDE, "exec"), known)
    assert torch.equal(known["sample"].dx_t, known["x_1"] - known["x_0"])
    assert torch.equal(known["sample"].dx_t, known["ut"])
    assert known["loss"].isfinite()
    assert torch.equal(known["y"], known["labels"][:64])
