"""Import `fastsdot` from the checkout, installed or not, as an editable install would.

`kernels/` lies beside the package and is named `fastsdot.kernels`; plain import paths cannot say that, a finder can.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


class Kernels(MetaPathFinder):
    """Finds `fastsdot.kernels` at the top level of the checkout."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "fastsdot.kernels":
            return None
        folder = ROOT / "kernels"
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


def use() -> None:
    """Put the checkout before whatever is installed.

    Without safetensors, which only saving needs, the package's own `__init__` is left out: costs and kernels import,
    and the solver says what it lacks.
    """
    sys.path.insert(0, str(ROOT))
    sys.path.append(str(ROOT / "tests"))  # compare.py, the measure of regret
    sys.meta_path.insert(0, Kernels())
    if find_spec("safetensors") is None:
        bare = ModuleType("fastsdot")
        bare.__path__ = [str(ROOT / "fastsdot")]
        sys.modules["fastsdot"] = bare
