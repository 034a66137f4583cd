"""How a training went."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvae_fast.plots.style import FAINT, INK, SERIES, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, float]]


def read_history(path: str | os.PathLike) -> list[dict[str, float]]:
    """The epochs in a ``history.json`` that :func:`mmvae_fast.training.fit` wrote, or of the folder it wrote to."""
    path = Path(path)
    path = path / "history.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a history: {error}") from error
    return _checked(found, str(path))


def training_curves(
    history: History | str | os.PathLike,
    *,
    warmup_epochs: float = 0.0,
    names: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """ELBO, KL divergence and log-likelihoods over the epochs, of training and (dashed) validation rows, in nats.

    Args:
        history: what :func:`mmvae_fast.training.fit` returns, its ``history.json``, or the folder that holds it.
        warmup_epochs: shaded.
        names: what the legend calls a modality.
    """
    epochs = read_history(history) if isinstance(history, (str, os.PathLike)) else _checked(list(history), "history")
    numbers = [epoch["epoch"] for epoch in epochs]
    modalities = [key.removeprefix("ll_") for key in epochs[0] if key.startswith("ll_")]
    with style():
        figure = new_figure(figsize=(11, 3.2 if not title else 3.5))
        if title:
            figure.suptitle(title, fontweight="bold")
        elbo, kl, likelihoods = figure.subplots(1, 3)

        def draw(axis: Any, key: str, colour: str, label: str) -> None:
            axis.plot(numbers, [_value(epoch, key) for epoch in epochs], color=colour, label=label)
            if f"val_{key}" in epochs[0]:
                values = [_value(epoch, f"val_{key}") for epoch in epochs]
                axis.plot(numbers, values, color=colour, linestyle="--")

        draw(elbo, "elbo", INK, "training")
        draw(kl, "kl", INK, "training")
        for i, name in enumerate(modalities):
            draw(likelihoods, f"ll_{name}", SERIES[i % len(SERIES)], (names or {}).get(name, name))
        if "val_elbo" in epochs[0]:
            elbo.plot([], [], color=INK, linestyle="--", label="validation")
        elbo.legend()
        if modalities:
            likelihoods.legend()
        if warmup_epochs:
            kl.axvspan(0, warmup_epochs, color=FAINT, alpha=0.15, linewidth=0)
            kl.text(warmup_epochs / 2, 0.02, "warm-up", ha="center", color=FAINT, transform=kl.get_xaxis_transform())
        for axis, heading in ((elbo, "ELBO"), (kl, "KL divergence"), (likelihoods, "log-likelihood")):
            axis.set(title=heading, xlabel="epoch", ylabel="nats")
            axis.set_xlim(min(1, max(numbers) - 1), max(numbers))
            axis.locator_params("x", integer=True)
        # early epochs are far below: let the rest be seen
        for axis, keys in ((elbo, ["elbo"]), (likelihoods, [f"ll_{name}" for name in modalities])):
            late = [_value(epoch, key) for epoch in epochs[len(epochs) // 4 :] for key in keys]
            late = [value for value in late if math.isfinite(value)]
            if late:
                margin = 0.1 * (max(late) - min(late)) + 1
                axis.set_ylim(min(late) - margin, max(late) + margin)
    return figure


def loss_curves(history: History | str | os.PathLike, *, title: str = "") -> Figure:
    """Every figure of a system's training over the epochs, a panel each; of validation rows dashed.

    Args:
        history: what :func:`mmvae_fast.systems.fit` returns, its ``history.json``, or the folder that holds it.
    """
    epochs = read_history(history) if isinstance(history, (str, os.PathLike)) else _checked(list(history), "history")
    numbers = [epoch["epoch"] for epoch in epochs]
    every = dict.fromkeys(key for epoch in epochs for key in epoch if key not in ("epoch", "seconds"))
    shown = list(dict.fromkeys(key.removeprefix("val_") for key in every))
    if not shown:
        raise ValueError("loss_curves: history holds no figures, expected some beside the epoch")
    columns = min(len(shown), 3)
    lines = math.ceil(len(shown) / columns)
    with style():
        figure = new_figure(figsize=(3.6 * columns, 2.6 * lines + (0.3 if title else 0)))
        if title:
            figure.suptitle(title, fontweight="bold")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis, key in zip(axes, shown, strict=False):
            for name, line in ((key, "-"), (f"val_{key}", "--")):
                if name in every:
                    axis.plot(numbers, [_value(epoch, name) for epoch in epochs], color=INK, linestyle=line)
            axis.set(title=key.replace("_", " "), xlabel="epoch")
            axis.locator_params("x", integer=True)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
    return figure


def _value(epoch: Mapping[str, Any], key: str) -> float:
    value = epoch.get(key)
    return math.nan if value is None else float(value)


def _checked(history: Any, where: str) -> list[dict[str, float]]:
    rows = isinstance(history, list) and all(isinstance(epoch, Mapping) and "epoch" in epoch for epoch in history)
    if not rows or not history:
        raise ValueError(f"{where}: expected a list of epochs as mmvae_fast.training.fit returns it, at least one")
    return history
