"""Sound as spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmvae_fast._lazy import require
from mmvae_fast.modalities.base import Modality


class Audio(Modality):
    """Log-mel spectrograms [B, n_mels, frames], float32; normal (default) or Laplace likelihood.

    :func:`log_mel` makes them from waveforms.

    See :class:`Modality` for the other arguments.
    """

    kind = "audio"
    likelihoods = ("normal", "laplace")

    def __init__(self, shape: Sequence[int], *, likelihood: str = "normal", **options: Any) -> None:
        super().__init__(shape, likelihood=likelihood, **options)
        if len(self.shape) != 2:
            raise ValueError(f"Audio: shape is {self.shape}, expected (n_mels, frames)")


def log_mel(
    waves: np.ndarray,
    *,
    sample_rate: int,
    n_mels: int,
    n_fft: int,
    hop_length: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    floor_db: float = -40.0,
    ceiling_db: float = 20.0,
) -> np.ndarray:
    """Waveforms as log-mel pictures, what :class:`Audio` takes (after ``torch.from_numpy``).

    Power spectra of Hann windows centred on multiples of ``hop_length`` (the ends are padded with zeros), through
    triangular mel filters of height 1, divided by ``n_fft``, in decibels.

    Args:
        waves: [B, samples], all of one length; usually in [-1, 1]. A shorter recording is padded by you.
        sample_rate: in Hz.
        n_fft: samples in a window.
        fmin, fmax: the band in Hz that the ``n_mels`` filters divide; ``fmax`` None is half of ``sample_rate``.
        floor_db, ceiling_db: mapped to 0 and 1; what is below or above is cut off.

    Returns:
        float32 [B, n_mels, 1 + samples // hop_length] in [0, 1].

    Raises:
        ValueError, TypeError: arguments that cannot be, or waves with NaN or infinity.
        ImportError: without the ``audio`` extra.
    """
    waves = np.asarray(waves)
    if waves.dtype.kind != "f":
        raise TypeError(f"log_mel: waves is {waves.dtype}, expected floating-point samples")
    if waves.ndim != 2 or not waves.shape[1]:
        raise ValueError(f"log_mel: waves has shape {list(waves.shape)}, expected [B, samples]")
    if not np.isfinite(waves).all():
        raise ValueError("log_mel: waves holds NaN or infinite values")
    counts = {"sample_rate": sample_rate, "n_mels": n_mels, "n_fft": n_fft, "hop_length": hop_length}
    for what, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"log_mel: {what} is {value!r}, expected a positive integer")
    top = sample_rate / 2 if fmax is None else fmax
    if not 0 <= fmin < top <= sample_rate / 2:
        raise ValueError(f"log_mel: fmin, fmax are {fmin}, {fmax}, expected 0 <= fmin < fmax <= {sample_rate / 2} Hz")
    if not floor_db < ceiling_db:
        raise ValueError(f"log_mel: floor_db is {floor_db}, expected less than ceiling_db, {ceiling_db}")
    if not len(waves):
        return np.zeros((0, n_mels, 1 + waves.shape[1] // hop_length), dtype=np.float32)
    power = require("librosa", extra="audio").feature.melspectrogram(
        y=waves, sr=sample_rate, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels, fmin=fmin, fmax=fmax, norm=None
    )
    decibel = 10 * np.log10(np.maximum(power / n_fft, 10 ** (floor_db / 10)))
    scaled = (decibel - floor_db) / (ceiling_db - floor_db)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)
