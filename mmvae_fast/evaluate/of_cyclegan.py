"""A CycleGAN: does one come back where one started, does a translation keep the class, and is it like real samples?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.evaluate.judging import NO_LABELS, fit_on_others, judges_on_real, space_of_half, whole_rows
from mmvae_fast.evaluate.oracles import Judge, classes_of
from mmvae_fast.evaluate.quality import LEAST, sample_quality
from mmvae_fast.evaluate.reconstruction import Meter
from mmvae_fast.evaluate.rows import Rows, judged, size_of_batch
from mmvae_fast.evaluate.steps import Progress, Steps
from mmvae_fast.systems import CycleGAN
from mmvae_fast.training.data import Data


def translations(system: CycleGAN, rows: Rows, to: str, *, batch_size: int = 256) -> Tensor:
    """Every row that has the other modality in this one, [n, *shape], in order, on the CPU."""
    source = system.other(to)
    shown = rows.take(rows.having([source]))
    parts = [torch.zeros(0, *system.modalities[to].shape)]
    with judged(system):
        for _, batch, _ in shown.batches(batch_size, system.device):
            parts.append(system.translate({source: batch[source]}, to).cpu())
    return torch.cat(parts)


def cycle_errors(system: CycleGAN, data: Data | Rows, *, batch_size: int = 256) -> dict[str, dict[str, float]]:
    """Errors of the way to the other modality and back, by modality: "rows", "mse", "mae" and of images "ssim", as in
    :func:`mmvae_fast.evaluate.reconstruction`. One that no row has is left out."""
    rows = Rows.of(system, data)
    size_of_batch(batch_size)
    found = {}
    for name in system.names:
        shown = rows.take(rows.having([name]))
        if not len(shown):
            continue
        meter = Meter(system.modalities[name], shown.data[name])
        with judged(system):
            for _, batch, _ in shown.batches(batch_size, system.device):
                meter.add(system.cycle({name: batch[name]})[name], batch[name])
        found[name] = meter.read()
    return found


def cyclegan_figures(
    system: CycleGAN,
    rows: Rows,
    judges: Mapping[str, Judge] | None,
    train: tuple[Data | Rows, Any] | None,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """See :func:`mmvae_fast.evaluate.evaluate`."""
    figures: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    labelled = rows.labels is not None and bool((rows.labels >= 0).any())
    steps = Steps(progress, {
        "cycles": 1, "oracles": 2 if labelled and judges is None else 0, "translations": len(system.names)
    })  # fmt: skip
    for _ in steps("cycles", [None]):
        figures["cycle"] = cycle_errors(system, rows, batch_size=batch_size)
    real = rows
    if not labelled:
        skipped["translation accuracy, classifier score"] = NO_LABELS
    else:
        known = rows.with_known_label()
        figures["labelled"] = len(known)
        real = known
        if judges is None:
            judges, real = fit_on_others(system, known, train, seed, steps, skipped)
        figures["oracles"] = judges_on_real(real, judges)
    figures["translation"], figures["quality"] = {}, {}
    for name in steps("translations", system.names):
        source, judge = system.other(name), (judges or {}).get(name)
        made = translations(system, real, name, batch_size=batch_size)
        asked = None if real.labels is None else real.labels[real.having([source]).cpu()]
        if judge is not None and asked is not None and len(made):
            told = classes_of({name: judge}, name, made)
            share = float(np.mean(told == asked.numpy()))
            figures["translation"][f"{name} from {source}"] = {"accuracy": share, "rows": len(made)}
        there = whole_rows(real, name)
        if len(made) < LEAST or len(there) < 2 * LEAST:
            skipped[f"samples of {name}"] = f"fewer than {LEAST} translations, or {2 * LEAST} rows to compare with"
            continue
        truth, of = there.data[name].cpu(), f"from {source}"
        found = sample_quality(
            truth, {of: made}, space_of_half(system, name, judge, seed), judge=judge,
            labels=there.labels if judge is not None else None,
            intended={of: asked} if judge is not None and asked is not None else {}, seed=seed,
        )  # fmt: skip
        figures["quality"] |= {f"{name}, {what}": measures for what, measures in found.items()}
    steps.end()
    figures = {key: value for key, value in figures.items() if value != {}}
    return figures | ({"skipped": skipped} if skipped else {})
