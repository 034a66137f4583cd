"""What GAN and CycleGAN share as systems: generators and discriminators that learn at rates of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from mmvae_fast.systems.base import System, above_zero, adam, decay


class TwoRateSystem(System):
    """A system whose two sides are trained against each other by Adam (Heusel et al., GANs Trained by a Two Time-Scale
    Update Rule, 2017)."""

    def _set_rates(
        self,
        lr_generator: float,
        lr_discriminator: float,
        betas: Sequence[float],
        gradient_clip: float | None,
        ema: float,
    ) -> None:
        """The options of the training, checked."""
        self.lr_generator = above_zero("lr_generator", lr_generator)
        self.lr_discriminator = above_zero("lr_discriminator", lr_discriminator)
        self.betas = adam_betas(betas)
        self.gradient_clip = None if gradient_clip is None else above_zero("gradient_clip", gradient_clip)
        self.ema = decay("ema", ema)

    def _adam(
        self, generators: Iterable[nn.Parameter], discriminators: Iterable[nn.Parameter]
    ) -> torch.optim.Optimizer:
        groups = [
            {"params": list(generators), "lr": self.lr_generator},
            {"params": list(discriminators), "lr": self.lr_discriminator},
        ]
        return adam(groups, self.betas)


def adam_betas(value: Any) -> tuple[float, float]:
    """Adam's two decays, checked."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"betas is {value!r}, expected two numbers")
    return decay("betas[0]", value[0]), decay("betas[1]", value[1])
