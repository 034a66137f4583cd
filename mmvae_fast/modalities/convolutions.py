"""Convolutional and residual networks over pictures of any size: images [C, H, W], spectrograms [n_mels, frames]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmvae_fast.modalities.base import Modality, _common

NETWORKS = ("mlp", "conv", "residual")
NORMS = ("group", "batch", "none")
_SMALL = 4  # pixels a side: what is not larger is not halved
_WIDEST = 8  # times the first convolution's channels


class PictureModality(Modality):
    """Base of the modalities whose samples are pictures [..., H, W], with a choice of default networks.

    Args:
        network: "mlp", a multilayer perceptron over the pixels, of the ``hidden`` sizes; "conv", :class:`ConvEncoder`
            and :class:`ConvDecoder`; "residual", these with a residual block after each halving and doubling.
        width, norm: of the convolutional ones.

    See :class:`Modality` for the other arguments.
    """

    def __init__(
        self, shape: Sequence[int], *, network: str = "mlp", width: int = 32, norm: str = "group", **options: Any
    ) -> None:
        super().__init__(shape, **options)
        for what, value, known in (("network", network, NETWORKS), ("norm", norm, NORMS)):
            if value not in known:
                raise ValueError(f"{type(self).__name__}: {what} is {value!r}, expected one of {known}")
        self.network = network
        (self.width,) = self._sizes("width", (width,))
        self.norm = norm

    def make_encoder(self, latent_dim: int) -> nn.Module:
        if self.encoder is not None or self.network == "mlp":
            return super().make_encoder(latent_dim)
        return ConvEncoder(self.shape, latent_dim, **self._convolutions())

    def make_decoder(self, latent_dim: int) -> nn.Module:
        if self.decoder is not None or self.network == "mlp":
            return super().make_decoder(latent_dim)
        return ConvDecoder(latent_dim, self.param_shape, **self._convolutions())

    def _convolutions(self) -> dict[str, Any]:
        return {"width": self.width, "residual": self.network == "residual", "norm": self.norm}

    def config(self) -> dict[str, Any]:
        return {**super().config(), "network": self.network, "width": self.width, "norm": self.norm}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        # absent from models saved before there was a choice
        choice = {key: config[key] for key in ("network", "width", "norm") if key in config}
        return cls(config["shape"], **_common(config), **choice, **networks)


class ConvEncoder(nn.Module):
    """x [B, ..., H, W] -> mu, logvar, each [B, latent_dim]: convolutions of stride 2 until at most 4 pixels a side are
    left, with twice the channels each time (at most 8 times ``width``), then one linear layer.

    Args:
        shape: of a sample, [..., H, W]; what leads are its channels.
        width: channels after the first convolution.
        residual: a residual block after each halving (He et al. 2016).
        norm: "group" (Wu & He 2018), which treats every row alone, "batch" (Ioffe & Szegedy 2015) or "none". With
            "batch", a row's result in training depends on the others of its batch, and rows that lack the modality
            count in its statistics, the running ones too, as the zeros they are replaced by: for data that is whole,
            in large batches.
    """

    def __init__(
        self, shape: Sequence[int], latent_dim: int, *, width: int = 32, residual: bool = False, norm: str = "group"
    ) -> None:
        super().__init__()
        self.shape = _picture(shape)
        sizes, channels = _pyramid(self.shape, width)
        layers: list[nn.Module] = []
        if len(sizes) == 1:  # too small to halve
            layers += [nn.Conv2d(self.shape[0], channels[0], 3, padding=1, bias=norm == "none")]
            layers += [_norm(norm, channels[0], sizes[0]), nn.ReLU()]
            layers += _residual(residual, channels[0], norm, sizes[0])
        for i in range(len(sizes) - 1):
            kernel, stride = _steps(sizes[i], sizes[i + 1])
            into = self.shape[0] if i == 0 else channels[i - 1]
            layers += [nn.Conv2d(into, channels[i], kernel, stride, 1, bias=norm == "none")]
            layers += [_norm(norm, channels[i], sizes[i + 1]), nn.ReLU()]
            layers += _residual(residual, channels[i], norm, sizes[i + 1])
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * math.prod(sizes[-1]), 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(x.reshape(x.shape[0], *self.shape)).flatten(1)
        mu, logvar = self.head(features).chunk(2, -1)
        return mu, logvar


class ConvDecoder(nn.Module):
    """z [N, latent_dim] -> likelihood parameters [N, *param_shape], [..., H, W]: :class:`ConvEncoder` the other way
    round, with transposed convolutions to exactly the sizes it went through.

    Arguments as there. The last convolution has neither norm nor activation: parameters may be any numbers.
    """

    def __init__(
        self,
        latent_dim: int,
        param_shape: Sequence[int],
        *,
        width: int = 32,
        residual: bool = False,
        norm: str = "group",
    ) -> None:
        super().__init__()
        self.param_shape = tuple(param_shape)
        shape = _picture(self.param_shape)
        sizes, channels = _pyramid(shape, width)
        sizes, channels = sizes[::-1], channels[::-1]
        self.start = (channels[0], *sizes[0])
        self.stem = nn.Linear(latent_dim, math.prod(self.start))
        layers: list[nn.Module] = [_norm(norm, channels[0], sizes[0]), nn.ReLU()]
        layers += _residual(residual, channels[0], norm, sizes[0])
        for i in range(len(sizes) - 1):
            kernel, stride = _steps(sizes[i + 1], sizes[i])
            odd_h, odd_w = (n % 2 if s == 2 else 0 for n, s in zip(sizes[i + 1], stride, strict=True))
            last = i == len(sizes) - 2
            out = shape[0] if last else channels[i + 1]
            bias = last or norm == "none"
            layers += [nn.ConvTranspose2d(channels[i], out, kernel, stride, 1, (odd_h, odd_w), bias=bias)]
            if not last:
                layers += [_norm(norm, out, sizes[i + 1]), nn.ReLU(), *_residual(residual, out, norm, sizes[i + 1])]
        if len(sizes) == 1:
            layers += [nn.Conv2d(channels[0], shape[0], 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        features = self.stem(z).reshape(z.shape[0], *self.start)
        return self.layers(features).reshape(z.shape[0], *self.param_shape)


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions of x, [N, channels, H, W] -> the same; normed before each (He et al. 2016b)."""

    def __init__(self, channels: int, norm: str, size: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [_norm(norm, channels, size), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _residual(residual: bool, channels: int, norm: str, size: Sequence[int]) -> list[nn.Module]:
    return [ResidualBlock(channels, norm, size)] if residual else []


def _norm(kind: str, channels: int, size: Sequence[int]) -> nn.Module:
    if kind == "group":
        # of one pixel, a group of one channel would be one number, of which a norm leaves nothing
        return nn.GroupNorm(math.gcd(8, channels) if math.prod(size) > 1 else 1, channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def _picture(shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, H, W) of a sample [..., H, W]."""
    *leading, height, width = shape
    return math.prod(leading), height, width


def _pyramid(shape: tuple[int, int, int], width: int) -> tuple[list[tuple[int, int]], list[int]]:
    """The sizes a picture goes through, its own first, and the channels after each step."""
    sizes = [shape[1:]]
    while max(sizes[-1]) > _SMALL:
        height, wide = (n // 2 if n > _SMALL else n for n in sizes[-1])
        sizes.append((height, wide))
    steps = max(1, len(sizes) - 1)
    return sizes, [width * min(2**i, _WIDEST) for i in range(steps)]


def _steps(large: tuple[int, int], small: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and stride of a convolution, with padding 1, between two sizes: 4 and 2 where it halves, else 3 and 1."""
    stride = (1 + (large[0] != small[0]), 1 + (large[1] != small[1]))
    return (2 + stride[0], 2 + stride[1]), stride
