"""How far one stream lags behind another, as a modality of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from mmvae_fast.data._streams import Delay
from mmvae_fast.data.vector import VectorReader


class LagReader(VectorReader):
    """Two columns of series (what a ``sequence`` takes) or of sound files -> float32 [1]: by how many seconds, or steps
    where no rate is known, what the second holds comes later than in the first, standardised as a ``vector`` is. It is
    estimated by cross-correlation (:func:`mmvae_fast.features.align`). A row without one of the two has no lag; a
    series that is constant or of one step is an error of its row, and so is a lag beyond ``max_lag``.

    Args:
        rates: of the two columns, in Hz; None is what a sound file says, and else one step each.
        max_lag: the largest lag to look for, either way; None is as far as the two overlap.
        standardise: False leaves the lag in its own unit.
        options: of the modality: likelihood, scale (in standard deviations), hidden, ...
    """

    kind = "lag"
    modality_kind = "vector"
    reads_files = True
    n_columns = 2
    takes = (os.PathLike, tuple, list, np.ndarray, Tensor)

    def __init__(
        self, *, rates: Any = None, max_lag: float | None = None, standardise: bool = True, **options: Any
    ) -> None:
        self.delay = Delay("lag reader", rates, max_lag)
        super().__init__(missing=False, standardise=standardise, names=["lag"], **options)

    def fit(self, cells: Iterable[Any]) -> None:
        super().fit(self._lag(cell) for cell in cells)

    def read(self, cell: Any) -> Tensor:
        return super().read(self._lag(cell))

    def config(self) -> dict[str, Any]:
        found = {key: value for key, value in super().config().items() if key not in ("missing", "names")}
        return {**found, "rates": self.delay.rates, "max_lag": self.delay.max_lag}

    def _lag(self, cell: Any) -> float:
        return self.delay.pair(cell).lag(self.delay.max_lag)
