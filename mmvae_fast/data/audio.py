"""Recordings: to log-mel pictures or cepstra, and back to sound."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast._files import with_ending
from mmvae_fast.data._scale import Scale, ScaledReader
from mmvae_fast.data._streams import Delay
from mmvae_fast.features import audio
from mmvae_fast.features.delay import estimate_lag
from mmvae_fast.modalities import Audio
from mmvae_fast.reading.sound import ALIGNED, FEATURES, features_of, wave_of


class AudioReader(ScaledReader):
    """The path or the bytes of a sound file of any rate and number of channels, or (waveform, rate) -> float32
    [n_mels, frames] in [0, 1], or for cepstra [n_mfcc, frames], each with the mean 0 and the standard deviation 1 of
    the training recordings. What it writes is a .wav file, made by Griffin-Lim iterations.

    Args:
        features: "log_mel" (:func:`mmvae_fast.features.log_mel`) or "mfcc" (:func:`mmvae_fast.features.mfcc`), of which
            the sound comes back smoothed.
        sample_rate: in Hz, to which all recordings are brought.
        seconds: of a sample; a longer recording is cut, a shorter one gets silence.
        align: which part that leaves: "start" (silence follows), "center" or "end".
        n_mels, n_fft, hop_length, fmin, fmax, floor_db, ceiling_db: of the pictures.
        n_mfcc: how many cepstra.
        align_to: the modality whose recording this one is brought into step with: a cell is then this recording and
            that one, of the same event, and this one's lag behind it (by cross-correlation, row by row) is cut off, or
            made up for by silence. A row without either has no such modality.
        max_lag: the largest lag to look for, in seconds, either way; None is as far as the two overlap.
        iterations: of Griffin-Lim.
        options: of the modality: likelihood, scale, network ("mlp", "conv", "residual"), ...
    """

    kind = "audio"
    reads_files = True
    takes = (os.PathLike, bytes, Mapping, tuple, list)

    def __init__(
        self,
        *,
        features: str = "log_mel",
        sample_rate: int = 16_000,
        seconds: float = 1.0,
        align: str = "start",
        n_mels: int = 64,
        n_mfcc: int = 20,
        n_fft: int = 1024,
        hop_length: int = 256,
        fmin: float = 0.0,
        fmax: float | None = None,
        floor_db: float = -40.0,
        ceiling_db: float = 20.0,
        iterations: int = 60,
        align_to: str | None = None,
        max_lag: float | None = None,
        **options: Any,
    ) -> None:
        if features not in FEATURES:
            raise ValueError(f"audio reader: features is {features!r}, expected one of {FEATURES}")
        if align not in ALIGNED:
            raise ValueError(f"audio reader: align is {align!r}, expected one of {ALIGNED}")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e6:
            raise ValueError(f"audio reader: seconds is {seconds!r}, expected a positive number")
        if type(iterations) is not int or iterations < 1:
            raise ValueError(f"audio reader: iterations is {iterations!r}, expected a positive integer")
        self.features, self.align, self.seconds, self.iterations = features, align, float(seconds), iterations
        if align_to is None and max_lag is not None:
            raise ValueError("audio reader: max_lag comes with align_to, the modality to compare with")
        self.align_to, self.max_lag = align_to, Delay("audio reader", max_lag=max_lag).max_lag
        self.n_columns = None if align_to is None else 2
        self.n_mels, self.n_mfcc = n_mels, n_mfcc
        self.spectra: dict[str, Any] = {
            "sample_rate": sample_rate,
            "n_fft": n_fft,
            "hop_length": hop_length,
            "fmin": fmin,
            "fmax": fmax,
            "floor_db": floor_db,
            "ceiling_db": ceiling_db,
        }
        self.options = options
        self.scale: Scale | None = None
        self._features(np.zeros((0, 1), dtype=np.float32))  # what cannot be is refused now
        if self.samples < 1:
            raise ValueError(f"audio reader: {seconds} seconds at {sample_rate} Hz is not one sample")
        Audio(self.shape, **options)

    @property
    def samples(self) -> int:
        """Of a waveform."""
        return round(self.seconds * self.spectra["sample_rate"])

    @property
    def shape(self) -> tuple[int, int]:
        """Of a sample."""
        rows = self.n_mels if self.features == "log_mel" else self.n_mfcc
        return rows, 1 + self.samples // self.spectra["hop_length"]

    def fit(self, cells: Iterable[Any]) -> None:
        if self.features == "mfcc":
            self.scale = Scale.of(self._read(cell).T for cell in cells)

    def read(self, cell: Any) -> Tensor:
        found = self._read(cell)
        if self.features == "mfcc":
            found = self._fitted("read").scaled(found.T).T.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(found))

    def write(self, sample: Tensor, path: Path) -> Path:
        wave, rate = self.show(sample)
        return audio.write_wav(with_ending(path, ".wav"), wave, rate)

    def show(self, sample: Tensor) -> tuple[np.ndarray, int]:
        """(waveform float32 [samples], rate in Hz)."""
        picture = sample.detach().float().numpy(force=True)
        if self.features == "mfcc":
            cepstra = self._fitted("show").unscaled(picture.T).T
            picture = audio.mfcc_to_log_mel(cepstra[None], self.n_mels)[0]
        wave = audio.griffin_lim(picture[None], samples=self.samples, iterations=self.iterations, **self.spectra)[0]
        return wave, self.spectra["sample_rate"]

    def modality(self) -> Audio:
        return Audio(self.shape, **self.options)

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "features": self.features,
            "seconds": self.seconds,
            "align": self.align,
            "n_mels": self.n_mels,
            "n_mfcc": self.n_mfcc,
            **self.spectra,
            "iterations": self.iterations,
            "align_to": self.align_to,
            "max_lag": self.max_lag,
            **self.options,
            "fitted": None if self.scale is None else self.scale.config(),
        }

    def _read(self, cell: Any) -> np.ndarray:
        rate = self.spectra["sample_rate"]
        if self.align_to is None:
            return self._features(wave_of(cell, rate, self.samples, self.align)[None])[0]
        if not isinstance(cell, (list, tuple)) or len(cell) != 2:
            raise ValueError(f"is a {type(cell).__name__}, expected two recordings: its own, and {self.align_to}'s")
        own, other = (wave_of(part, rate, None, self.align) for part in cell)
        lag = round(estimate_lag(other, own, rate, max_lag=self.max_lag) * rate)
        wave = own[lag:] if lag > 0 else np.pad(own, (-lag, 0))
        return self._features(audio.fit_length(wave, self.samples, align=self.align)[None])[0]

    def _features(self, waves: np.ndarray) -> np.ndarray:
        return features_of(waves, self.features, self.n_mels, self.n_mfcc, self.spectra)

    def _fitted(self, method: str) -> Scale:
        if self.scale is None:
            raise ValueError(f"audio reader: {method} of cepstra comes after fit")
        return self.scale
