"""Recordings as what a model takes, from files and arrays. No torch here; librosa and soundfile only when needed."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmvae_fast.features import audio
from mmvae_fast.reading.cells import without_torch

FEATURES = ("log_mel", "mfcc")
ALIGNED = ("start", "center", "end")


def features_of(waves: np.ndarray, features: str, n_mels: int, n_mfcc: int, spectra: Mapping[str, Any]) -> np.ndarray:
    """Log-mel pictures [B, n_mels, frames] or cepstra [B, n_mfcc, frames] of waves [B, samples]."""
    if features == "log_mel":
        return audio.log_mel(waves, n_mels=n_mels, **spectra)
    return audio.mfcc(waves, n_mels=n_mels, n_mfcc=n_mfcc, **spectra)


def wave_of(cell: Any, rate: int, samples: int | None, align: str) -> np.ndarray:
    """A cell as so many samples at ``rate`` Hz, None for all there are.

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    if isinstance(cell, Mapping):  # what Hugging Face's data sets call a recording
        if cell.get("array") is not None:
            cell = cell["array"], cell.get("sampling_rate")
        else:
            cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return audio.load_audio(io.BytesIO(cell), rate, samples=samples, align=align)
    if isinstance(cell, (str, os.PathLike)):
        return audio.load_audio(cell, rate, samples=samples, align=align)
    if isinstance(cell, (tuple, list)) and len(cell) == 2:
        wave, own = cell
        wave = np.asarray(without_torch(wave))
        mono = audio.to_mono(wave, int(own) if isinstance(own, (float, np.number)) else own, rate)
        return mono if samples is None else audio.fit_length(mono, samples, align=align)
    raise ValueError(f"is a {type(cell).__name__}, expected a path, the bytes of a file, or (waveform, rate)")
