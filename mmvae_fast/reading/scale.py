"""Means and standard deviations of training numbers, with gaps, and there and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


class Scale:
    """Columns brought to mean 0 and standard deviation 1, and back; NaN is a gap that stays one.

    A column that is constant, or of which nothing was seen, is only shifted.
    """

    def __init__(self, mean: Any, sd: Any) -> None:
        self.mean, self.sd = (np.asarray(v, dtype=np.float64) for v in (mean, sd))
        if self.mean.ndim != 1 or self.mean.shape != self.sd.shape or not len(self.mean):
            raise ValueError(f"mean and sd have shapes {list(self.mean.shape)} and {list(self.sd.shape)}, expected [n]")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.sd).all() and (self.sd > 0).all()):
            raise ValueError("mean and sd are expected to be finite, and sd positive")

    @classmethod
    def of(cls, parts: Iterable[np.ndarray]) -> Scale:
        """Of all rows of several arrays [..., n], one in memory at a time (Chan, Golub & LeVeque 1983)."""
        count = mean = square = None
        for part in parts:
            rows = np.asarray(part, dtype=np.float64).reshape(-1, np.shape(part)[-1])
            there = ~np.isnan(rows)
            n = there.sum(0)
            m = np.where(there, rows, 0).sum(0) / np.maximum(n, 1)
            s = np.where(there, (rows - m) ** 2, 0).sum(0)
            if count is None or mean is None or square is None:
                count, mean, square = n, m, s
                continue
            if m.shape != mean.shape:
                raise ValueError(f"has {len(m)} numbers a row, expected {len(mean)} as before")
            total = np.maximum(count + n, 1)
            square = square + s + (m - mean) ** 2 * count * n / total
            mean = mean + (m - mean) * n / total
            count = count + n
        if count is None or mean is None or square is None:
            raise ValueError("there is nothing to learn mean and standard deviation from")
        sd = np.sqrt(square / np.maximum(count, 1))
        return cls(mean, np.where(sd > 1e-12 * np.maximum(np.abs(mean), 1e-300), sd, 1.0))

    def __len__(self) -> int:
        return len(self.mean)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.sd

    def unscaled(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float64) * self.sd + self.mean

    def config(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "sd": self.sd.tolist()}
