"""Cells that hold numbers, and files of numbers that a spreadsheet opens."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_fast._files import with_ending, write_atomic
from mmvae_fast.reading.cells import is_missing, without_torch

_LARGEST = 2**24  # from here on float32 skips whole numbers


def numbers(cell: Any) -> np.ndarray:
    """A cell of one or several columns, a list or an array as float64 [n], NaN where an entry is missing.

    Raises:
        ValueError: naming the entry that is no finite number.
    """
    cell = without_torch(cell)
    parts = list(cell) if isinstance(cell, (list, tuple, np.ndarray)) and np.ndim(cell) == 1 else [cell]
    found = np.array([_number(part, i, len(parts)) for i, part in enumerate(parts)])
    if not len(found):
        raise ValueError("is an empty list, expected numbers")
    return found


def counts(cell: Any) -> np.ndarray:
    """The same, of whole numbers that float32 holds.

    Raises:
        ValueError: naming the entry that is none.
    """
    row = numbers(cell)
    bad = ~((row >= 0) & (row == np.round(row)) & (row < _LARGEST))  # NaN is bad, too
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        what = "missing" if np.isnan(row[i]) else f"{row[i]:g}"
        raise ValueError(f"entry {i + 1} of {len(row)} is {what}, expected a whole number from 0 to {_LARGEST - 1}")
    return row


def _number(part: Any, i: int, n: int) -> float:
    where = f"entry {i + 1} of {n} " if n > 1 else ""
    if is_missing(part):
        return float("nan")
    try:
        if not isinstance(part, (str, int, float, np.number)):
            raise TypeError
        value = float(part)
    except (TypeError, ValueError):
        raise ValueError(f"{where}is {part!r}, expected a number") from None
    if np.isinf(value):
        raise ValueError(f"{where}is {part!r}, expected a finite number")
    return value


def write_table(path: Path, header: Iterable[str], rows: np.ndarray) -> Path:
    """A .csv file of a header and rows [n, columns]; six digits are all a float32 is good for, give or take one."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(header)
    table.writerows([f"{value:.7g}" for value in row] for row in rows)
    path = with_ending(path, ".csv")
    write_atomic(path, file.getvalue())
    return path


def names_of(names: Any, n: int, reader: str) -> list[str]:
    """Names of n columns: those given, or x1 to xn."""
    if names is None:
        return [f"x{i + 1}" for i in range(n)]
    if len(names) != n:
        raise ValueError(f"{reader} reader: names is {names!r}, expected {n}, one a column")
    return [str(name) for name in names]
