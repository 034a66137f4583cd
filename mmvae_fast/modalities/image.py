"""Images, channels first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.modalities.base import Modality


class Image(Modality):
    """Images [B, C, H, W], float32; the default likelihood is Bernoulli on [0, 1] (decoder gives logits).

    ``likelihood="normal"`` or ``"laplace"`` take values of any range; see :class:`Modality` for the other arguments.
    """

    kind = "image"
    likelihoods = ("bernoulli", "normal", "laplace")

    def __init__(self, shape: Sequence[int], *, likelihood: str = "bernoulli", **options: Any) -> None:
        super().__init__(shape, likelihood=likelihood, **options)
        if len(self.shape) != 3:
            raise ValueError(f"Image: shape is {self.shape}, expected (channels, height, width)")

    def check_values(self, name: str, x: Tensor) -> None:
        super().check_values(name, x)
        if self.likelihood == "bernoulli" and x.numel():
            low, high = (float(v) for v in torch.aminmax(x))
            if low < 0 or high > 1:
                raise ValueError(
                    f"modality {name!r}: values from {low:g} to {high:g}, expected 0 to 1 for a Bernoulli likelihood; "
                    "rescale them or use likelihood='normal'"
                )
