"""How far what a model predicts lies from what was there, for every source and target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmvae_fast._lazy import require
from mmvae_fast.evaluate.compare import comparable_pair, hits, is_numeric
from mmvae_fast.evaluate.rows import Rows, choose_subsets, judged, name_of, reconstructions, size_of_batch, targets
from mmvae_fast.modalities import Modality
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.training.data import Data

_WINDOW = 11  # of SSIM's Gaussian; images smaller than that get a uniform one that fits


def reconstruction(
    model: MultimodalVAE,
    data: Data | Rows,
    *,
    subsets: str | Sequence[Sequence[str]] = "all",
    batch_size: int = 256,
) -> dict[str, dict[str, dict[str, float]]]:
    """Errors of ``model.reconstruct`` by source and target, over the rows that have both.

    Returns:
        "rows", and of numbers "mse" and "mae" (mean over all entries; of counts whose predictions are shares, of the
        shares: :meth:`Modality.comparable`); of images also "ssim" (Wang et al., Image
        quality assessment, 2004; range 1 for a Bernoulli likelihood, else that of the data); of tokens "accuracy" (the
        share that is right, among the places where the text or its prediction is not padding) and "exact" (the share of
        texts that are right as a whole). A direction without any row is left out.
    """
    rows = Rows.of(model, data)
    size_of_batch(batch_size)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for source in choose_subsets(model, subsets):
        shown = rows.take(rows.having(source))
        meters = {
            target: Meter(model.modalities[target], rows.data[target][rows.observed(target)])
            for target in targets(model)
            if target in rows.data
        }
        with judged(model):
            for first, predictions in reconstructions(model, shown, source, list(meters), batch_size):
                for target, predicted in predictions.items():
                    some = slice(first, first + len(predicted))
                    there = shown.observed(target)[some]
                    truth = shown.data[target][some][there]
                    meters[target].add(predicted[there.to(predicted.device)].to(truth.device), truth)
        read = {target: meter.read() for target, meter in meters.items() if meter.rows}
        if read:
            found[name_of(source)] = read
    return found


class Meter:
    """Of one modality: torchmetrics' sums over batches.

    Args:
        truth: all that predictions will be compared with, for the range of SSIM.
    """

    def __init__(self, modality: Modality, truth: Tensor) -> None:
        metrics = require("torchmetrics", extra="evaluate")
        self.rows, self.numeric = 0, is_numeric(modality)
        self.modality = modality
        self.metrics: dict[str, Any] = {}
        if not self.numeric:
            self.metrics = {"accuracy": metrics.MeanMetric(), "exact": metrics.MeanMetric()}
        else:
            self.metrics = {"mse": metrics.MeanSquaredError(), "mae": metrics.MeanAbsoluteError()}
            window = _window(modality.shape)
            if modality.kind == "image" and window and truth.numel():
                low, high = (0.0, 1.0) if modality.likelihood == "bernoulli" else map(float, torch.aminmax(truth))
                if high > low:
                    image = require("torchmetrics.image", extra="evaluate")
                    gaussian = window == _WINDOW
                    self.metrics["ssim"] = image.StructuralSimilarityIndexMeasure(
                        gaussian_kernel=gaussian, kernel_size=window, data_range=high - low
                    )
        for metric in self.metrics.values():
            metric.to(truth.device).set_dtype(torch.float64)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        self.rows += len(truth)
        if not len(truth):
            return
        if not self.numeric:
            self.metrics["accuracy"].update(hits(self.modality, predicted, truth).double())
            self.metrics["exact"].update((predicted == truth).flatten(1).all(1).double())
            return
        predicted, truth = comparable_pair(self.modality, predicted, truth)
        there = truth.isfinite()  # a vector may lack some of its entries
        for name, metric in self.metrics.items():
            if name == "ssim":
                metric.update(predicted, truth)
            elif there.any():
                metric.update(predicted[there], truth[there])

    def read(self) -> dict[str, float]:
        return {"rows": self.rows, **{name: float(metric.compute()) for name, metric in self.metrics.items()}}


def _window(shape: Sequence[int]) -> int:
    """The window of SSIM that fits an image, 0 if none does."""
    least = min(shape[-2:])
    if least >= _WINDOW:
        return _WINDOW
    size = min(least - 1 + least % 2, 7)
    return size if size >= 3 else 0
