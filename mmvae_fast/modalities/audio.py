"""Sound as spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmvae_fast.modalities.base import Modality


class Audio(Modality):
    """Log-mel spectrograms [B, n_mels, frames], float32; normal (default) or Laplace likelihood.

    See :class:`Modality` for the other arguments.
    """

    kind = "audio"
    likelihoods = ("normal", "laplace")

    def __init__(self, shape: Sequence[int], *, likelihood: str = "normal", **options: Any) -> None:
        super().__init__(shape, likelihood=likelihood, **options)
        if len(self.shape) != 2:
            raise ValueError(f"Audio: shape is {self.shape}, expected (n_mels, frames)")
