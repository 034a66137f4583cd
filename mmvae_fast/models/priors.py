"""Priors p(z) of the shared latent. Each knows log_prob(z) and sample(n, seed)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmvae_fast import functional


class StandardNormal(nn.Module):
    """N(0, I) in ``dim`` dimensions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def log_prob(self, z: Tensor) -> Tensor:
        """z [..., D] -> [...], nats."""
        return -0.5 * (z.square().sum(-1) + self.dim * math.log(2 * math.pi))

    def sample(self, n: int, seed: Tensor) -> Tensor:
        """[n, D], float32; a row's draw depends on seed and row alone."""
        zero = torch.zeros(n, self.dim, device=seed.device)
        return functional.reparameterize(zero, zero, seed=seed)


class LearnedScale(nn.Module):
    """A normal or Laplace distribution with mean 0 and learned scales, 1 at first.

    scale_d = D * softmax(parameter)_d, which keeps their mean at 1: the prior of MMVAE's authors.
    """

    def __init__(self, dim: int, family: str = "laplace", learned: bool = True) -> None:
        super().__init__()
        self.dim, self.family = dim, family
        self.logits = nn.Parameter(torch.zeros(dim), requires_grad=learned)

    @property
    def scale(self) -> Tensor:
        return self.dim * torch.softmax(self.logits, -1)

    def log_prob(self, z: Tensor) -> Tensor:
        """z [..., D] -> [...], nats."""
        scale = self.scale
        if self.family == "laplace":
            return -(z.abs() / scale).sum(-1) - scale.log().sum() - self.dim * math.log(2)
        return -0.5 * (z / scale).square().sum(-1) - scale.log().sum() - 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, n: int, seed: Tensor) -> Tensor:
        """[n, D], float32; a row's draw depends on seed and row alone."""
        logvar = 2 * self.scale.detach().float().log().expand(n, -1)
        return functional.reparameterize(torch.zeros_like(logvar), logvar, family=self.family, seed=seed)
