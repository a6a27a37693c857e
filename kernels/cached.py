"""Compiled functions that are kept on disk, so that a second process starts with them in milliseconds.

numba finds them by the name of the function and the text of its file. What they take from other files counts as well:
the name that it sees ends with a digest of all files here. A function made by another function for given arguments,
which numba would tell from its sisters by what it encloses, and so differently in each process, has them in its name.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache


@cache
def digest() -> str:
    """Of the files beside this one."""
    found = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


class ByName(FunctionCache):
    """numba's cache with the name of the function as its key, beside the types and the processor."""

    def _index_key(self, sig, codegen):
        return sig, codegen.magic_tuple(), self._py_func.__qualname__

    def load_overload(self, sig, target_context):
        """None for other types: processes that save at the same time may have taken the same file for two."""
        found = super().load_overload(sig, target_context)
        return found if found is not None and found.signature.args == tuple(sig) else None


def compiled(*arguments: object, **options: object) -> Callable[[Callable], Callable]:
    """Turns a function into one compiled at its first call or found on disk, that runs without the interpreter's lock.

    `arguments` are those of the function that made it, `options` are numba's.
    """

    def compile_or_find(function: Callable) -> Callable:
        function.__qualname__ = "_".join(map(str, (function.__qualname__, *arguments, digest())))
        dispatcher = njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # neither the package's folder nor the user's can be written to
            dispatcher._cache = ByName(function)
        return dispatcher

    return compile_or_find
