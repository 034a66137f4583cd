"""The training loop's body, as Lightning wants it. Importing this file imports Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from mmvae_fast.functional import row_seed
from mmvae_fast.models import MultimodalVAE, Output
from mmvae_fast.training import checkpoints
from mmvae_fast.training.data import split_mask
from mmvae_fast.training.means import Means
from mmvae_fast.training.seeding import derive, seed_all
from mmvae_fast.training.warmup import warmup


class TrainingModule(lightning.LightningModule):
    """A model, its optimizer and its warm-up; keeps the record of the run in ``progress``."""

    def __init__(
        self,
        model: MultimodalVAE,
        progress: checkpoints.Progress,
        optimizer_tensors: dict[str, Tensor],
        *,
        epochs: int,
        steps_per_epoch: int,
        validated: bool,
        on_epoch_end: Callable[[torch.optim.Optimizer], None],
    ) -> None:
        super().__init__()
        self.model = model
        self.progress = progress
        self.epochs = epochs
        self.train_means, self.validation_means = Means(), Means()
        self._tensors = optimizer_tensors
        self._steps_per_epoch = steps_per_epoch
        self._warmup_steps = progress.settings["warmup_epochs"] * steps_per_epoch
        self._validated = validated
        self._on_epoch_end = on_epoch_end

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.progress.settings["lr"], fused=_fused(self.model))
        checkpoints.restore_optimizer(self.model, optimizer, self._tensors)
        return optimizer

    def on_train_epoch_start(self) -> None:
        seed_all(derive(self.progress.settings["seed"], "epoch", self.progress.epoch))
        self.train_means, self.validation_means = Means(), Means()
        if self.model.stages > 1:
            self._enter_stage()

    def _enter_stage(self) -> None:
        """That of this epoch. The first epoch of the second forgets what the optimizer knows, and what was best."""
        first = self.progress.settings["first_stage_epochs"]
        self.model.start_stage(1 if self.progress.epoch < first else 2)
        if self.progress.epoch == first:
            self.trainer.optimizers[0].state.clear()
            self.progress.best_loss = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, mask = split_mask(batch)
        step = self.progress.epoch * self._steps_per_epoch + batch_idx
        output = self.model(inputs, mask, beta=self.model.beta * warmup(step, self._warmup_steps))
        self.train_means.add(_sums(output, _rows(inputs)))
        return output.loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, mask = split_mask(batch)
        settings = self.progress.settings
        # the same noise in every epoch, so that epochs differ by the model alone; a row's does not depend on its batch
        seed = row_seed(
            derive(settings["seed"], "validation"), batch_idx * settings["batch_size"], device=self.model.device
        )
        output = self.model(inputs, mask, seed=seed)
        self.validation_means.add(_sums(output, _rows(inputs)))

    def on_train_epoch_end(self) -> None:
        progress = self.progress
        record: dict[str, float] = {"epoch": progress.epoch + 1}
        if self.model.stages > 1:
            record["stage"] = self.model.stage
        record |= self.train_means.read()
        record |= {f"val_{name}": value for name, value in self.validation_means.read().items()}
        bad = [name for name, value in record.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"epoch {record['epoch']}: {', '.join(f'{name} is {record[name]}' for name in bad)}; "
                "try a lower learning rate, or look for extreme values in the data"
            )
        # during warm-up the training losses of two epochs are not comparable, and later is better
        warming_up = not self._validated and progress.epoch * self._steps_per_epoch < self._warmup_steps
        loss = record["val_loss" if self._validated else "loss"]
        if warming_up or progress.best_loss is None or loss < progress.best_loss:
            progress.best_epoch, progress.best_loss = progress.epoch + 1, None if warming_up else loss
        progress.epoch += 1
        progress.history.append(record)
        self._on_epoch_end(self.trainer.optimizers[0])


def _sums(output: Output, rows: int) -> dict[str, tuple[Tensor, int]]:
    named = {"loss": output.loss, "elbo": output.elbo, "kl": output.kl}
    named |= {f"ll_{name}": value for name, value in output.log_likelihood.items()}
    return {name: (value.detach() * rows, rows) for name, value in named.items()}


def _rows(inputs: dict[str, Tensor]) -> int:
    return next(iter(inputs.values())).shape[0]


def _fused(model: torch.nn.Module) -> bool:
    """One pass over all parameters instead of ten small operations on each, where torch has it."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())
