"""Sound as spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmvae_fast.features.audio import log_mel
from mmvae_fast.modalities.convolutions import PictureModality

__all__ = ["Audio", "log_mel"]


class Audio(PictureModality):
    """Spectrograms [B, n_mels, frames], float32; normal (default) or Laplace likelihood.

    :func:`mmvae_fast.features.log_mel` makes them from waveforms; :func:`mmvae_fast.features.mfcc` makes cepstra, which
    may take their place. ``network`` is "mlp" (default), "conv" or "residual"; see :class:`PictureModality` for the
    other arguments.
    """

    kind = "audio"
    likelihoods = ("normal", "laplace")

    def __init__(self, shape: Sequence[int], *, likelihood: str = "normal", **options: Any) -> None:
        super().__init__(shape, likelihood=likelihood, **options)
        if len(self.shape) != 2:
            raise ValueError(f"Audio: shape is {self.shape}, expected (n_mels, frames)")
