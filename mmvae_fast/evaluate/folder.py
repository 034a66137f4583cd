"""An evaluation as a folder: ``report.json``, ``report.md`` and the pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmvae_fast._files import write_atomic
from mmvae_fast.evaluate.of_gan import conditions_of, gan_samples
from mmvae_fast.evaluate.rows import Judged, Rows, choose_subsets, judged, latents, name_of, targets
from mmvae_fast.evaluate.tables import Report
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier
from mmvae_fast.training.data import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES = 3  # in the grid, those that lack least
_SAMPLES, _CLASSES, _LINES = 10, 12, 4  # samples in a line; classes that have one, or lines for all


def write_report(
    folder: str | os.PathLike,
    report: Report,
    model: Judged,
    data: Data | Rows,
    labels: Any = None,
    *,
    history: Sequence[Mapping[str, float]] | str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
) -> list[Path]:
    """Write what :func:`evaluate` found, and pictures of the model or system on that data. Extra ``plots`` as well.

    Files of the same names are replaced, each in one step; others stay.

    Args:
        history: of the training, for its curves.
        class_names: by class, for legends.

    Returns:
        the files: ``report.json``, ``report.md``; of a model ``grid.png``, ``latents.png``,
        ``traversal_<modality>.png`` and with labels ``coherence.png``; of a classifier ``latents.png`` and with labels
        ``confusion.png``; of a GAN ``samples.png``; of a CycleGAN ``translations_<modality>.png``; and with a history
        ``training.png``.
    """
    from mmvae_fast.plots import save_figure

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder to write the report to")
    rows = Rows.of(model, data, labels)
    figures = _figures(report, rows, model, class_names)
    if history is not None:
        from mmvae_fast.plots import loss_curves, training_curves

        figures["training"] = training_curves(history) if isinstance(model, MultimodalVAE) else loss_curves(history)
    written = [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]
    page = folder / "report.md"
    write_atomic(page, report.as_markdown() + "".join(f"\n![{path.stem}]({path.name})\n" for path in written))
    return [report.save(folder / "report.json"), page, *written]


def _figures(report: Report, rows: Rows, model: Judged, class_names: Sequence[str] | None) -> dict[str, Figure]:
    """Pictures by name."""
    if isinstance(model, MultimodalVAE):
        return _of_model(report, rows, model, class_names)
    if isinstance(model, FusionClassifier):
        return _of_classifier(report, rows, model)
    if isinstance(model, GAN):
        return _of_gan(rows, model, class_names)
    assert isinstance(model, CycleGAN)
    return _of_cyclegan(rows, model)


def _of_model(report: Report, rows: Rows, model: MultimodalVAE, class_names: Sequence[str] | None) -> dict[str, Figure]:
    from mmvae_fast import plots

    figures = {"grid": plots.cross_modal_grid(model, rows, examples=_fullest(rows, _EXAMPLES))}
    if report.figures.get("coherence"):
        figures["coherence"] = plots.heatmap(report.figures["coherence"])
    figures |= _latent_map(rows, model, class_names)
    for name in targets(model):
        figures[f"traversal_{name}"] = plots.latent_traversal(model, name)
    return figures


def _latent_map(
    rows: Rows, model: MultimodalVAE | FusionClassifier, class_names: Sequence[str] | None
) -> dict[str, Figure]:
    """Latents inferred from each modality and from all, of the same rows; none if there are too few."""
    from mmvae_fast.plots import latent_map

    shown = rows.take(rows.having(rows.names))
    if len(shown) < 2:
        return {}
    sources = choose_subsets(model, [*([name] for name in rows.names), rows.names])
    points = {name_of(source): latents(model, shown, source) for source in sources}
    return {"latents": latent_map(points, shown.labels, class_names=class_names)}


def _of_classifier(report: Report, rows: Rows, classifier: FusionClassifier) -> dict[str, Figure]:
    from mmvae_fast.plots import confusion_matrix

    figures = _latent_map(rows, classifier, classifier.classes)
    if "confusion" in report.figures:
        figures["confusion"] = confusion_matrix(report.figures["confusion"], classifier.classes)
    return figures


def _of_gan(rows: Rows, gan: GAN, class_names: Sequence[str] | None) -> dict[str, Figure]:
    """Real samples above generated ones; of a GAN of classes a line each."""
    from mmvae_fast.plots import sample_rows

    modality, lines = gan.modalities[gan.name], []
    shown = rows.take(rows.having([gan.name])[:_SAMPLES])
    if len(shown):
        lines.append(("real", modality, shown.data[gan.name].cpu()))
    if gan.classes is not None:
        for one in range(min(gan.classes, _CLASSES)):
            name = class_names[one] if class_names is not None and one < len(class_names) else f"class {one}"
            asked = torch.full((_SAMPLES,), one)
            lines.append((name, modality, gan_samples(gan, _SAMPLES, asked, seed=one)))
    elif gan.condition_dim is None or shown.condition is not None:
        for i in range(_LINES):
            count = _SAMPLES if gan.condition_dim is None else len(shown)
            condition = None if gan.condition_dim is None else conditions_of(gan, shown, count, seed=0)
            lines.append(("generated", modality, gan_samples(gan, count, condition, seed=i)))
    return {"samples": sample_rows(lines, title=f"Samples of {gan.name}")} if lines else {}


def _of_cyclegan(rows: Rows, system: CycleGAN) -> dict[str, Figure]:
    """What becomes of real samples in the other space, and on the way back."""
    from mmvae_fast.plots import sample_rows

    figures = {}
    for name in system.names:
        shown, other = rows.take(rows.having([name])[:_SAMPLES]), system.other(name)
        if not len(shown):
            continue
        with judged(system):
            x = shown.data[name].to(system.device)
            there = system.translate({name: x}, other)
            back = system.translate({other: there}, name)
        lines = [
            (name, system.modalities[name], x.cpu()),
            (f"as {other}", system.modalities[other], there.cpu()),
            ("and back", system.modalities[name], back.cpu()),
        ]
        figures[f"translations_{name}"] = sample_rows(lines, title=f"{name} to {other} and back")
    return figures


def _fullest(rows: Rows, count: int) -> list[int]:
    """The numbers of the rows that lack least, in order."""
    return rows.mask.sum(1).argsort(descending=True, stable=True)[:count].sort().values.tolist()
