"""What models return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmvae_fast import functional
from mmvae_fast.distributions import MixtureOfExperts
from mmvae_fast.models.priors import Clusters, LearnedScale
from mmvae_fast.reference import seed_tensor


class Output(NamedTuple):
    """One evaluation of the objective: scalars, means over the rows of the batch, in nats.

    Only ``loss`` has a gradient. A row in which a modality is missing counts 0 in that modality's log-likelihood.
    """

    loss: Tensor
    elbo: Tensor
    """Evidence lower bound: sum of the log-likelihoods minus kl, without beta and without likelihood weights."""
    kl: Tensor
    log_likelihood: dict[str, Tensor]
    """By modality; those absent from the batch are left out."""


class Posterior(NamedTuple):
    """A diagonal Gaussian q(z | x) for every row: ``mu`` and ``logvar``, each [B, D]."""

    mu: Tensor
    logvar: Tensor

    @property
    def point(self) -> Tensor:
        """The latent to decode where one has to stand for all: the mean, [B, D]."""
        return self.mu

    def sample(self, n_samples: int | None = None, seed: int | Tensor | None = None) -> Tensor:
        """z [B, D], or [n_samples, B, D]; with gradients to ``mu`` and ``logvar``."""
        return functional.reparameterize(self.mu, self.logvar, n_samples, seed=seed)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, z [..., B, D] -> [..., B]."""
        return functional.mixture_log_prob(z, [self.mu], [torch.exp(0.5 * self.logvar)])


class MixturePosterior:
    """A mixture of a row's observed experts in equal parts, Gaussians or Laplace distributions; a row without any has
    the prior.

    Args:
        mus, logvars: M experts [B, D]; of a Laplace expert, logvar is 2 log scale.
        mask: bool [B, M].
        family: "normal" or "laplace".
        prior: if it is not the family's with mean 0 and scale 1.
    """

    def __init__(
        self,
        mus: Sequence[Tensor],
        logvars: Sequence[Tensor],
        mask: Tensor,
        family: str = "normal",
        prior: Clusters | LearnedScale | None = None,
    ) -> None:
        self.mus, self.logvars, self.mask, self.family = list(mus), list(logvars), mask, family
        self._mixture = MixtureOfExperts.from_logvar(self.mus, self.logvars, mask, family=family)
        self._prior = prior

    @property
    def mu(self) -> Tensor:
        """The mean, [B, D]: it may lie where no expert does; :attr:`point` does not."""
        mean = self._mixture.mean
        return mean if self._prior is None else self._or_prior(mean, self._prior.mean)

    @property
    def logvar(self) -> Tensor:
        """The log of the variance, [B, D]."""
        variance = self._mixture.variance
        return (variance if self._prior is None else self._or_prior(variance, self._prior.variance)).log()

    @property
    def point(self) -> Tensor:
        """The mean of the row's most certain expert (the least sum of log-variances), [B, D]; without any, the prior's
        likeliest mean."""
        mu, scale, observed = self._mixture._stacked()
        spread = torch.where(observed.squeeze(-1), scale.log().sum(-1), torch.inf)  # [M, B]
        point = mu.gather(0, spread.argmin(0)[None, :, None].expand(1, *mu.shape[1:]))[0].to(self.mus[0].dtype)
        return point if self._prior is None else self._or_prior(point, self._prior.point)

    def sample(self, n_samples: int | None = None, seed: int | Tensor | None = None) -> Tensor:
        """z [B, D], or [n_samples, B, D]: an expert drawn for every row and sample, then a draw of it."""
        seed = seed_tensor(seed, device=self.mask.device)
        z = self._mixture.rsample(() if n_samples is None else (n_samples,), seed=seed)
        return z if self._prior is None else self._or_prior(z, self._prior.sample(self.mask.shape[0], seed, n_samples))

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, z [..., B, D] -> [..., B]."""
        log_q = self._mixture.log_prob(z)
        return log_q if self._prior is None else torch.where(self.mask.any(1), log_q, self._prior.log_prob(z))

    def _or_prior(self, values: Tensor, prior: Tensor) -> Tensor:
        """Values [..., B, D], the prior's in rows without any expert."""
        return torch.where(self.mask.any(1, keepdim=True), values, prior.to(values.dtype))
