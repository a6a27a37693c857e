"""A Lightning callback that keeps a transport where the module's generator is. Needs the `lightning` package.

    loss = TransportLoss(SemiDiscreteOT(targets))       # an attribute of the LightningModule, used in training_step
    Trainer(callbacks=[TransportCallback(loss.ot, lambda n: module(torch.randn(n, 32)), every=100)])

Nothing in fastsdot imports this module.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fastsdot.losses import Refresh, measures
from fastsdot.semidiscrete import SemiDiscreteOT
from fastsdot.sources import EveryRank, SourceLike, as_source
from fastsdot.stopping import Rule


class TransportCallback(Callback):
    """Solves before the first training step and then every `every` steps, warm; see `fastsdot.losses.Refresh`.

    Each solution's W and χ², their standard errors, whether it converged, its samples and seconds are logged by
    `self.log` under "transport/". On several ranks each draws its share of the samples and all get the same
    potential; the targets are not among the buffers that DistributedDataParallel sends at every step. The source is
    called in the module's own mode and device. A checkpoint of the trainer keeps when the next solve is due.
    """

    def __init__(
        self,
        ot: SemiDiscreteOT,
        source: SourceLike,
        every: int = 100,
        tol: float | Rule = 0.05,
        max_samples: int | None = None,
    ):
        self.refresh = Refresh(ot, source, every, tol, max_samples)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        names = [f"{name}.targets" for name, part in pl_module.named_modules() if isinstance(part, SemiDiscreteOT)]
        ignored = getattr(pl_module, "_ddp_params_and_buffers_to_ignore", [])
        torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            pl_module, {*ignored, *names}
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 and not isinstance(self.refresh.source, EveryRank):
            self.refresh.source = EveryRank(as_source(self.refresh.source, device=self.refresh.ot.device))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        solution = self.refresh.step()
        if solution is not None:
            pl_module.log_dict(measures(solution), on_step=True, on_epoch=False, batch_size=1)

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.refresh.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.refresh.steps = state_dict["steps"]
