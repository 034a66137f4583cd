"""Series of numbers from files, and how far one lags behind another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmvae_fast._lazy import require
from mmvae_fast.features.audio import load_audio
from mmvae_fast.features.delay import align, resample
from mmvae_fast.reading.numbers import write_table
from mmvae_fast.reading.series import read_table as read_table
from mmvae_fast.reading.series import series as series

SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff")


class Pair(NamedTuple):
    """Two series, and the seconds at which each was sampled (steps, where nobody knows the rate)."""

    first: np.ndarray
    second: np.ndarray
    first_times: np.ndarray
    second_times: np.ndarray

    def lag(self, max_lag: float | None) -> float:
        """By how much the second comes later than the first.

        Raises:
            ValueError: a series that is constant or shorter than two steps has none.
        """
        streams = {"first": self.first, "second": self.second}
        times = {"first": self.first_times, "second": self.second_times}
        return align(streams, times=times, max_lag=max_lag).lags["second"]


class Delay:
    """The options of readers that compare two streams.

    Args:
        rates: in Hz, of the first and the second; None is what a sound file says, and else one step each, so that lags
            are in steps.
        max_lag: see :func:`mmvae_fast.features.estimate_lag`, in seconds, or steps.
    """

    def __init__(self, where: str, rates: Any = None, max_lag: Any = None) -> None:
        if rates is not None and not (
            isinstance(rates, (list, tuple)) and len(rates) == 2 and all(map(_is_positive, rates))
        ):
            raise ValueError(f"{where}: rates is {rates!r}, expected two positive numbers, of the two columns")
        if max_lag is not None and not _is_positive(max_lag):
            raise ValueError(f"{where}: max_lag is {max_lag!r}, expected a positive number")
        self.rates = None if rates is None else [float(rate) for rate in rates]
        self.max_lag = None if max_lag is None else float(max_lag)

    def pair(self, cell: Any) -> Pair:
        """A cell of two columns.

        Raises:
            ValueError, OSError: what is wrong with it.
        """
        if not isinstance(cell, (list, tuple)) or len(cell) != 2:
            raise ValueError(f"is {_short(cell)}, expected two series")
        (first, first_rate), (second, second_rate) = (_with_rate(part) for part in cell)
        if self.rates is not None:
            first_rate, second_rate = self.rates
        if (first_rate is None) != (second_rate is None):
            raise ValueError("one is a sound, the other a table that says no rate: set rates, in Hz")
        first_times, second_times = (
            np.arange(len(first)) / (first_rate or 1),
            np.arange(len(second)) / (second_rate or 1),
        )
        return Pair(first, second, first_times, second_times)

    def aligned(self, cell: Any) -> np.ndarray:
        """The first of two series without its lag behind the second, read at the second's times: [T, channels]. Beyond
        its ends, its first and its last step hold."""
        pair = self.pair(cell)
        return resample(pair.first, pair.first_times + pair.lag(self.max_lag), pair.second_times)


def align_files(
    files: Sequence[Path], out: Path, *, rates: Sequence[float] | None, times: bool, max_lag: float | None
) -> tuple[list[float], list[float], Path]:
    """Write a table of several files' series on one clock: ``time``, that of the first file, and a column a channel.

    Args:
        rates: in Hz; None is what sound files say, and else a row each, where no file is a sound.
        times: the first column of each file is the time of a row.
        max_lag: see :func:`mmvae_fast.features.estimate_lag`.

    Returns:
        by how much each but the first lags behind it, how far each is correlated with it then, and the file written.

    Raises:
        ValueError, OSError: files that cannot be read, or have no lag; sounds beside tables whose rate nobody says.
    """
    streams: dict[str, np.ndarray] = {}
    clocks: dict[str, np.ndarray] = {}
    header = ["time"]
    known: dict[Path, bool] = {}
    stems = [path.stem for path in files]
    for i, path in enumerate(files):
        values, rate, names = _read_file(path)
        if times:
            if values.shape[1] < 2:
                raise ValueError(f"{path}: has one column, expected the time and at least one more")
            at, values, names = values[:, 0], values[:, 1:], names and names[1:]
        else:
            rate = rate if rates is None else rates[i]
            known[path] = rate is not None
            at = np.arange(len(values)) / (rate or 1)
        stem = stems[i] if stems.count(stems[i]) == 1 else f"{stems[i]}{i + 1}"
        columns = names or ([] if values.shape[1] == 1 else [str(c + 1) for c in range(values.shape[1])])
        header += [f"{stem}.{column}" for column in columns] or [stem]
        streams[str(path)], clocks[str(path)] = series(values), at
    if len(streams) < len(files):
        raise ValueError("a file is named twice, expected different ones")
    if len(set(known.values())) > 1:
        sounds, tables = (", ".join(str(path) for path, has in known.items() if has is of) for of in (True, False))
        raise ValueError(
            f"{sounds}: a sound, whose rate is known; {tables}: a table that says none: give --rate, in Hz"
        )
    found = align(streams, times=clocks, max_lag=max_lag)
    table = np.concatenate([found.times[:, None], *found.streams.values()], 1)
    return list(found.lags.values())[1:], list(found.correlations.values()), write_table(out, header, table)


def sound(path: Path) -> tuple[np.ndarray, int]:
    """A sound file at its own rate: float32 [samples], the mean of its channels, and the rate in Hz."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a sound file")
    soundfile = require("soundfile", extra="audio")
    try:
        rate = soundfile.info(str(path)).samplerate
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path}: not a sound file that libsndfile reads ({error})") from error
    return load_audio(path, rate), rate


def _read_file(path: Path) -> tuple[np.ndarray, float | None, list[str] | None]:
    """Values [T, channels], rate (None if the file says none), and names of the channels if it has them."""
    if path.suffix.lower() in SOUNDS:
        wave, rate = sound(path)
        return wave[:, None].astype(np.float64), float(rate), None
    values, names = read_table(path)
    return series(values), None, names


def _with_rate(cell: Any) -> tuple[np.ndarray, float | None]:
    if isinstance(cell, (str, os.PathLike)) and Path(cell).suffix.lower() in SOUNDS:
        values, rate, _ = _read_file(Path(cell))
        return values, rate
    return series(cell), None


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < np.inf


def _short(cell: Any) -> str:
    return f"{len(cell)} of them" if isinstance(cell, Sequence) and not isinstance(cell, str) else type(cell).__name__
