"""The README's code runs as printed."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S))
def test_python_blocks_run(code, capsys):
    variables = {}
    exec(compile(code, README, "exec"), variables)
    assert variables["images"].shape == (16, 8, 8)
    assert variables["solution"].converged
    assert "chi2" in capsys.readouterr().out
