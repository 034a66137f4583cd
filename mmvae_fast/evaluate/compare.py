"""What of a prediction counts beside the data: the same numbers and the same tokens for every measure."""

from __future__ import annotations

import torch
from torch import Tensor

from mmvae_fast.modalities import Modality


def is_numeric(modality: Modality) -> bool:
    """Whether it holds numbers, whose errors have a size; tokens are right or wrong."""
    return modality.dtype.is_floating_point


def comparable_pair(modality: Modality, predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and data [B, *shape] in the one scale of :meth:`Modality.comparable`, in double precision."""
    return modality.comparable(predicted.double()), modality.comparable(truth.double())


def errors(modality: Modality, predicted: Tensor, truth: Tensor) -> Tensor:
    """Prediction less data, of every entry that the data has, [K]: a vector may lack some."""
    predicted, truth = comparable_pair(modality, predicted, truth)
    there = truth.isfinite()
    return (predicted - truth)[there]


def hits(modality: Modality, predicted: Tensor, truth: Tensor) -> Tensor:
    """Which tokens are right, bool [K], where the text or its prediction has one: padding is right for nobody."""
    right = predicted == truth
    counted = torch.ones_like(right)
    if modality.padding is not None:
        counted = (truth != modality.padding) | (predicted != modality.padding)
    return right[counted]
