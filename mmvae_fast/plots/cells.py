"""One sample of one modality in one panel: images and spectrograms as pictures, texts as text, time series as lines,
vectors as bars."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mmvae_fast.modalities import Modality
from mmvae_fast.plots.style import FAINT, INK, SERIES

KINDS = ("image", "text", "audio", "sequence", "vector")
_WORDS_A_LINE, _MOST_LINES = 3, 6


def kind_of(modality: Modality) -> str:
    """How to show a modality: one of ``KINDS``."""
    if not modality.dtype.is_floating_point:
        return "text"
    if modality.kind == "sequence":
        return "sequence"
    if modality.kind == "audio" or len(modality.shape) == 2:
        return "audio"
    return "image" if len(modality.shape) == 3 else "vector"


def values_of(modality: Modality, x: Tensor) -> list[Any]:
    """Samples [B, *shape] as :func:`draw_cell` takes them: arrays, or sentences. Counts whose predictions are
    shares become shares as well."""
    if kind_of(modality) == "text":
        try:
            return list(modality.detokenize(x))  # type: ignore[attr-defined]
        except (AttributeError, ValueError):  # ids without words
            return [" ".join(map(str, ids)) for ids in x.flatten(1).tolist()]
    return list(modality.comparable(x.detach().double()).numpy(force=True))


def draw_cell(
    axis: Any,
    kind: str,
    value: Any,
    *,
    limits: tuple[float, float] | None = None,
    colour: str = INK,
    box_aspect: float | None = None,
) -> None:
    """Draw a value, or an empty panel of None.

    Args:
        axis: of matplotlib.
        kind: "image" [H, W] or [C, H, W], "audio" [bands, frames] with low frequencies below, "sequence" [steps,
            channels], a line a channel, "vector" [n], or "text".
        limits: the values that are black and white, or the ends of bars and lines; else the value's own.
        colour: of text.
        box_aspect: height of the panel, in widths; else as the picture is.
    """
    if kind not in KINDS:
        raise ValueError(f"draw_cell: kind is {kind!r}, expected one of {KINDS}")
    axis.set(xticks=[], yticks=[])
    if box_aspect is not None:
        axis.set_box_aspect(box_aspect)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if value is None:
        axis.text(0.5, 0.5, "missing", ha="center", va="center", fontsize=7, color=FAINT, transform=axis.transAxes)
    elif kind == "text":
        axis.text(0.5, 0.5, _wrapped(value), ha="center", va="center", fontsize=7.5, color=colour, parse_math=False)
    elif kind == "sequence":
        _lines(axis, np.asarray(value), limits)
    elif kind == "vector":
        _bars(axis, np.asarray(value).reshape(-1), limits)
    else:
        picture = np.asarray(value, dtype=np.float64)
        low, high = limits or (float(picture.min()), float(picture.max()))
        high = high if high > low else low + 1
        if kind == "audio":
            axis.imshow(picture, cmap="magma", vmin=low, vmax=high, origin="lower", aspect="auto")
        elif picture.ndim == 3 and picture.shape[0] == 3:
            axis.imshow(((picture - low) / (high - low)).clip(0, 1).transpose(1, 2, 0))
        else:  # of other numbers of channels, the first
            axis.imshow(picture.reshape(-1, *picture.shape[-2:])[0], cmap="gray", vmin=low, vmax=high)


def _lines(axis: Any, values: np.ndarray, limits: tuple[float, float] | None) -> None:
    for i, channel in enumerate(values.T):
        marker = "." if len(channel) == 1 else ""
        axis.plot(channel, color=SERIES[i % len(SERIES)], linewidth=1, marker=marker)
    if limits is not None:
        margin = 0.05 * (limits[1] - limits[0]) or 1.0
        axis.set_ylim(limits[0] - margin, limits[1] + margin)


def _bars(axis: Any, values: np.ndarray, limits: tuple[float, float] | None) -> None:
    axis.bar(np.arange(len(values)), values, width=0.8, color=SERIES[0], linewidth=0)
    axis.axhline(0, color=FAINT, linewidth=0.6)
    if limits is not None:
        low, high = min(limits[0], 0.0), max(limits[1], 0.0)
        margin = 0.05 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)


def _wrapped(sentence: str) -> str:
    words = str(sentence).split()
    lines = [" ".join(words[i : i + _WORDS_A_LINE]) for i in range(0, len(words), _WORDS_A_LINE)]
    return "\n".join([*lines[:_MOST_LINES], "…"] if len(lines) > _MOST_LINES else lines)
