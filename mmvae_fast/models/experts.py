"""What the encoders say about a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mmvae_fast.models.outputs import Posterior


@dataclass(frozen=True)
class Experts:
    """One posterior a modality: of the shared latent, and of the modality's private one where the model has them."""

    mu: list[Tensor]
    """M tensors [B, D], in modality order; zeros where a modality is not in the batch."""
    logvar: list[Tensor]
    mask: Tensor
    """bool [B, M], True = observed."""
    private: dict[str, Posterior] = field(default_factory=dict)
    """[B, P] by modality, of those in the batch that have a private latent."""
