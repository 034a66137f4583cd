"""Drop-in ``nn.Module`` layers over :mod:`mmvae_fast.functional`. None has parameters; options are set once, here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.reference import Experts, MoPoESample, PoESample

__all__ = ["GaussianKL", "MoPoESampleKL", "PoESampleKL", "ProductOfExperts", "Reparameterize"]

Seed = int | Tensor | None


class Reparameterize(nn.Module):
    """z = mu + exp(logvar / 2) * eps; see :func:`mmvae_fast.functional.reparameterize`.

    Args:
        n_samples: K samples in a new leading dimension, or None for one without it.
        mean_in_eval: return ``mu`` (expanded to the samples) when the module is in eval mode.
    """

    def __init__(self, n_samples: int | None = None, *, mean_in_eval: bool = False) -> None:
        super().__init__()
        self.n_samples = n_samples
        self.mean_in_eval = mean_in_eval

    def forward(self, mu: Tensor, logvar: Tensor, *, seed: Seed = None) -> Tensor:
        """mu, logvar [..., D] -> z [..., D] or [K, ..., D]."""
        if self.mean_in_eval and not self.training:
            return mu if self.n_samples is None else mu.expand(self.n_samples, *mu.shape)
        return functional.reparameterize(mu, logvar, self.n_samples, seed=seed)

    def extra_repr(self) -> str:
        return f"n_samples={self.n_samples}, mean_in_eval={self.mean_in_eval}"


class GaussianKL(nn.Module):
    """KL to N(0, I), or to the Gaussian given; see :func:`mmvae_fast.functional.gaussian_kl`.

    Args:
        reduction: "none" (one number a row, nats), "mean" or "sum" over the rows.
    """

    def __init__(self, reduction: str = "none") -> None:
        super().__init__()
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"GaussianKL: reduction is {reduction!r}, expected 'none', 'mean' or 'sum'")
        self.reduction = reduction

    def forward(
        self, mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
    ) -> Tensor:
        """mu, logvar [..., D] -> kl [...], or a scalar."""
        kl = functional.gaussian_kl(mu, logvar, prior_mu, prior_logvar)
        return kl if self.reduction == "none" else getattr(torch, self.reduction)(kl)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class ProductOfExperts(nn.Module):
    """The product of Gaussian experts; see :func:`mmvae_fast.functional.product_of_experts`."""

    def __init__(self, *, prior: bool = True) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self, mu: Experts, logvar: Experts, mask: Tensor | None = None, *, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """M experts [B, D] (list, or stacked [M, B, D]), mask [B, M] -> (mu, logvar) [B, D]."""
        return functional.product_of_experts(mu, logvar, mask, prior=self.prior, weights=weights)

    def extra_repr(self) -> str:
        return f"prior={self.prior}"


class PoESampleKL(nn.Module):
    """Product of experts, sample and KL in one pass; see :func:`mmvae_fast.functional.poe_sample_kl`."""

    def __init__(self, *, prior: bool = True, n_samples: int | None = None, expert_kl: bool = False) -> None:
        super().__init__()
        self.prior = prior
        self.n_samples = n_samples
        self.expert_kl = expert_kl

    def forward(self, mu: Experts, logvar: Experts, mask: Tensor | None = None, *, seed: Seed = None) -> PoESample:
        """M experts [B, D], mask [B, M] -> PoESample(z, mu, logvar, kl, expert_kl)."""
        return functional.poe_sample_kl(
            mu, logvar, mask, prior=self.prior, n_samples=self.n_samples, expert_kl=self.expert_kl, seed=seed
        )

    def extra_repr(self) -> str:
        return f"prior={self.prior}, n_samples={self.n_samples}, expert_kl={self.expert_kl}"


class MoPoESampleKL(nn.Module):
    """The MoPoE training step; see :func:`mmvae_fast.functional.mopoe_sample_kl`."""

    def __init__(self, *, subsets: Sequence[int] | None = None, prior: str = "full") -> None:
        super().__init__()
        self.subsets = None if subsets is None else list(subsets)
        self.prior = prior

    def forward(self, mu: Experts, logvar: Experts, mask: Tensor | None = None, *, seed: Seed = None) -> MoPoESample:
        """M experts [B, D], mask [B, M] -> MoPoESample(z, kl, subset)."""
        return functional.mopoe_sample_kl(mu, logvar, mask, subsets=self.subsets, prior=self.prior, seed=seed)

    def extra_repr(self) -> str:
        return f"subsets={self.subsets}, prior={self.prior!r}"
