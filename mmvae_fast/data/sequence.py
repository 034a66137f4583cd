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

from mmvae_fast.data._numbers import names_of, write_table
from mmvae_fast.data._scale import Scale, ScaledReader
from mmvae_fast.features.delay import resample
from mmvae_fast.modalities import Sequence

_FITS = ("resample", "pad", "error")


class SequenceReader(ScaledReader):
    """The path of a .csv file (a row a time step, a column a channel, a header or none) or a .npy file, or numbers
    [T, channels] or [T] -> float32 [length, channels], each channel with the mean 0 and the standard deviation 1 of the
    training series. Predictions come back in the channels' own units.

    Args:
        length: steps of a sample; None is that of the longest training series.
        fit: what becomes of a series of another length. "resample": it is stretched to ``length``, from the first to
            the last step (with a filter against aliasing where it gets shorter, which is in SciPy). "pad": cut off, or
            its last step repeated; the repeated steps count as data. "error": it is refused.
        standardise: False leaves the numbers as they are.
        names: of the channels, for the header of what :meth:`write` writes.
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
        **options: Any,
    ) -> None:
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError(f"sequence reader: length is {length!r}, expected a positive integer")
        if fit not in _FITS:
            raise ValueError(f"sequence reader: fit is {fit!r}, expected one of {_FITS}")
        if not isinstance(standardise, bool):
            raise ValueError(f"sequence reader: standardise is {standardise!r}, expected True or False")
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
                series = _series(cell)
                longest = max(longest, len(series))
                yield series

        scale = Scale.of(all_series())
        names_of(self.names, len(scale), self.kind)
        self.scale = scale if self.standardise else Scale(np.zeros(len(scale)), np.ones(len(scale)))
        self.length = self.length or longest

    def read(self, cell: Any) -> Tensor:
        scale, length = self._fitted("read")
        series = _series(cell)
        if series.shape[1] != len(scale):
            raise ValueError(f"has {series.shape[1]} channels, expected {len(scale)}")
        return torch.from_numpy(scale.scaled(_of_length(series, length, self.how)).astype(np.float32))

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
            **self.options,
            "fitted": None if self.scale is None else self.scale.config(),
        }

    def _fitted(self, method: str) -> tuple[Scale, int]:
        if self.scale is None or self.length is None:
            raise ValueError(f"sequence reader: {method} comes after fit")
        return self.scale, self.length


def _of_length(series: np.ndarray, length: int, how: str) -> np.ndarray:
    if len(series) == length:
        return series
    if how == "error":
        raise ValueError(f"has {len(series)} steps, expected {length}")
    if how == "pad" or len(series) == 1:
        return np.pad(series[:length], ((0, max(0, length - len(series))), (0, 0)), mode="edge")
    if length == 1:
        return series.mean(0, keepdims=True)
    return resample(series, np.linspace(0, 1, len(series)), np.linspace(0, 1, length))


def _series(cell: Any) -> np.ndarray:
    """A cell as float64 [T, channels].

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    if isinstance(cell, (str, os.PathLike)):
        values = _from_file(Path(cell))
    else:
        cell = cell.numpy(force=True) if isinstance(cell, Tensor) else cell
        try:
            values = np.asarray(cell, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"is a {type(cell).__name__} that is no table of numbers, [T, channels]") from None
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not values.size:
        raise ValueError(f"has shape {list(values.shape)}, expected [T, channels]")
    if not np.isfinite(values).all():
        step, channel = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"step {step + 1}, channel {channel + 1} is {values[step, channel]}, expected finite numbers")
    return values


def _from_file(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        try:
            with path.open("rb") as file:
                values = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # of a damaged header NumPy raises whatever its parser does
            raise ValueError(f"{path}: not a .npy file of numbers ({error})") from error
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{path}: holds {values.dtype}, expected numbers")
        return values.astype(np.float64)
    if suffix not in (".csv", ".txt", ".tsv"):
        raise ValueError(f"{path}: expected a .csv, .tsv, .txt or .npy file")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    rows = [line.split("\t" if suffix == ".tsv" else ",") for line in lines]
    if rows and not any(_reads_as_number(part) for part in rows[0]):
        rows = rows[1:]  # a header
    if not rows:
        raise ValueError(f"{path}: holds no rows of numbers")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}: row {i + 1} of numbers has {len(row)} columns, expected {len(rows[0])}")
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
