"""What an installed fastsdot claims, and what it leaves alone."""

import subprocess
import sys
from importlib import metadata, resources


def python(*lines: str, cwd) -> subprocess.CompletedProcess:
    """Run in a fresh interpreter that starts elsewhere and ignores the environment's paths."""
    return subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], cwd=cwd, capture_output=True, text=True)


def test_the_global_name_kernels_is_not_claimed(tmp_path):
    done = python("import fastsdot, importlib.util as u", "print(u.find_spec('kernels'))", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"


def test_importing_fastsdot_loads_no_backend_and_no_front_end(tmp_path):
    heavy = ("triton", "pykeops", "numba", "matplotlib", "sklearn", "PIL", "typer", "rich")
    done = python("import sys, fastsdot", f"print([m for m in {heavy} if m in sys.modules])", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_package_is_typed_and_carries_its_kernels():
    assert resources.files("fastsdot").joinpath("py.typed").is_file()
    from fastsdot import kernels

    assert kernels.__name__ == "fastsdot.kernels"


def test_the_kernels_refuse_a_second_name(tmp_path):
    done = python(
        "import fastsdot.kernels, importlib.util as u",
        "spec = u.spec_from_file_location('kernels', fastsdot.kernels.__file__)",
        "spec.loader.exec_module(u.module_from_spec(spec))",
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "expected to be imported as fastsdot.kernels, not as kernels" in done.stderr


def test_the_licence_travels_with_the_package():
    about = metadata.metadata("fastsdot")
    assert about["License-Expression"] == "MIT"
    assert about["License-File"] == "LICENSE"
