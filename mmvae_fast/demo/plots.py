"""The pictures of the demo. Every function draws one matplotlib figure from plain arrays and returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvae_fast._lazy import require
from mmvae_fast.demo.data import SHOWN_AS, read_caption

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_COLOURS = {"image": "#4c72b0", "text": "#dd8452", "audio": "#55a868"}
_HEIGHT = {"image": 1.0, "text": 0.45, "audio": 1.0}  # of a cell, in widths
_INK, _WRONG, _FAINT = "#222222", "#c0392b", "#999999"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "text.color": _INK,
}


@dataclass(frozen=True)
class Row:
    """One line of a grid: ``values`` of one modality (captions already as sentences), under ``title``."""

    title: str
    modality: str
    values: Sequence[Any]


def _figure(**options: Any) -> Figure:
    """Not through pyplot: no global state, no display needed."""
    return require("matplotlib.figure", extra="plots").Figure(layout="constrained", dpi=130, **options)


def _style() -> Any:
    return require("matplotlib", extra="plots").rc_context(_STYLE)


def training_curve(history: Sequence[Mapping[str, float]], warmup_epochs: int) -> Figure:
    """ELBO, KL and log-likelihoods over the epochs, of training and (dashed) validation rows; in nats."""
    with _style():
        figure = _figure(figsize=(11, 3.2))
        elbo, kl, likelihoods = figure.subplots(1, 3)
        epochs = [epoch["epoch"] for epoch in history]

        def draw(axis: Any, key: str, colour: str, label: str) -> None:
            axis.plot(epochs, [e[key] for e in history], color=colour, label=label)
            if f"val_{key}" in history[0]:
                axis.plot(epochs, [e[f"val_{key}"] for e in history], color=colour, linestyle="--")

        draw(elbo, "elbo", _INK, "training")
        draw(kl, "kl", _INK, "training")
        for name in SHOWN_AS:
            draw(likelihoods, f"ll_{name}", _COLOURS[name], SHOWN_AS[name])
        elbo.plot([], [], color=_INK, linestyle="--", label="validation")
        elbo.legend()
        likelihoods.legend()
        kl.axvspan(0, warmup_epochs, color=_FAINT, alpha=0.15, linewidth=0)
        kl.text(warmup_epochs / 2, 0.02, "warm-up", ha="center", color=_FAINT, transform=kl.get_xaxis_transform())
        for axis, title in ((elbo, "ELBO"), (kl, "KL divergence"), (likelihoods, "log-likelihood")):
            axis.set(title=title, xlabel="epoch", ylabel="nats")
            axis.set_xlim(min(1, max(epochs) - 1), max(epochs))
            axis.locator_params("x", integer=True)
        # early epochs are far below: let the rest be seen
        for axis, keys in ((elbo, ["elbo"]), (likelihoods, [f"ll_{name}" for name in SHOWN_AS])):
            late = [epoch[key] for epoch in history[len(history) // 4 :] for key in keys]
            margin = 0.1 * (max(late) - min(late)) + 1
            axis.set_ylim(min(late) - margin, max(late) + margin)
    return figure


def grid(rows: Sequence[Row], labels: Sequence[int] | np.ndarray | None = None) -> Figure:
    """Rows of pictures and sentences, one column an example. With ``labels``, captions of another digit are red."""
    with _style():
        heights = [_HEIGHT[row.modality] for row in rows]
        columns = max(len(row.values) for row in rows)
        figure = _figure(figsize=(1.15 * columns + 1.6, 1.02 * sum(heights) + 0.3))
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for row, line in zip(rows, axes, strict=True):
            for column, (axis, value) in enumerate(zip(line, row.values, strict=True)):
                _cell(axis, row.modality, value, None if labels is None else int(labels[column]))
            line[0].text(
                -0.15, 0.5, row.title, ha="right", va="center", fontsize=9, fontweight="bold",
                transform=line[0].transAxes,
            )  # fmt: skip
    return figure


def _cell(axis: Any, modality: str, value: Any, label: int | None) -> None:
    axis.set(xticks=[], yticks=[], box_aspect=_HEIGHT[modality])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if modality == "text":
        wrong = read_caption(value) == -1 if label is None else read_caption(value) != label
        words = value.split(" ")
        lines = "\n".join(" ".join(part) for part in (words[:3], words[3:]))
        axis.text(0.5, 0.5, lines, ha="center", va="center", fontsize=7.5, color=_WRONG if wrong else _INK)
        return
    picture = np.asarray(value)
    if modality == "image":
        axis.imshow(picture.reshape(picture.shape[-2:]), cmap="gray", vmin=0, vmax=1)
    else:  # low frequencies below
        axis.imshow(picture, cmap="magma", vmin=0, vmax=1, origin="lower")


def latent_space(latents: Mapping[str, np.ndarray], labels: np.ndarray, axes_of: str) -> Figure:
    """Posterior means [N, D] by what they were inferred from, on the two principal axes of the panel ``axes_of``."""
    with _style():
        reference = latents[axes_of]
        centre = reference.mean(0)
        principal = np.linalg.svd(reference - centre, full_matrices=False)[2][:2]
        colours = require("matplotlib", extra="plots").colormaps["tab10"]
        figure = _figure(figsize=(3.1 * len(latents) + 0.6, 3.4))
        panels = figure.subplots(1, len(latents), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, mu) in zip(panels, latents.items(), strict=True):
            x, y = principal @ (mu - centre).T
            for digit in np.unique(labels):
                of = labels == digit
                axis.scatter(x[of], y[of], s=9, color=colours(int(digit)), label=str(digit), alpha=0.8, linewidths=0)
            axis.set(title=title, xlabel="first principal axis")
        panels[0].set_ylabel("second principal axis")
        handles, names = panels[-1].get_legend_handles_labels()
        figure.legend(handles, names, title="digit", loc="outside right center", markerscale=2)
    return figure
