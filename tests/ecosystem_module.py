"""A LightningModule that learns by TransportLoss, and a quiet trainer for it."""

import torch
from lightning.pytorch import Callback as Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from fastsdot import SemiDiscreteOT
from fastsdot.lightning import TransportCallback
from fastsdot.losses import TransportLoss
from fastsdot.networks import mlp


class Module(LightningModule):
    def __init__(self, targets):
        super().__init__()
        self.generator = mlp(4, targets.shape[1:], (32,), std=None)
        self.loss = TransportLoss(SemiDiscreteOT(targets))

    def training_step(self, batch, index):
        return self.loss(self.generator(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.generator.parameters(), lr=3e-3)


def transport(module, every=10):
    def source(n):
        return module.generator(torch.randn(n, 4, dtype=module.dtype))

    return TransportCallback(module.loss.ot, source, every=every, max_samples=6000)


def make_trainer(folder, *callbacks, **options):
    options = {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1} | options
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        default_root_dir=folder,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[*callbacks],
        **quiet,
        **options,
    )
