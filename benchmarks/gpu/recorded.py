"""Launches of a kernel as the library makes them, to be made again: alone, by another kernel, with other operands."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Launched:
    """One launch: the kernel, its grid, its arguments and options by name, and what the compiler made of it."""

    kernel: Any
    grid: tuple[int, ...]
    named: dict[str, Any]
    compiled: Any  # None where it was interpreted

    @property
    def arguments(self) -> dict[str, Any]:
        """Without the options, which are no arguments of the kernel."""
        return {name: self.named[name] for name in self.kernel.arg_names if name in self.named}

    @property
    def spills(self) -> int:
        """Of the kernel, in registers of a thread."""
        return 0 if self.compiled is None else self.compiled.n_spills

    def again(self, **changed: Any) -> Callable[[], object]:
        """The same launch, with some arguments or options changed."""
        named = self.named | changed
        return lambda: self.kernel[self.grid](**named)


class Recorder:
    """Stands for a kernel and remembers its launches."""

    def __init__(self, kernel: Any):
        self.kernel, self.launches = kernel, []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        def launch(*arguments: Any, **options: Any) -> object:
            named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | options
            compiled = self.kernel[grid](**named)
            self.launches.append(Launched(self.kernel, grid, named, compiled))
            return compiled

        return launch


@contextmanager
def recorded(*kernels: tuple[ModuleType, str]) -> Iterator[list[Launched]]:
    """The launches of kernels, named by their modules, while it is entered; in the order of the names, at its end."""
    recorders = [Recorder(getattr(module, name)) for module, name in kernels]
    launches: list[Launched] = []
    with ExitStack() as stack:
        for (module, name), recorder in zip(kernels, recorders, strict=True):
            setattr(module, name, recorder)
            stack.callback(setattr, module, name, recorder.kernel)
        try:
            yield launches
        finally:
            for recorder in recorders:
                launches += recorder.launches
