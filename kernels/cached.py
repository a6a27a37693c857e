"""Compiled functions that are kept on disk, so that a second process starts with them in milliseconds.

numba finds them by the name of the function and the text of its file. What they take from other files counts as well:
the name that it sees ends with a digest of all files here that it compiles from.
"""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

from numba import njit


@cache
def digest() -> str:
    """Of the files beside this one whose names begin with numba."""
    found = sha256()
    for path in sorted(Path(__file__).parent.glob("numba*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def compiled(function: Callable) -> Callable:
    """The function compiled at its first call or found on disk; it runs without the interpreter's lock."""
    function.__qualname__ += f"_{digest()}"
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return njit(nogil=True)(function)
