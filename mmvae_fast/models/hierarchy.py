"""Draws with their noise at hand, and densities of Gaussians that differ by sample, as latents above latents have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from mmvae_fast import functional
from mmvae_fast.models.outputs import Posterior

Key = TypeVar("Key")


def noise(rows: int, dim: int, n_samples: int, seed: Tensor, dtype: torch.dtype) -> Tensor:
    """N(0, I) noise [n_samples, rows, dim] (float32 for half types); one depends on seed, sample and row alone."""
    zero = torch.zeros(rows, dim, dtype=torch.promote_types(dtype, torch.float32), device=seed.device)
    return functional.reparameterize(zero, zero, n_samples, seed=seed)


def in_parts(eps: Mapping[Key, Tensor], size: int) -> Iterator[dict[Key, Tensor]]:
    """Noise [K, B, D] by latent, ``size`` samples at a time: what networks make of many samples is the memory."""
    for part in zip(*(e.split(size) for e in eps.values()), strict=True):
        yield dict(zip(eps, part, strict=True))


def at(q: Posterior, eps: Tensor) -> Tensor:
    """The draw of q [..., B, D] that noise [..., B, D] makes."""
    return (q.mu + torch.exp(0.5 * q.logvar) * eps).to(q.mu.dtype)


def log_density_at(q: Posterior, eps: Tensor) -> Tensor:
    """log q of that draw, [..., B]; from the noise, because a peaked Gaussian's cannot be had back from z - mu."""
    return -0.5 * (eps.square() + q.logvar + math.log(2 * math.pi)).sum(-1)


def log_density(q: Posterior, z: Tensor) -> Tensor:
    """log q(z), [..., B]."""
    return -0.5 * ((z - q.mu).square() * torch.exp(-q.logvar) + q.logvar + math.log(2 * math.pi)).sum(-1)
