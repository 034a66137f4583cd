"""The default networks of the adversarial systems: from numbers to a sample, and from a sample to features.

Layers are normalised by sample or group of channels, never by batch: a batch may be of one row, and training and
inference compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

SLOPE = 0.2  # of a leaky ReLU below zero


def is_picture(shape: Sequence[int]) -> bool:
    """Whether the convolutional networks take it: [H, W] or [C, H, W], H and W multiples of 4 from 16 on."""
    return len(shape) in (2, 3) and all(side >= 16 and side % 4 == 0 for side in shape[-2:])


def make_generator(n_in: int, shape: Sequence[int], width: int, network: str) -> nn.Module:
    """[N, n_in] -> [N, *shape], any real numbers."""
    if network == "conv":
        return ConvGenerator(n_in, shape, width)
    return MLPGenerator(n_in, shape, 8 * width)


def make_features(shape: Sequence[int], width: int, network: str, *, normalized: bool = False) -> tuple[nn.Module, int]:
    """[B, *shape] -> [B, F], and F. ``normalized`` layers suit encoders; a discriminator's are better without, whose
    gradient penalty looks at each row's score by itself."""
    if network == "conv":
        return _conv_features(shape, width, normalized), 8 * width
    sizes = [math.prod(shape), 8 * width, 8 * width]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), *([nn.LayerNorm(n_out)] if normalized else []), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers), sizes[-1]


class MLPGenerator(nn.Module):
    """Two hidden layers of ``hidden`` units."""

    def __init__(self, n_in: int, shape: Sequence[int], hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise([n_in, hidden, hidden]):
            layers += [nn.Linear(a, b), nn.LayerNorm(b), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, math.prod(shape)), nn.Unflatten(-1, tuple(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvGenerator(nn.Module):
    """From a quarter of the height and width up in two transposed convolutions (Radford, Metz & Chintala 2016)."""

    def __init__(self, n_in: int, shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        channels, height, width_out = _channels(shape), shape[-2] // 4, shape[-1] // 4
        self.layers = nn.Sequential(
            nn.Linear(n_in, 2 * width * height * width_out),
            nn.Unflatten(-1, (2 * width, height, width_out)),
            _norm(2 * width),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            _norm(width),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).reshape(-1, *self.shape)


def _conv_features(shape: Sequence[int], width: int, normalized: bool) -> nn.Module:
    channels = _channels(shape)
    pixels = (shape[-2] // 4) * (shape[-1] // 4)

    def norm(n: int) -> list[nn.Module]:
        return [_norm(n)] if normalized else []

    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(-1, (channels, *shape[-2:])),
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        *norm(width),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        *norm(2 * width),
        nn.LeakyReLU(SLOPE),
        nn.Flatten(),
        nn.Linear(2 * width * pixels, 8 * width),
        nn.LeakyReLU(SLOPE),
    )


def _norm(channels: int) -> nn.Module:
    """In eight groups of channels, or in as many as go."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _channels(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) == 3 else 1
