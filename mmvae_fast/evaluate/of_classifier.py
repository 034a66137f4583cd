"""A fusion classifier: does it tell the class, from whatever of the modalities a row has?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast._lazy import require
from mmvae_fast.evaluate.judging import NO_LABELS
from mmvae_fast.evaluate.latent_figures import latent_figures
from mmvae_fast.evaluate.rows import Rows, choose_subsets, judged, name_of, size_of_batch
from mmvae_fast.evaluate.steps import Progress, Steps
from mmvae_fast.functional import row_seed
from mmvae_fast.reference import philox_uniform
from mmvae_fast.systems import FusionClassifier
from mmvae_fast.training.data import Data
from mmvae_fast.training.seeding import derive

ALL, HALF = "all that a row has", "half of that"
_BINS = 15  # of the calibration error


def probabilities(
    classifier: FusionClassifier, data: Data | Rows, mask: Tensor | None = None, *, batch_size: int = 256
) -> Tensor:
    """p(class | what a row has) for every row, float64 [N, C], on the CPU.

    Args:
        mask: bool [N, M], what of it is shown; all unless told.
    """
    rows = Rows.of(classifier, data)
    size_of_batch(batch_size)
    shown = rows.mask if mask is None else rows.mask & mask.to(rows.mask.device)
    parts = []
    with judged(classifier):
        for first, batch, there in rows.batches(batch_size, classifier.device):
            given = shown[first : first + len(there)].to(there.device)
            parts.append(classifier(batch, given).double().softmax(-1).cpu())
    return torch.cat(parts)


def classification(probabilities: Tensor | np.ndarray, labels: Any) -> dict[str, Any]:
    """How right and how sure of itself a classifier is.

    Args:
        probabilities: [N, C], rows that sum to 1.
        labels: int [N], -1 where unknown: such rows are left out.

    Returns:
        "rows"; "accuracy"; "macro_f1", the mean over the classes that are there or were told; "log_loss", mean of
        -log p(class) in nats; "calibration_error", the mean distance of confidence and accuracy in 15 bins of
        confidence (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3).

    Raises:
        ValueError: shapes that do not fit, a class that there is no probability of, or no label at all.
    """
    p, truth = _known(probabilities, labels)
    metrics = require("torchmetrics.functional.classification", extra="evaluate")
    count = p.shape[1]
    return {
        "rows": len(p),
        "accuracy": float((p.argmax(1) == truth).double().mean()),
        "macro_f1": float(metrics.multiclass_f1_score(p, truth, count, average="macro")),
        "log_loss": float(
            require("sklearn.metrics", extra="evaluate").log_loss(truth.numpy(), p.numpy(), labels=np.arange(count))
        ),
        "calibration_error": float(metrics.multiclass_calibration_error(p, truth, count, n_bins=_BINS, norm="l1")),
    }


def confusion(probabilities: Tensor | np.ndarray, labels: Any) -> Tensor:
    """How many rows of a class (first index) were taken for which (second), int64 [C, C]; arguments as of
    :func:`classification`."""
    p, truth = _known(probabilities, labels)
    metrics = require("torchmetrics.functional.classification", extra="evaluate")
    return metrics.multiclass_confusion_matrix(p, truth, p.shape[1])


def _known(probabilities: Tensor | np.ndarray, labels: Any) -> tuple[Tensor, Tensor]:
    """Those of the rows whose class is known, checked."""
    p, truth = torch.as_tensor(probabilities).double().cpu(), torch.as_tensor(labels).cpu()
    if p.dim() != 2 or p.shape[1] < 2 or not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-3):
        raise ValueError(f"probabilities has shape {list(p.shape)}, expected [N, C], rows of which sum to 1")
    if truth.is_floating_point() or tuple(truth.shape) != (len(p),):
        raise ValueError(f"labels is {truth.dtype} {list(truth.shape)}, expected whole numbers [N] = [{len(p)}]")
    if truth.numel() and not -1 <= int(truth.min()) <= int(truth.max()) < p.shape[1]:
        raise ValueError(
            f"labels holds {int(truth.min())} to {int(truth.max())}, expected classes from 0 to {p.shape[1] - 1}, and "
            "-1 where unknown"
        )
    known = truth >= 0
    if not known.any():
        raise ValueError("labels holds no class, expected some that are not -1")
    p = p[known]
    return p / p.sum(1, keepdim=True), truth[known].long()  # single precision may be a little off


def hide_half(mask: Tensor, *, seed: int = 0) -> Tensor:
    """A mask, bool [N, M], with half of what each row has, drawn by the seed: of an odd number half of it up or down,
    and never nothing of something. A row's draw depends on its place alone."""
    u = philox_uniform(row_seed(derive(seed, "hidden"), 0), mask.shape[0], mask.shape[1] + 1).to(mask.device)
    order = torch.where(mask, u[:, 1:], 2.0).argsort(1).argsort(1)  # a random one of those that are there, else last
    counts = mask.sum(1)
    kept = (counts / 2 + u[:, 0] * (counts % 2)).floor().clamp(min=1)
    return mask & (order < kept[:, None])


def classifier_figures(
    classifier: FusionClassifier,
    rows: Rows,
    subsets: str | Sequence[Sequence[str]],
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """See :func:`mmvae_fast.evaluate.evaluate`."""
    chosen = choose_subsets(classifier, subsets)
    names = list(classifier.classes)
    figures: dict[str, Any] = {"classes": names}
    skipped: dict[str, str] = {}
    labelled = rows.labels is not None and bool((rows.labels >= 0).any())
    shown = {ALL: None, HALF: None, **{name_of(subset): subset for subset in chosen}}
    steps = Steps(progress, {"classes": len(shown) if labelled else 1, "latents": len(chosen) if labelled else 0})
    if not labelled:
        for _ in steps("classes", [ALL]):
            told = probabilities(classifier, rows, batch_size=batch_size).argmax(1)
        skipped["accuracy, confusion, latents"] = NO_LABELS
    else:
        assert rows.labels is not None
        if int(rows.labels.max()) >= len(names):
            raise ValueError(f"labels holds {int(rows.labels.max())}, expected 0 to {len(names) - 1}: {names}")
        known = rows.with_known_label()
        figures["labelled"] = len(known)
        figures["classification"] = {}
        for name in steps("classes", list(shown)):
            subset = shown[name]
            if name == ALL:
                p = probabilities(classifier, rows, batch_size=batch_size)
                told, figures["confusion"] = p.argmax(1), confusion(p, rows.labels).tolist()
                figures["classification"][ALL] = classification(p, rows.labels)
                continue
            mask = known.mask
            if subset is not None:
                there = known.mask[:, [known.names.index(one) for one in subset]].all(1)
                mask = torch.zeros_like(mask)
                mask[:, [known.names.index(one) for one in subset]] = there[:, None]
            elif len(known.names) == 1:
                skipped[name] = "there is one modality"
                continue
            else:
                there, mask = known.mask.any(1), hide_half(known.mask, seed=seed)
            if not there.any():
                skipped[f"classes from {name}"] = "no labelled row has it"
                continue
            some = there.nonzero().squeeze(1)
            p = probabilities(classifier, known.take(some), mask[some], batch_size=batch_size)
            figures["classification"][name] = classification(p, known.take(some).labels)
        figures["latents"] = latent_figures(classifier, known, chosen, batch_size, seed, steps, skipped)
    counts = told.bincount(minlength=len(names)).tolist()
    figures["told"] = {name: {"rows": n, "share": n / len(rows)} for name, n in zip(names, counts, strict=True)}
    steps.end()
    return figures | ({"skipped": skipped} if skipped else {})
