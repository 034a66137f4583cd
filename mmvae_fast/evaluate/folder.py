"""An evaluation as a folder: ``report.json``, ``report.md`` and the pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvae_fast._files import write_atomic
from mmvae_fast.evaluate.report import Report
from mmvae_fast.evaluate.rows import Rows, latents, name_of, targets
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.training.data import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES = 3  # in the grid, those that lack least


def write_report(
    folder: str | os.PathLike,
    report: Report,
    model: MultimodalVAE,
    data: Data | Rows,
    labels: Any = None,
    *,
    history: Sequence[Mapping[str, float]] | str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
) -> list[Path]:
    """Write what :func:`evaluate` found, and pictures of the model on that data; needs the ``plots`` extra as well.

    Files of the same names are replaced, each in one step; others stay.

    Args:
        history: of the training, for its curves.
        class_names: by class, for legends.

    Returns:
        the files: ``report.json``, ``report.md``, ``grid.png``, ``latents.png``, ``traversal_<modality>.png``,
        with labels ``coherence.png``, and with a history ``training.png``.
    """
    from mmvae_fast.plots import save_figure

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder to write the report to")
    figures = _figures(report, Rows.of(model, data, labels), model, history, class_names)
    written = [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]
    page = folder / "report.md"
    write_atomic(page, report.as_markdown() + "".join(f"\n![{path.stem}]({path.name})\n" for path in written))
    return [report.save(folder / "report.json"), page, *written]


def _figures(
    report: Report,
    rows: Rows,
    model: MultimodalVAE,
    history: Sequence[Mapping[str, float]] | str | os.PathLike | None,
    class_names: Sequence[str] | None,
) -> dict[str, Figure]:
    from mmvae_fast import plots

    fullest = rows.mask.sum(1).argsort(descending=True, stable=True)[:_EXAMPLES].sort().values.tolist()
    figures = {"grid": plots.cross_modal_grid(model, rows, examples=fullest)}
    if report.figures.get("coherence"):
        figures["coherence"] = plots.heatmap(report.figures["coherence"])
    sources = [*((name,) for name in rows.names), rows.names]
    sources = list(dict.fromkeys(tuple(n for n in rows.names if n in s or n in model.always_given) for s in sources))
    there = rows.having(rows.names)  # the same rows in every panel
    if len(there) > 1:
        shown = rows.take(there)
        points = {name_of(source): latents(model, shown, source) for source in sources}
        figures["latents"] = plots.latent_map(points, shown.labels, class_names=class_names)
    for name in targets(model):
        figures[f"traversal_{name}"] = plots.latent_traversal(model, name)
    if history is not None:
        figures["training"] = plots.training_curves(history)
    return figures
