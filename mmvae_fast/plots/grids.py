"""Every target decoded from every source, beside what was really there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmvae_fast.evaluate.rows import Rows, choose_subsets, generate, judged, name_of, targets
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.plots.cells import draw_cell, kind_of, values_of
from mmvae_fast.plots.style import new_figure, style
from mmvae_fast.training.data import Data
from mmvae_fast.training.seeding import derive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cross_modal_grid(
    model: MultimodalVAE,
    data: Data | Rows,
    *,
    examples: Sequence[int] = (0, 1, 2),
    subsets: str | Sequence[Sequence[str]] | None = None,
    sampled: bool = False,
    seed: int = 0,
    title: str = "Decoded from what was shown",
) -> Figure:
    """Rows are sources, columns targets, each with some examples; above them, the data.

    Args:
        data: as :func:`mmvae_fast.training.fit` takes it. An example that lacks a source has no pictures in its row.
        examples: numbers of the rows of the data.
        subsets: the sources: None for single modalities and all together, "all", or a list of lists of names.
        sampled: decode a draw of the posterior instead of its mean.
    """
    rows = Rows.of(model, data)
    wanted = list(examples)
    if not wanted or not all(type(i) is int and 0 <= i < len(rows) for i in wanted):
        raise ValueError(f"cross_modal_grid: examples is {wanted}, expected numbers from 0 to {len(rows) - 1}")
    rows = rows.take(torch.tensor(wanted))
    names = list(model.modalities)
    sources = choose_subsets(model, [*([name] for name in names), names] if subsets is None else subsets)
    columns = [(target, i) for target in targets(model) for i in range(len(wanted))]
    limits = {target: _limits(model, rows, target) for target in targets(model)}

    def show(line: Any, values: dict[str, list[Any]]) -> None:
        for axis, (target, i) in zip(line, columns, strict=True):
            draw_cell(axis, kind_of(model.modalities[target]), values[target][i], limits=limits[target], box_aspect=1)

    with style():
        figure = new_figure(figsize=(1.0 * len(columns) + 1.4, 1.0 * (len(sources) + 1) + 0.7))
        figure.suptitle(title, fontweight="bold")
        axes = figure.subplots(len(sources) + 1, len(columns), squeeze=False)
        show(axes[0], {target: _real(model, rows, target) for target in targets(model)})
        for line, source in zip(axes[1:], sources, strict=True):
            noise = derive(seed, "grid", name_of(source)) if sampled else None
            show(line, _decoded(model, rows, source, noise))
        for line, name in zip(axes, ["data", *map(name_of, sources)], strict=True):
            line[0].text(
                -0.15, 0.5, name.replace("+", "+\n"), ha="right", va="center", fontsize=9, fontweight="bold",
                transform=line[0].transAxes,
            )  # fmt: skip
        for axis, (target, i) in zip(axes[0], columns, strict=True):
            if i == 0:
                axis.set_title(target, loc="left")
    return figure


def _limits(model: MultimodalVAE, rows: Rows, name: str) -> tuple[float, float] | None:
    """Of the values of a modality in these rows, so that panels can be compared."""
    modality = model.modalities[name]
    if modality.likelihood == "bernoulli":
        return 0.0, 1.0
    if not modality.dtype.is_floating_point or name not in rows.data:
        return None
    real = modality.comparable(rows.data[name][rows.observed(name)])
    real = real[real.isfinite()]
    return (float(real.min()), float(real.max())) if real.numel() else None


def _real(model: MultimodalVAE, rows: Rows, name: str) -> list[Any]:
    if name not in rows.data:
        return [None] * len(rows)
    values = values_of(model.modalities[name], rows.data[name])
    return [value if there else None for value, there in zip(values, rows.observed(name).tolist(), strict=True)]


def _decoded(model: MultimodalVAE, rows: Rows, source: Sequence[str], seed: int | None) -> dict[str, list[Any]]:
    """By target, a value for every row; None where the row lacks the source."""
    there = rows.having(source)
    found: dict[str, list[Any]] = {name: [None] * len(rows) for name in targets(model)}
    if not len(there):
        return found
    shown = rows.take(there)
    decoded: dict[str, Tensor]
    if seed is None:
        with judged(model):
            decoded = model.reconstruct({name: shown.data[name].to(model.device) for name in source})
    else:
        decoded = generate(model, shown, source, targets(model), seed=seed)
    for name, x in decoded.items():
        for place, value in zip(there.tolist(), values_of(model.modalities[name], x), strict=True):
            found[name][place] = value
    return found
