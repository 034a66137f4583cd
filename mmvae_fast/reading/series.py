"""Series of numbers from files and arrays. NumPy only, and SciPy where one gets shorter: no torch here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmvae_fast.features.delay import resample
from mmvae_fast.reading.cells import without_torch

FITS = ("resample", "pad", "error")
"""What becomes of a series of another length; see :class:`mmvae_fast.data.SequenceReader`."""


class Table(NamedTuple):
    values: np.ndarray
    """float64 [T, channels]."""
    names: list[str] | None
    """Of the channels, if the file has a header."""


def series(cell: Any) -> np.ndarray:
    """The path of a table, or numbers [T, channels] or [T], as float64 [T, channels].

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    if isinstance(cell, (str, os.PathLike)):
        values = read_table(Path(cell)).values
    else:
        cell = without_torch(cell)
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


def of_length(steps: np.ndarray, length: int, how: str) -> np.ndarray:
    """Steps [T, channels] made ``length`` ones, as one of FITS says.

    Raises:
        ValueError: "error", and there are more or fewer.
    """
    if len(steps) == length:
        return steps
    if how == "error":
        raise ValueError(f"has {len(steps)} steps, expected {length}")
    if how == "pad" or len(steps) == 1:
        return np.pad(steps[:length], ((0, max(0, length - len(steps))), (0, 0)), mode="edge")
    if length == 1:
        return steps.mean(0, keepdims=True)
    return resample(steps, np.linspace(0, 1, len(steps)), np.linspace(0, 1, length))


def read_table(path: Path) -> Table:
    """A .npy file, or one of text with a row a time step, and a header or none. Columns of a .tsv are parted by tabs,
    of a .csv by commas, of a .txt by commas, or by spaces and tabs where it has no comma.

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return Table(_array(path), None)
    if suffix not in (".csv", ".txt", ".tsv"):
        raise ValueError(f"{path}: expected a .csv, .tsv, .txt or .npy file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    separator: str | None = "\t" if suffix == ".tsv" else ","
    if suffix == ".txt" and "," not in text:
        separator = None  # whitespace, as much as there is
    try:
        return parse_table(text, separator)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_table(text: str, separator: str | None) -> Table:
    """A row a line, and a header or none; columns are parted by ``separator``, None being whitespace.

    Raises:
        ValueError: what is wrong with it.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [line.split(separator) for line in lines]
    names = None
    if rows and not any(map(_reads_as_number, rows[0])):
        names, rows = [name.strip() for name in rows[0]], rows[1:]
    if not rows:
        raise ValueError("holds no rows of numbers")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {i + 1} of numbers has {len(row)} columns, expected {len(rows[0])}")
    values = np.array(rows, dtype=np.float64)
    return Table(values, names if names is not None and len(names) == len(rows[0]) else None)


def _array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # of a damaged header NumPy raises whatever its parser does
        raise ValueError(f"{path}: not a .npy file of numbers ({error})") from error
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{path}: holds {values.dtype}, expected numbers")
    return values.astype(np.float64)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
