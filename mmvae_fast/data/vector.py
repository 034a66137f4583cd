"""Numbers of one or several columns, standardised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.data._scale import Scale, ScaledReader
from mmvae_fast.modalities import Vector
from mmvae_fast.reading.numbers import names_of, numbers, write_table


class VectorReader(ScaledReader):
    """Numbers of several columns, a number, or a list of numbers -> float32 [n], each column with the mean 0 and the
    standard deviation 1 of its training cells. Predictions come back in the columns' own units.

    Args:
        missing: whether entries may be missing where others of the row are there (see
            :class:`mmvae_fast.modalities.Vector`); None: they may if they are in a training row.
        standardise: False leaves the numbers as they are.
        names: of the columns, for the header of what :meth:`write` writes.
        options: of the modality: likelihood, scale (in standard deviations), hidden, ...
    """

    kind = "vector"

    def __init__(
        self,
        *,
        missing: bool | None = None,
        standardise: bool = True,
        names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        for what, value in (("missing", missing), ("standardise", standardise)):
            if not isinstance(value, bool) and not (what == "missing" and value is None):
                raise ValueError(f"vector reader: {what} is {value!r}, expected True or False")
        self.missing, self.standardise = missing, standardise
        self.names = None if names is None else [str(name) for name in names]
        self.options = options
        self.scale: Scale | None = None
        Vector(1, missing=bool(missing), **options)  # what the modality refuses is refused now

    def fit(self, cells: Iterable[Any]) -> None:
        gaps = False

        def rows() -> Iterable[np.ndarray]:
            nonlocal gaps
            for cell in cells:
                row = numbers(cell)
                gaps = gaps or bool(np.isnan(row).any())
                yield row

        scale = Scale.of(rows())
        names_of(self.names, len(scale), self.kind)
        self.scale = scale if self.standardise else Scale(np.zeros(len(scale)), np.ones(len(scale)))
        if self.missing is None:
            self.missing = gaps

    def read(self, cell: Any) -> Tensor:
        scale, row = self._fitted("read"), numbers(cell)
        if len(row) != len(scale):
            raise ValueError(f"has {len(row)} numbers, expected {len(scale)}")
        if np.isnan(row).any() and not self.missing:
            i = int(np.flatnonzero(np.isnan(row))[0])
            raise ValueError(f"entry {i + 1} of {len(row)} is missing; set missing: true if some may be")
        return torch.from_numpy(scale.scaled(row).astype(np.float32))

    def write(self, sample: Tensor, path: Path) -> Path:
        scale = self._fitted("write")
        return write_table(path, names_of(self.names, len(scale), self.kind), self.show(sample)[None])

    def show(self, sample: Tensor) -> np.ndarray:
        """float64 [n] in the columns' own units."""
        return self._fitted("show").unscaled(sample.numpy(force=True))

    def modality(self) -> Vector:
        return Vector(len(self._fitted("modality")), missing=bool(self.missing), **self.options)

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "missing": self.missing,
            "standardise": self.standardise,
            "names": self.names,
            **self.options,
            "fitted": None if self.scale is None else self.scale.config(),
        }

    def _fitted(self, method: str) -> Scale:
        if self.scale is None:
            raise ValueError(f"vector reader: {method} comes after fit")
        return self.scale
