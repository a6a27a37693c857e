"""Compiled functions that are kept on disk, so that a second process starts with them in milliseconds.

numba looks for changes in the file of the function alone: after one in a file that it takes intrinsics from, the
function's own must be touched.
"""

from collections.abc import Callable

from numba import njit


def compiled(function: Callable) -> Callable:
    """The function compiled at its first call or found on disk; it runs without the interpreter's lock."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return njit(nogil=True)(function)
