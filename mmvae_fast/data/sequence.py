"""Time series from files of numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Sequence as List
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.data._scale import Scale, ScaledReader
from mmvae_fast.data._streams import Delay
from mmvae_fast.modalities import Sequence
from mmvae_fast.reading.numbers import names_of, write_table
from mmvae_fast.reading.series import FITS, of_length, series


class SequenceReader(ScaledReader):
    """The path of a .csv, .tsv or .txt file (a row a time step, a column a channel, a header or none; columns of a .txt
    are parted by commas, or else by whitespace) or a .npy file, or numbers [T, channels] or [T] -> float32
    [length, channels], each channel with the mean 0 and the standard deviation 1 of the training series. Predictions
    come back in the channels' own units.

    Args:
        length: steps of a sample; None is that of the longest training series.
        fit: what becomes of a series of another length. "resample": it is stretched to ``length``, from the first to
            the last step (with a filter against aliasing where it gets shorter, which is in SciPy). "pad": cut off, or
            its last step repeated; the repeated steps count as data. "error": it is refused.
        standardise: False leaves the numbers as they are.
        names: of the channels, for the header of what :meth:`write` writes.
        align_to: the modality to whose clock a series is brought: a cell is then the series and that modality's, of
            which the first is read at the times of the second, its lag behind it (by cross-correlation, row by row)
            removed. A row without either has no such modality.
        rates, max_lag: of the series and the other one; see :class:`mmvae_fast.data.lag.LagReader`.
        options: of the modality: cell, likelihood, scale (in standard deviations), hidden, ...
    """

    kind = "sequence"
    reads_files = True
    takes = (os.PathLike, tuple, list, np.ndarray, Tensor)

    def __init__(
        self,
        *,
        length: int | None = None,
        fit: str = "resample",
        standardise: bool = True,
        names: List[str] | None = None,
        align_to: str | None = None,
        rates: Any = None,
        max_lag: float | None = None,
        **options: Any,
    ) -> None:
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError(f"sequence reader: length is {length!r}, expected a positive integer")
        if fit not in FITS:
            raise ValueError(f"sequence reader: fit is {fit!r}, expected one of {FITS}")
        if not isinstance(standardise, bool):
            raise ValueError(f"sequence reader: standardise is {standardise!r}, expected True or False")
        if align_to is None and (rates is not None or max_lag is not None):
            raise ValueError("sequence reader: rates and max_lag come with align_to, the modality to compare with")
        self.align_to, self.delay = align_to, Delay("sequence reader", rates, max_lag)
        self.n_columns = None if align_to is None else 2
        self.length, self.how, self.standardise = length, fit, standardise
        self.names = None if names is None else [str(name) for name in names]
        self.options = options
        self.scale: Scale | None = None
        Sequence(1, 1, **options)  # what the modality refuses is refused now

    def fit(self, cells: Iterable[Any]) -> None:
        longest = 0

        def all_series() -> Iterable[np.ndarray]:
            nonlocal longest
            for cell in cells:
                steps = self._series(cell)
                longest = max(longest, len(steps))
                yield steps

        scale = Scale.of(all_series())
        names_of(self.names, len(scale), self.kind)
        self.scale = scale if self.standardise else Scale(np.zeros(len(scale)), np.ones(len(scale)))
        self.length = self.length or longest

    def read(self, cell: Any) -> Tensor:
        scale, length = self._fitted("read")
        steps = self._series(cell)
        if steps.shape[1] != len(scale):
            raise ValueError(f"has {steps.shape[1]} channels, expected {len(scale)}")
        return torch.from_numpy(scale.scaled(of_length(steps, length, self.how)).astype(np.float32))

    def _series(self, cell: Any) -> np.ndarray:
        return series(cell) if self.align_to is None else self.delay.aligned(cell)

    def write(self, sample: Tensor, path: Path) -> Path:
        return write_table(path, names_of(self.names, len(self._fitted("write")[0]), self.kind), self.show(sample))

    def show(self, sample: Tensor) -> np.ndarray:
        """float64 [length, channels] in the channels' own units."""
        return self._fitted("show")[0].unscaled(sample.numpy(force=True))

    def modality(self) -> Sequence:
        scale, length = self._fitted("modality")
        return Sequence(length, len(scale), **self.options)

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "length": self.length,
            "fit": self.how,
            "standardise": self.standardise,
            "names": self.names,
            "align_to": self.align_to,
            "rates": self.delay.rates,
            "max_lag": self.delay.max_lag,
            **self.options,
            "fitted": None if self.scale is None else self.scale.config(),
        }

    def _fitted(self, method: str) -> tuple[Scale, int]:
        if self.scale is None or self.length is None:
            raise ValueError(f"sequence reader: {method} comes after fit")
        return self.scale, self.length
