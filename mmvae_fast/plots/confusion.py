"""What a classifier takes for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvae_fast._lazy import require
from mmvae_fast.plots.style import FAINT, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUMBERED, _NAMED = 20, 60  # classes of which there is room for counts, and for names
_CELL, _LEAST, _MOST = 0.42, 3.0, 11.0  # inches


def confusion_matrix(
    counts: Any, class_names: Sequence[str] | None = None, *, title: str = "What is taken for what"
) -> Figure:
    """Counts of rows by their class (down) and the class they were taken for (across), coloured by the share of the
    class; a class without rows stays grey.

    Args:
        counts: [C, C], as :func:`mmvae_fast.evaluate.confusion` gives.
        class_names: C names; numbers unless given.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size or (matrix < 0).any():
        raise ValueError(f"confusion_matrix: counts has shape {list(matrix.shape)}, expected counts [C, C]")
    names = [str(i) for i in range(len(matrix))] if class_names is None else list(class_names)
    if len(names) != len(matrix):
        raise ValueError(f"confusion_matrix: got {len(names)} class_names, expected {len(matrix)}")
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    side = min(max(_CELL * len(names), _LEAST), _MOST)
    with style():
        figure = new_figure(figsize=(side + 2.0, side + 1.2))
        axis = figure.subplots()
        colours = require("matplotlib", extra="plots").colormaps["viridis"].with_extremes(bad="#eeeeee")
        image = axis.imshow(shares, cmap=colours, vmin=0, vmax=1)
        if len(names) <= _NUMBERED:
            for row, column in zip(*np.nonzero(matrix), strict=True):
                colour = "black" if shares[row, column] > 0.6 else "white"
                axis.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        if len(names) <= _NAMED:
            axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
            axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set(title=title, xlabel="told", ylabel="class")
        axis.tick_params(length=0, color=FAINT)
        figure.colorbar(image, ax=axis, shrink=0.8, label="share of the class")
    return figure
