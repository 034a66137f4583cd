"""What a training run shows: a bar on a terminal, a line an epoch elsewhere. Importing this file imports Lightning."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from mmvae_fast.training.module import TrainingModule


def progress_callback() -> Callback:
    return Bar() if sys.stderr.isatty() else Lines()


class Bar(TQDMProgressBar):
    """Lightning's bar with the running means of the epoch; they are read from the device at a refresh only."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def init_train_tqdm(self) -> Tqdm:
        return Tqdm(file=sys.stderr, leave=True, dynamic_ncols=True, smoothing=0, bar_format=self.BAR_FORMAT)

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        module: TrainingModule = trainer.lightning_module
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.set_description(f"epoch {module.progress.epoch + 1}/{module.epochs}")

    def get_metrics(self, trainer: Any, module: Any) -> dict[str, Any]:
        return shown(module.train_means.read())


class Lines(Callback):
    """For logs: one line when an epoch is over."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        means = {**shown(module.train_means.read()), **shown(module.validation_means.read(), "val_")}
        text = "  ".join(f"{name} {value}" for name, value in means.items())
        print(f"epoch {module.progress.epoch + 1}/{module.epochs}  {text}", file=sys.stderr, flush=True)


def shown(means: dict[str, float], prefix: str = "") -> dict[str, str]:
    return {prefix + name: f"{value:.2f}" for name, value in means.items() if name != "loss"}
