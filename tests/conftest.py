"""What pytest needs to know of these tests as a whole."""

import subprocess
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Files that take longest first, so that of several workers none begins them last."""
    items.sort(key=lambda item: not item.path.name.startswith("test_triton_"))


@pytest.fixture(scope="module")
def process(request):
    """The result of the command, a tuple of words, that tests are parametrized with."""
    return subprocess.run(["env", *request.param], cwd=Path(__file__).parent, capture_output=True, text=True)
