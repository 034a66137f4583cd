"""What all pictures share: figures that need no display and touch no global state, one look, colours of classes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvae_fast._files import write_atomic
from mmvae_fast._lazy import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, WRONG, FAINT = "#222222", "#c0392b", "#999999"
SERIES = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#64b5cd")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names and texts are data: a $ in them is a dollar
}


def new_figure(**options: Any) -> Figure:
    """Not through pyplot: no global state, no display needed."""
    return require("matplotlib.figure", extra="plots").Figure(layout="constrained", dpi=130, **options)


def style() -> AbstractContextManager[None]:
    """To draw in."""
    return require("matplotlib", extra="plots").rc_context(_STYLE)


def class_colours(classes: Sequence[Any]) -> list[Any]:
    """One for each of some sorted classes: well apart up to 20, then along the rainbow."""
    maps = require("matplotlib", extra="plots").colormaps
    count = len(classes)
    if count <= 20:
        chosen = maps["tab10" if count <= 10 else "tab20"]
        return [chosen(i) for i in range(count)]
    return [maps["turbo"](place) for place in np.linspace(0, 1, count)]


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure to a file of the type its ending names (.png, .pdf, .svg), wholly or not at all."""
    import io

    path = Path(path)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # names and texts are data: what the font lacks, such as an emoji, is a box, and nobody can do anything about it
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format=path.suffix.lstrip(".") or "png")
    write_atomic(path, buffer.getvalue())
    return path
