"""With the real packages: Lightning's trainer, Hugging Face's data sets, DistributedDataParallel and FSDP, loggers."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastsdot import SemiDiscreteOT, fit, train
from fastsdot.datasets import targets_from
from fastsdot.errors import DataError
from fastsdot.networks import mlp

WORKER = Path(__file__).with_name("ecosystem_worker.py")
BYTES = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)

# What Lightning and torch themselves warn of, on machines without a GPU and with few workers.
quiet = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning", "ignore:.*LeafSpec.*")


def launch(folder, *cases):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, str(folder), *cases], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]


def test_generators_over_two_ranks_and_potentials_that_agree(tmp_path):
    lightning = ["lightning"] if importlib.util.find_spec("lightning") else []
    cases = ("apart", "seeds", "ddp", "fsdp", "plain", "tensors", "alternation", *lightning)
    launch(tmp_path, *cases)  # together, since most of a launch is importing torch


@quiet
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lightning_solves_refreshes_and_logs(tmp_path, precision):
    pytest.importorskip("lightning")
    from ecosystem_module import Module, make_trainer, transport

    torch.manual_seed(0)
    module = Module(torch.randn(40, 3))
    trainer = make_trainer(tmp_path, transport(module, every=10), max_steps=21, precision=precision)
    data = torch.utils.data.DataLoader(torch.randn(320, 4), batch_size=32)
    trainer.fit(module, data)
    with open(tmp_path / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["transport/w"]]
    w = list(dict.fromkeys(float(row["transport/w"]) for row in rows))
    assert len(w) == 3  # steps 0, 10 and 20
    assert w[-1] < w[0]
    assert module.loss.ot.potential.dtype == torch.float32

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Module(torch.zeros(40, 3))
    callback = transport(again, every=10)
    resumed = make_trainer(tmp_path, callback, max_steps=21, precision=precision)
    resumed.fit(again, data, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert callback.refresh.steps == 21
    assert torch.equal(again.loss.ot.potential, module.loss.ot.potential)


def test_importing_fastsdot_loads_neither_lightning_nor_datasets(tmp_path):
    code = "import sys, fastsdot, fastsdot.losses, fastsdot.datasets\n"
    code += "print([m for m in ('lightning', 'datasets', 'pandas', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_any_logger_of_dicts_sees_every_call():
    rows = []
    ot, generator = SemiDiscreteOT(torch.randn(20, 2)), mlp(4, (2,), (8,), std=None)
    ot.solve(2, max_samples=1000, callback=rows.append)
    assert {"chi2", "dual", "drawn"} <= rows[-1].keys()
    fit(generator, ot, 4, steps=2, batch_size=8, progress=lambda event: rows.append(event.values))
    assert "loss" in rows[-1]
    log = lambda state: rows.append(state.record)  # noqa: E731
    train(generator, ot.targets, 4, rounds=1, steps=2, max_samples=500, callback=log)
    assert {"w", "chi2", "fit_loss"} <= rows[-1].keys()


class Items(torch.utils.data.Dataset):
    """(PIL image, label), as torchvision's data sets are."""

    def __len__(self):
        return len(BYTES)

    def __getitem__(self, index):
        return Image.fromarray(BYTES[index]), 100 + index


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_data_set_of_tuples_becomes_targets_in_its_order(tmp_path, mapped, workers):
    out = tmp_path / "images.npy" if mapped else None
    found = targets_from(Items(), 0, 1, out=out, workers=workers)
    assert isinstance(found.targets, np.memmap if mapped else torch.Tensor)
    assert np.array_equal(np.asarray(found.targets), BYTES)
    assert found.labels.tolist() == list(range(100, 120))
    ot = SemiDiscreteOT(found.targets)
    assert ot.assign(torch.from_numpy(BYTES[3:5]) / 255).tolist() == [3, 4]


@pytest.mark.parametrize("format", [None, "torch", "numpy"])
def test_hugging_face_data_sets(format):
    datasets = pytest.importorskip("datasets")
    columns = {"image": [Image.fromarray(image) for image in BYTES], "label": [3, 1] * 10}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
    dataset = datasets.Dataset.from_dict(columns, features=features).with_format(format)
    found = targets_from(dataset, "image", "label")
    assert np.array_equal(found.targets.reshape(20, 6, 5).numpy(), BYTES)
    assert found.labels.tolist() == [3, 1] * 10


def test_samples_alone_and_transforms():
    found = targets_from(torch.arange(600).reshape(300, 2))
    assert found.labels is None
    assert found.targets.dtype == torch.float32
    assert torch.equal(found.targets, torch.arange(600.0).reshape(300, 2))
    found = targets_from(Items(), 0, transform=lambda image: np.asarray(image.resize((2, 2))) / 255)
    assert found.targets.shape == (20, 2, 2)


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {}, "dataset: expected at least one item"),
        ([{"a": 1}], {"sample": "b"}, "expected items with 'b', received keys 'a'"),
        ([(1, 2)], {"sample": 5}, "expected items with 5, received a tuple"),
        (["text"], {}, "expected samples that are numbers, received str"),
        ([[1.0, float("nan")]], {}, "dataset: expected finite values"),
        ([[1.0], [1.0, 2.0]], {}, r"one shape and dtype, received \[1\] float32 and \[2\] float32"),
        ([[1.0]] * 256 + [[1.0, 2.0]], {}, "one shape and dtype"),
        ([([1.0], "cat")], {"sample": 0, "label": 1}, "label: expected numbers, received 'cat'"),
        ([[1.0]], {"out": "no/such/folder.npy"}, "out: expected a .npy file that can be written"),
    ],
)
def test_unusable_data_sets_are_named(items, options, message):
    with pytest.raises(DataError, match=message):
        targets_from(items, **options)
