"""Counts of one or several columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.data.reader import Reader
from mmvae_fast.modalities import Counts
from mmvae_fast.reading.numbers import counts, names_of, write_table


class CountsReader(Reader):
    """Whole numbers of several columns, or a list of them -> float32 [n].

    What it writes are means, so not whole; with ``library="observed"`` they are shares, which sum to 1.

    Args:
        names: of the columns, for the header of what :meth:`write` writes.
        options: of the modality: likelihood, library, hidden, ...; see :class:`mmvae_fast.modalities.Counts`.
    """

    kind = "counts"

    def __init__(self, *, names: Sequence[str] | None = None, **options: Any) -> None:
        self.names = None if names is None else [str(name) for name in names]
        self.options = options
        self.size: int | None = None
        Counts(1, **options)  # what the modality refuses is refused now

    def fit(self, cells: Iterable[Any]) -> None:
        for cell in cells:
            row = counts(cell)
            if self.size is not None and len(row) != self.size:
                raise ValueError(f"has {len(row)} counts, expected {self.size} as before")
            self.size = len(row)
        if self.size is None:
            raise ValueError("there is nothing to learn the number of counts from")
        names_of(self.names, self.size, self.kind)

    def read(self, cell: Any) -> Tensor:
        size, row = self._fitted("read"), counts(cell)
        if len(row) != size:
            raise ValueError(f"has {len(row)} counts, expected {size}")
        return torch.from_numpy(row.astype(np.float32))

    def write(self, sample: Tensor, path: Path) -> Path:
        return write_table(path, names_of(self.names, self._fitted("write"), self.kind), self.show(sample)[None])

    def show(self, sample: Tensor) -> np.ndarray:
        """float64 [n]."""
        return sample.numpy(force=True).astype(np.float64)

    def modality(self) -> Counts:
        return Counts(self._fitted("modality"), **self.options)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": self.names, **self.options, "fitted": self.size}

    @classmethod
    def _from_config(cls, options: dict[str, Any]) -> Reader:
        size = options.pop("fitted")
        reader = cls(**options)
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"fitted is {size!r}, expected a number of counts")
        reader.size = size
        return reader

    def _fitted(self, method: str) -> int:
        if self.size is None:
            raise ValueError(f"counts reader: {method} comes after fit")
        return self.size
