"""The pictures of the demo: those of :mod:`mmvae_fast.plots`, and a grid in which broken captions are red."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvae_fast.demo.data import SHOWN_AS, read_caption
from mmvae_fast.plots import latent_map, training_curves
from mmvae_fast.plots.cells import draw_cell
from mmvae_fast.plots.style import INK, WRONG, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEIGHT = {"image": 1.0, "text": 0.45, "audio": 1.0}  # of a cell, in widths


@dataclass(frozen=True)
class Row:
    """One line of a grid: ``values`` of one modality (captions already as sentences), under ``title``."""

    title: str
    modality: str
    values: Sequence[Any]


def training_curve(history: Sequence[Mapping[str, float]], warmup_epochs: int) -> Figure:
    """ELBO, KL and log-likelihoods over the epochs, of training and (dashed) validation rows; in nats."""
    return training_curves(history, warmup_epochs=warmup_epochs, names=SHOWN_AS)


def grid(rows: Sequence[Row], labels: Sequence[int] | np.ndarray | None = None) -> Figure:
    """Rows of pictures and sentences, one column an example. With ``labels``, captions of another digit are red."""
    with style():
        heights = [_HEIGHT[row.modality] for row in rows]
        columns = max(len(row.values) for row in rows)
        figure = new_figure(figsize=(1.15 * columns + 1.6, 1.02 * sum(heights) + 0.3))
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for row, line in zip(rows, axes, strict=True):
            for column, (axis, value) in enumerate(zip(line, row.values, strict=True)):
                colour = INK
                if row.modality == "text":
                    digit = read_caption(value)
                    wrong = digit == -1 if labels is None else digit != int(labels[column])
                    colour = WRONG if wrong else INK
                height = _HEIGHT[row.modality]
                draw_cell(axis, row.modality, value, limits=(0, 1), colour=colour, box_aspect=height)
            line[0].text(
                -0.15, 0.5, row.title, ha="right", va="center", fontsize=9, fontweight="bold",
                transform=line[0].transAxes,
            )  # fmt: skip
    return figure


def latent_space(latents: Mapping[str, np.ndarray], labels: np.ndarray, axes_of: str) -> Figure:
    """Posterior means [N, D] by what they were inferred from, on the two principal axes of the panel ``axes_of``."""
    return latent_map(latents, labels, axes_of=axes_of, title="", legend="digit")
