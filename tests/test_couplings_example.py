"""The guide to flow matching runs as written, at a small size."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "flow_matching.py"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="a wheel has no examples")
def test_the_example_trains_and_draws(tmp_path, capsys):
    pytest.importorskip("torchcfm")
    runpy.run_path(str(EXAMPLE))["main"](out=tmp_path / "flow.png", steps=50, beside=True)
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines if line.startswith("step ")]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert (tmp_path / "flow.png").stat().st_size > 1_000
