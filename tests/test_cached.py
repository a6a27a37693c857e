"""What numba compiles is found on disk by the next process, and only there where it is the same code."""

import subprocess
import sys

import pytest

pytest.importorskip("numba")

from numba import float32, float64
from numba.core.caching import FunctionCache

from fastsdot.kernels import cached, numba_lists, numba_smallest

EVERY_KERNEL = """
import numba
import torch
from numba.core import event
from fastsdot import SemiDiscreteOT
from fastsdot.errors import BackendUnavailable
from fastsdot.kernels import Form, argmin, prepare, sample, softmin, topk

x, y, bias = torch.randn(9, 8), torch.randn(2000, 8), torch.zeros(2000)
values = []
with event.install_recorder("numba:compile") as compiled:
    for form in (Form("inner"), Form("power"), Form("power", p=2.5)):
        for backend in ("screen", "numba", "gemm"):
            try:
                targets = prepare(y, form, backend)
            except BackendUnavailable:  # of this processor or this form
                continue
            values += argmin(x, targets, bias)[1].tolist() + topk(x, targets, bias, 3)[1].tolist()
            if backend != "screen":
                values += [softmin(x, targets, bias, 0.5).shape, sample(x, targets, bias, 0.5, 1).shape]
    values += [SemiDiscreteOT(y[:9]).bracket(8, 100).samples]
    print(len(values), len(compiled.buffer))
    numba.njit(lambda x: x)(3)
    assert compiled.buffer  # it records
"""


def counts():
    done = subprocess.run([sys.executable, "-c", EVERY_KERNEL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_a_second_process_compiles_nothing():
    values, _ = counts()
    assert counts() == [values, 0]


def test_what_is_kept_on_disk_goes_by_the_files_it_was_compiled_from(tmp_path, monkeypatch):
    for name in ("cached", "numba_tile"):
        (tmp_path / f"{name}.py").write_text(name)
    monkeypatch.setattr(cached, "__file__", str(tmp_path / "cached.py"))
    digest = cached.digest.__wrapped__
    before = digest()
    (tmp_path / "numba_tile.py").write_text("other")
    assert digest() != before
    monkeypatch.undo()
    assert cached.digest() in numba_lists.listed_rows.py_func.__qualname__


def test_functions_made_for_other_arguments_have_other_names():
    def times(factor):
        @cached.compiled(factor)
        def product(x):
            return factor * x

        return product

    twice, thrice = times(2), times(3)
    assert (twice(4), thrice(4)) == (8, 12)
    assert times(2)(5) == 10
    assert twice.py_func.__qualname__ != thrice.py_func.__qualname__


def test_a_file_that_holds_another_type_is_not_used(monkeypatch):
    kept = numba_smallest.first_keys._cache
    found = type("Result", (), {"signature": float64(float32)})()
    monkeypatch.setattr(FunctionCache, "load_overload", lambda *_: found)
    assert kept.load_overload((float32,), None) is found
    assert kept.load_overload((float64,), None) is None


def test_what_cannot_be_kept_is_compiled_all_the_same():
    names = {}
    exec("def twice(x):\n    return 2 * x", names)  # in no file
    assert cached.compiled()(names["twice"])(3) == 6
