"""The small default networks: multilayer perceptrons over flattened samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes with a ReLU between each two."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class MLPEncoder(nn.Module):
    """x [B, ...] with ``size`` numbers a row -> mu, logvar, each [B, latent_dim]."""

    def __init__(self, size: int, hidden: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.layers = mlp([size, *hidden, 2 * latent_dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.layers(x.flatten(1)).chunk(2, -1)  # two views: the kernels take them as they are
        return mu, logvar


class TokenEncoder(nn.Module):
    """Token ids [B, length] -> mu, logvar, each [B, latent_dim]; every position keeps its own embedding."""

    def __init__(
        self, vocabulary_size: int, embedding_dim: int, length: int, hidden: Sequence[int], latent_dim: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.encoder = MLPEncoder(length * embedding_dim, hidden, latent_dim)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(self.embedding(ids))


class MLPDecoder(nn.Module):
    """z [N, latent_dim] -> likelihood parameters [N, *param_shape]."""

    def __init__(self, latent_dim: int, hidden: Sequence[int], param_shape: Sequence[int]) -> None:
        super().__init__()
        self.param_shape = tuple(param_shape)
        self.layers = mlp([latent_dim, *hidden, math.prod(param_shape)])

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).unflatten(-1, self.param_shape)
