"""Tables by source and target, in colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmvae_fast._lazy import require
from mmvae_fast.plots.style import FAINT, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heatmap(
    table: Mapping[str, Mapping[str, float]],
    *,
    title: str = "Coherence",
    limits: tuple[float, float] | None = (0.0, 1.0),
    form: str = ".2f",
) -> Figure:
    """Figures by source (rows) and target (columns), such as :func:`mmvae_fast.evaluate.cross_coherence` gives; what is
    not there stays grey.

    Args:
        limits: the values of the first and the last colour; None for the smallest and largest there are.
        form: how numbers are written.
    """
    sources = list(table)
    columns = list(dict.fromkeys(target for row in table.values() for target in row))
    if not sources or not columns:
        raise ValueError("heatmap: table is empty, expected figures by source and target")
    values = np.array([[float(row.get(target, np.nan)) for target in columns] for row in table.values()])
    if limits is None:
        finite = values[np.isfinite(values)]
        limits = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = limits
    with style():
        figure = new_figure(figsize=(0.85 * len(columns) + 2.6, 0.42 * len(sources) + 1.6))
        axis = figure.subplots()
        colours = require("matplotlib", extra="plots").colormaps["viridis"].with_extremes(bad="#eeeeee")
        image = axis.imshow(values, cmap=colours, vmin=low, vmax=high if high > low else low + 1, aspect="auto")
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if np.isfinite(value):
                    bright = (value - low) > 0.6 * (high - low)
                    axis.text(column, row, format(value, form), ha="center", va="center", fontsize=8,
                              color="black" if bright else "white")  # fmt: skip
        axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        axis.set_yticks(range(len(sources)), sources)
        axis.set(title=title, xlabel="target", ylabel="source")
        axis.tick_params(length=0, color=FAINT)
        figure.colorbar(image, ax=axis, shrink=0.8)
    return figure
