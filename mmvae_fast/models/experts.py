"""What the encoders say about a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmvae_fast.models.outputs import Posterior


@dataclass(frozen=True)
class Experts:
    """One posterior a modality: of the shared latent, and of the modality's private one where the model has them."""

    mu: list[Tensor]
    """M tensors [B, D], in modality order; like the log-variances 0 where a modality is missing, whatever its encoder
    made of that."""
    logvar: list[Tensor]
    mask: Tensor
    """bool [B, M], True = observed."""
    private: dict[str, Posterior] = field(default_factory=dict)
    """[B, P] by modality, of those in the batch that have a private latent."""

    def stacked(self) -> tuple[Tensor, Tensor]:
        """All mu and logvar as one expert [M, B, D] each: views of [B, M, D], which :func:`abreast` takes as they
        are."""
        mu, logvar = torch.stack([*self.mu, *self.logvar], 1).transpose(0, 1).chunk(2)
        return mu, logvar


def abreast(experts: Tensor) -> Tensor:
    """[M, B, D] -> [B, M D]: a row's experts as one Gaussian, whose noise depends on the row alone."""
    return experts.transpose(0, 1).flatten(1)


def apart(values: Tensor, count: int) -> Tensor:
    """[..., B, M D] -> [..., M, B, D]."""
    return values.unflatten(-1, (count, -1)).transpose(-3, -2)
