"""Drop-in ``nn.Module`` layers over :mod:`mmvae_fast.functional`: options are set once, here.

Only :class:`GeneralizedProductOfExperts` has parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvae_fast import functional, reference
from mmvae_fast.reference import Experts, MoPoESample, PoESample

__all__ = [
    "GaussianKL",
    "GeneralizedProductOfExperts",
    "LaplaceKL",
    "LogLikelihood",
    "MixtureLogProb",
    "MoPoESampleKL",
    "PoESampleKL",
    "ProductOfExperts",
    "Reparameterize",
    "SubsetPosteriors",
]

Seed = int | Tensor | None


def _one_of(layer: nn.Module, name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(f"{type(layer).__name__}: {name} is {value!r}, expected {', '.join(most)} or {last}")
    return value


class Reparameterize(nn.Module):
    """z = mu + exp(logvar / 2) * eps; see :func:`mmvae_fast.functional.reparameterize`.

    Args:
        n_samples: K samples in a new leading dimension, or None for one without it.
        family: of the noise, "normal" or "laplace".
        mean_in_eval: return ``mu`` (expanded to the samples) when the module is in eval mode.
    """

    def __init__(self, n_samples: int | None = None, *, family: str = "normal", mean_in_eval: bool = False) -> None:
        super().__init__()
        self.n_samples = n_samples
        self.family = _one_of(self, "family", family, ("normal", "laplace"))
        self.mean_in_eval = mean_in_eval

    def forward(self, mu: Tensor, logvar: Tensor, *, seed: Seed = None) -> Tensor:
        """mu, logvar [..., D] -> z [..., D] or [K, ..., D]."""
        if self.mean_in_eval and not self.training:
            return mu if self.n_samples is None else mu.expand(self.n_samples, *mu.shape)
        return functional.reparameterize(mu, logvar, self.n_samples, family=self.family, seed=seed)

    def extra_repr(self) -> str:
        return f"n_samples={self.n_samples}, family={self.family!r}, mean_in_eval={self.mean_in_eval}"


class GaussianKL(nn.Module):
    """KL to N(0, I), or to the Gaussian given; see :func:`mmvae_fast.functional.gaussian_kl`.

    Args:
        reduction: "none" (one number a row, nats), "mean" or "sum" over the rows.
    """

    _divergence = staticmethod(functional.gaussian_kl)

    def __init__(self, reduction: str = "none") -> None:
        super().__init__()
        self.reduction = _one_of(self, "reduction", reduction, ("none", "mean", "sum"))

    def forward(
        self, mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
    ) -> Tensor:
        """mu, logvar [..., D] -> kl [...], or a scalar."""
        kl = self._divergence(mu, logvar, prior_mu, prior_logvar)
        return kl if self.reduction == "none" else getattr(torch, self.reduction)(kl)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class LaplaceKL(GaussianKL):
    """The same for Laplace distributions of scale e^(logvar/2); see :func:`mmvae_fast.functional.laplace_kl`."""

    _divergence = staticmethod(functional.laplace_kl)


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


class GeneralizedProductOfExperts(nn.Module):
    """A product of experts that learns how far to trust each: precisions are multiplied by e^log_weight.

    Args:
        n_experts: M.
        dim: D for a weight an expert and dimension, None for one an expert. All start at 1, the plain product.
        prior: count N(0, I), of weight 1, as one more expert.

    Source: Cao & Fleet, Generalized Product of Experts, 2014.
    """

    def __init__(self, n_experts: int, dim: int | None = None, *, prior: bool = True) -> None:
        super().__init__()
        self.prior = prior
        self.log_weights = nn.Parameter(torch.zeros(n_experts if dim is None else (n_experts, dim)))

    def forward(self, mu: Experts, logvar: Experts, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """M experts [B, D] (list, or stacked [M, B, D]), mask [B, M] -> (mu, logvar) [B, D]."""
        weights = self.log_weights.exp()
        return functional.product_of_experts(mu, logvar, mask, prior=self.prior, weights=weights)

    def extra_repr(self) -> str:
        return f"weights={list(self.log_weights.shape)}, prior={self.prior}"


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


class SubsetPosteriors(nn.Module):
    """Every subset's product of experts; see :func:`mmvae_fast.functional.subset_posteriors`."""

    def __init__(self, *, subsets: Sequence[int] | None = None, prior: str = "full") -> None:
        super().__init__()
        self.subsets = None if subsets is None else list(subsets)
        self.prior = prior

    def forward(self, mu: Experts, logvar: Experts, mask: Tensor | None = None) -> reference.SubsetPosteriors:
        """M experts [B, D], mask [B, M] -> SubsetPosteriors(mu [S, B, D], logvar [S, B, D], kl [S, B], available)."""
        return functional.subset_posteriors(mu, logvar, mask, subsets=self.subsets, prior=self.prior)

    def extra_repr(self) -> str:
        return f"subsets={self.subsets}, prior={self.prior!r}"


class MixtureLogProb(nn.Module):
    """Log-density of the mixture of a row's observed experts; see :func:`mmvae_fast.functional.mixture_log_prob`."""

    def __init__(self, *, family: str = "normal") -> None:
        super().__init__()
        self.family = _one_of(self, "family", family, ("normal", "laplace"))

    def forward(self, z: Tensor, mu: Experts, scale: Experts, mask: Tensor | None = None) -> Tensor:
        """z [..., B, D], M experts [B, D], mask [B, M] -> [..., B]."""
        return functional.mixture_log_prob(z, mu, scale, mask, family=self.family)

    def extra_repr(self) -> str:
        return f"family={self.family!r}"


class LogLikelihood(nn.Module):
    """log p(x | params), summed over the event; see :func:`mmvae_fast.functional.log_likelihood`.

    Args:
        family: "normal", "laplace", "bernoulli" or "categorical".
        scale: standard deviation (normal) or scale (laplace): a number. One that comes with the data, or is learned, is
            given in the call.
        event_dims: trailing dimensions of x that form one event; default all but the first.
    """

    def __init__(self, family: str, *, scale: float = 1.0, event_dims: int | None = None) -> None:
        super().__init__()
        self.family = _one_of(self, "family", family, ("normal", "laplace", "bernoulli", "categorical"))
        self.scale = scale
        self.event_dims = event_dims

    def forward(
        self, x: Tensor, params: Tensor, *, scale: float | Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x [B, ...], params [..., B, ...], mask [B] -> [..., B]."""
        scale = self.scale if scale is None else scale
        return functional.log_likelihood(
            x, params, family=self.family, scale=scale, event_dims=self.event_dims, mask=mask
        )

    def extra_repr(self) -> str:
        return f"family={self.family!r}, scale={self.scale}, event_dims={self.event_dims}"
