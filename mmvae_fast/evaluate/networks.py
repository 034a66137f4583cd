"""Small classifiers of one modality: what they compute before the last layer is a feature space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FEATURES = 64
_SMALLEST_PICTURE = 12  # below, convolutions see no more than a perceptron


class Classifier(nn.Module):
    """x [B, ...] -> logits [B, C]; ``features`` stops one layer earlier, [B, 64]."""

    def __init__(self, body: nn.Module, classes: int, mean: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(FEATURES, classes)
        self.mean, self.scale = mean, scale

    def features(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.scale if x.is_floating_point() else x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Words(nn.Module):
    """Token ids [B, L] -> [B, 64]: the mean of their embeddings, so that a word counts wherever it stands."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary, FEATURES, mode="mean")
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, FEATURES), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.embedding(x.flatten(1)))


def make(x: Tensor, shape: Sequence[int], vocabulary: int | None, classes: int) -> Classifier:
    """For data x [N, *shape]: convolutions for pictures and spectrograms, else a perceptron; ids have embeddings."""
    if vocabulary is not None:
        return Classifier(_Words(vocabulary), classes)
    mean, scale = float(x.mean()), max(float(x.std()), 1e-6)
    if len(shape) in (2, 3) and min(shape[-2:]) >= _SMALLEST_PICTURE:
        return Classifier(_pictures(shape), classes, mean, scale)
    size = torch.Size(shape).numel()
    layers = [nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, FEATURES), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), classes, mean, scale)


def _pictures(shape: Sequence[int]) -> nn.Module:
    channels = shape[0] if len(shape) == 3 else 1
    layers: list[nn.Module] = [nn.Unflatten(1, (1, shape[0]))] if len(shape) == 2 else []
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    rows, columns = (-(-side // 8) for side in shape[-2:])
    layers += [nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * rows * columns, FEATURES), nn.ReLU()]
    return nn.Sequential(*layers)
