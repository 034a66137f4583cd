"""A GAN: are its samples like real ones, and do they show what they were asked for?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.evaluate.judging import NO_LABELS, fit_on_others, judges_on_real, space_of_half, whole_rows
from mmvae_fast.evaluate.oracles import Judge
from mmvae_fast.evaluate.quality import LEAST, sample_quality
from mmvae_fast.evaluate.rows import Rows, batch_seed, judged, shuffled
from mmvae_fast.evaluate.steps import Progress, Steps
from mmvae_fast.systems import GAN
from mmvae_fast.training.data import Data
from mmvae_fast.training.seeding import derive

GENERATED = "generated"


def gan_samples(gan: GAN, n: int, condition: Tensor | None = None, *, seed: int = 0, batch_size: int = 256) -> Tensor:
    """``n`` samples [n, *shape], drawn in parts, on the CPU.

    Args:
        condition: for each, as of :meth:`mmvae_fast.systems.GAN.sample`.
    """
    parts = []
    with judged(gan):
        for first in range(0, n, batch_size):
            some = slice(first, min(first + batch_size, n))
            given = None if condition is None else condition[some].to(gan.device)
            noise = batch_seed(seed, first, "samples").to(gan.device)
            parts.append(gan.sample(some.stop - first, given, seed=noise).cpu())
    return torch.cat(parts)


def conditions_of(gan: GAN, rows: Rows, n: int, seed: int) -> Tensor | None:
    """Conditions [n] or [n, D] for as many samples: those of the rows in random order, over and over, so that samples
    and rows have the classes in the same shares; without labels every class as often."""
    if gan.classes is not None:
        labels = rows.labels if rows.labels is not None else torch.full((len(rows),), -1)
        known = labels[labels >= 0]
        known = torch.arange(gan.classes) if not len(known) else known[shuffled(len(known), seed, "classes")]
        return known.repeat(-(-n // len(known)))[:n]
    if gan.condition_dim is None:
        return None
    assert rows.condition is not None
    order = shuffled(len(rows), seed, "conditions")
    drawn = rows.condition[order.repeat(-(-n // len(order)))[:n].to(rows.condition.device)]
    return drawn.to(gan.dtype)


def gan_figures(
    gan: GAN,
    rows: Rows,
    generated: int,
    judges: Mapping[str, Judge] | None,
    train: tuple[Data | Rows, Any] | None,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """See :func:`mmvae_fast.evaluate.evaluate`."""
    name = gan.name
    figures: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    rows, labelled = _checked(gan, rows)
    steps = Steps(progress, {"oracles": 1 if labelled and judges is None else 0, "samples": 2})
    real = rows
    if not labelled:
        skipped["intended class, classifier score"] = NO_LABELS
    else:
        known = rows.with_known_label()
        figures["labelled"] = len(known)
        real = known
        if judges is None:
            judges, real = fit_on_others(gan, known, train, seed, steps, skipped)
        figures["oracles"] = judges_on_real(real, judges)
    judge = (judges or {}).get(name)
    real = whole_rows(real, name)
    if gan.condition_dim is not None and real.condition is None:
        skipped["samples"] = (
            f"the data hold no 'condition', of which the GAN takes {gan.condition_dim} numbers a sample"
        )
    elif len(real) < 2 * LEAST or generated < LEAST:
        skipped["samples"] = f"fewer than {LEAST} of them, or {2 * LEAST} rows of data to compare with"
    else:
        truth = real.data[name].cpu()
        for what in steps("samples", ["made", "compared"]):
            if what == "made":
                condition = conditions_of(gan, real, generated, seed)
                made = gan_samples(gan, generated, condition, seed=derive(seed, "samples"), batch_size=batch_size)
                continue
            intended = {GENERATED: condition} if judge is not None and gan.classes is not None else {}
            features = space_of_half(gan, name, judge, seed)
            labels = real.labels if judge is not None else None
            found = sample_quality(
                truth, {GENERATED: made}, features, judge=judge, labels=labels, intended=intended, seed=seed
            )
            figures["quality"] = {f"{name}, {of}": measures for of, measures in found.items()}
        if labelled and gan.classes is None:
            skipped["intended class"] = "no class was asked for: the GAN takes none"
    steps.end()
    return figures | ({"skipped": skipped} if skipped else {})


def _checked(gan: GAN, rows: Rows) -> tuple[Rows, bool]:
    """The rows that have the modality, and whether some have a label."""
    rows = rows.take(rows.having([gan.name]))
    if rows.labels is None or not bool((rows.labels >= 0).any()):
        return rows, False
    if gan.classes is not None and int(rows.labels.max()) >= gan.classes:
        raise ValueError(f"labels holds {int(rows.labels.max())}, expected 0 to {gan.classes - 1}, the GAN's classes")
    return rows, True
