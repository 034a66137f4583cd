"""Rows of samples, each under its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmvae_fast.modalities import Modality
from mmvae_fast.plots.cells import draw_cell, kind_of, values_of
from mmvae_fast.plots.style import new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sample_rows(rows: Sequence[tuple[str, Modality, Tensor]], *, title: str = "Samples") -> Figure:
    """Samples side by side.

    Args:
        rows: (name, modality, samples [n, *shape]) from top to bottom; rows of one modality share their scale.
    """
    if not rows or not any(len(x) for _, _, x in rows):
        raise ValueError("sample_rows: rows is empty, expected some samples")
    limits: dict[int, tuple[float, float] | None] = {}
    for modality in [of for _, of, _ in rows]:
        if modality.likelihood == "bernoulli":
            limits[id(modality)] = (0.0, 1.0)
        elif modality.dtype.is_floating_point:
            numbers = torch.cat([modality.comparable(x.double()).flatten() for _, of, x in rows if of is modality])
            numbers = numbers[numbers.isfinite()]
            limits[id(modality)] = (float(numbers.min()), float(numbers.max())) if numbers.numel() else None
        else:
            limits[id(modality)] = None
    columns = max(len(x) for _, _, x in rows)
    with style():
        figure = new_figure(figsize=(0.8 * columns + 1.6, 0.8 * len(rows) + 0.6))
        figure.suptitle(title, fontweight="bold")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, modality, x) in zip(axes, rows, strict=True):
            values = values_of(modality, x) if len(x) else []
            for axis, value in zip(line, values, strict=False):
                draw_cell(axis, kind_of(modality), value, limits=limits[id(modality)], box_aspect=1)
            for axis in line[len(values) :]:
                axis.set_axis_off()
            line[0].text(-0.15, 0.5, name, ha="right", va="center", fontsize=8, transform=line[0].transAxes)
    return figure
