"""Latents on a plane, and what moves when one of their dimensions does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast._lazy import require
from mmvae_fast.evaluate.rows import judged, targets
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.plots.cells import draw_cell, kind_of, values_of
from mmvae_fast.plots.style import FAINT, class_colours, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = {"pca": "principal axis", "tsne": "t-SNE axis", "umap": "UMAP axis"}
_ORDINALS = ("first", "second")
_LEAST = 4  # points that a neighbourhood method needs
Latents = Tensor | np.ndarray


def latent_map(
    latents: Latents | Mapping[str, Latents],
    labels: Any = None,
    *,
    method: str = "pca",
    axes_of: str | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "Latent space",
    legend: str = "class",
    seed: int = 0,
) -> Figure:
    """Latents [N, D] on two axes, coloured by class.

    Args:
        latents: of one set, or by name (such as what they were inferred from) for a panel each, on shared axes.
        labels: int [N], the same rows in every panel; -1 is grey.
        method: "pca", "tsne" or "umap" (of the ``umap`` extra).
        axes_of: with "pca", the panel whose principal axes all share; else those of all together.
        class_names: by class, for the legend.
    """
    sets = {"": latents} if not isinstance(latents, Mapping) else dict(latents)
    points = {name: torch.as_tensor(z).double().numpy(force=True) for name, z in sets.items()}
    if method not in METHODS:
        raise ValueError(f"latent_map: method is {method!r}, expected one of {list(METHODS)}")
    if not points:
        raise ValueError("latent_map: latents is empty, expected at least one set [N, D]")
    for name, z in points.items():
        if z.ndim != 2 or len(z) < 2 or z.shape[1] != next(iter(points.values())).shape[1]:
            raise ValueError(f"latent_map: latents {name!r} has shape {list(z.shape)}, expected [N, D], N at least 2")
        if not np.isfinite(z).all():
            raise ValueError(f"latent_map: latents {name!r} holds NaN or infinite values")
    if axes_of is not None and axes_of not in points:
        raise ValueError(f"latent_map: axes_of is {axes_of!r}, expected one of {list(points)}")
    known = None if labels is None else np.asarray(torch.as_tensor(labels).cpu())
    if known is not None and any(known.shape != (len(z),) for z in points.values()):
        raise ValueError(f"latent_map: labels has shape {list(known.shape)}, expected [N], as many as latents in a set")
    placed = _placed(points, method, axes_of, seed)
    with style():
        figure = new_figure(figsize=(3.1 * len(points) + 0.8, 3.6))
        if title:
            figure.suptitle(title, fontweight="bold")
        panels = figure.subplots(1, len(points), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (name, xy) in zip(panels, placed.items(), strict=True):
            _scatter(axis, xy, known, class_names)
            axis.set(title=name, xlabel=f"{_ORDINALS[0]} {METHODS[method]}")
        panels[0].set_ylabel(f"{_ORDINALS[1]} {METHODS[method]}")
        if known is not None:
            handles, names = panels[-1].get_legend_handles_labels()
            figure.legend(handles, names, title=legend, loc="outside right center", markerscale=2)
    return figure


def _scatter(axis: Any, xy: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None) -> None:
    if labels is None:
        axis.scatter(*xy.T, s=9, color=FAINT, alpha=0.8, linewidths=0)
        return
    axis.scatter(*xy[labels < 0].T, s=6, color=FAINT, alpha=0.4, linewidths=0)
    classes = np.unique(labels[labels >= 0])
    for one, colour in zip(classes, class_colours(list(classes)), strict=True):
        name = str(one) if names is None else names[one]
        axis.scatter(*xy[labels == one].T, s=9, color=colour, label=name, alpha=0.8, linewidths=0)


def _placed(points: dict[str, np.ndarray], method: str, axes_of: str | None, seed: int) -> dict[str, np.ndarray]:
    together = np.concatenate(list(points.values()))
    if method == "pca":
        reference = together if axes_of is None else points[axes_of]
        centre = reference.mean(0)
        axes = np.linalg.svd(reference - centre, full_matrices=False)[2][:2]
        return {name: _plane((z - centre) @ axes.T) for name, z in points.items()}
    if len(together) < _LEAST:
        raise ValueError(f"latent_map: got {len(together)} latents, expected {_LEAST} or more for {method!r}")
    if method == "tsne":
        perplexity = min(30.0, (len(together) - 1) / 3)
        fitted = require("sklearn.manifold", extra="plots").TSNE(
            2, perplexity=perplexity, init="pca" if together.shape[1] > 1 else "random", random_state=seed % 2**32
        )
    else:
        umap = require("umap", extra="umap").UMAP
        fitted = umap(n_components=2, n_neighbors=min(15, len(together) - 1), random_state=seed % 2**32)
    flat = fitted.fit_transform(together)
    ends = np.cumsum([len(z) for z in points.values()])[:-1]
    return dict(zip(points, np.split(flat, ends), strict=True))


def _plane(xy: np.ndarray) -> np.ndarray:
    """Two columns, of one-dimensional latents too."""
    return np.pad(xy, ((0, 0), (0, 2 - xy.shape[1])))


def latent_traversal(
    model: MultimodalVAE,
    to: str,
    *,
    z: Tensor | None = None,
    dims: Sequence[int] | None = None,
    span: float = 2.5,
    steps: int = 7,
    title: str | None = None,
) -> Figure:
    """One modality decoded while one dimension of the latent moves: a row each, all else as it is.

    Args:
        to: the modality to decode.
        z: [D], where to start, such as ``model.encode(batch).point[0]``; None for the mean of N(0, I).
        dims: which dimensions; None for the eight (or fewer) along which the decoded sample changes most.
        span: how far to both sides, in standard deviations of the prior N(0, I).
        steps: columns.
    """
    if to not in targets(model):
        raise ValueError(f"latent_traversal: to is {to!r}, expected one of {targets(model)}")
    if type(steps) is not int or steps < 2:
        raise ValueError(f"latent_traversal: steps is {steps!r}, expected 2 or more")
    d = model.latent_dim
    start = torch.zeros(d) if z is None else torch.as_tensor(z)
    if tuple(start.shape) != (d,):
        raise ValueError(f"latent_traversal: z has shape {list(start.shape)}, expected [D] = [{d}]")
    chosen = list(range(d)) if dims is None else list(dims)
    if not chosen or not all(type(i) is int and 0 <= i < d for i in chosen):
        raise ValueError(f"latent_traversal: dims is {chosen}, expected dimensions from 0 to {d - 1}")
    start = start.detach().to(model.device, model.dtype)
    offsets = torch.linspace(-span, span, steps, device=model.device, dtype=model.dtype)
    moved = start.repeat(len(chosen), steps, 1)
    for row, dim in enumerate(chosen):
        moved[row, :, dim] += offsets
    with judged(model):
        decoded = model.decode(moved.flatten(0, 1), [to])[to].unflatten(0, (len(chosen), steps))
    change = (decoded[:, 1:] != decoded[:, :-1]).double() if not decoded.is_floating_point() else decoded.diff(dim=1)
    if dims is None:
        most = change.double().square().flatten(1).sum(1).argsort(descending=True)[:8].tolist()
        chosen, decoded = [chosen[i] for i in most], decoded[most]
    modality = model.modalities[to]
    kind = kind_of(modality)
    limits = None
    if modality.likelihood == "bernoulli":
        limits = (0.0, 1.0)
    elif decoded.is_floating_point():
        limits = (float(decoded.min()), float(decoded.max()))
    with style():
        figure = new_figure(figsize=(0.95 * steps + 0.9, 0.95 * len(chosen) + 0.8))
        figure.suptitle(f"{to} along single latent dimensions" if title is None else title, fontweight="bold")
        axes = figure.subplots(len(chosen), steps, squeeze=False)
        for line, dim, samples in zip(axes, chosen, decoded, strict=True):
            for axis, value in zip(line, values_of(modality, samples), strict=True):
                draw_cell(axis, kind, value, limits=limits, box_aspect=1)
            line[0].text(-0.15, 0.5, f"z{dim}", ha="right", va="center", transform=line[0].transAxes)
        for axis, offset in zip(axes[0], offsets.tolist(), strict=True):
            axis.set_title(f"{offset:+.1f}", fontsize=8, fontweight="normal")
    return figure
