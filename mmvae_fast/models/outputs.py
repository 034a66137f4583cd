"""What models return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmvae_fast import functional
from mmvae_fast.distributions import MixtureOfExperts
from mmvae_fast.models.priors import Clusters
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
        prior: Clusters | None = None,
    ) -> None:
        self.mus, self.logvars, self.mask, self.family = list(mus), list(logvars), mask, family
        self._mixture = MixtureOfExperts.from_logvar(self.mus, self.logvars, mask, family=family)
        self._prior = prior

    @property
    def mu(self) -> Tensor:
        """The mean, [B, D]: it may lie where no expert does; :attr:`point` does not."""
        mean = self._mixture.mean
        return mean if self._prior is None else torch.where(self._empty[:, None], self._prior.mean.to(mean.dtype), mean)

    @property
    def logvar(self) -> Tensor:
        """The log of the variance, [B, D]."""
        variance = self._mixture.variance
        if self._prior is not None:
            variance = torch.where(self._empty[:, None], self._prior.variance.to(variance.dtype), variance)
        return variance.log()

    @property
    def point(self) -> Tensor:
        """The mean of the row's most certain expert (the least sum of log-variances), [B, D]; without any, the prior's
        likeliest mean."""
        mu, scale, observed = self._mixture._stacked()
        spread = torch.where(observed.squeeze(-1), scale.log().sum(-1), torch.inf)  # [M, B]
        point = mu.gather(0, spread.argmin(0)[None, :, None].expand(1, *mu.shape[1:]))[0]
        return point if self._prior is None else torch.where(self._empty[:, None], self._prior.point.to(point.dtype), point)

    def sample(self, n_samples: int | None = None, seed: int | Tensor | None = None) -> Tensor:
        """z [B, D], or [n_samples, B, D]: an expert drawn for every row and sample, then a draw of it."""
        seed = seed_tensor(seed, device=self.mask.device)
        z = self._mixture.rsample(() if n_samples is None else (n_samples,), seed=seed)
        if self._prior is None:
            return z
        return torch.where(self._empty[:, None], self._prior.sample(self.mask.shape[0], seed, n_samples).to(z.dtype), z)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, z [..., B, D] -> [..., B]."""
        log_q = self._mixture.log_prob(z)
        return log_q if self._prior is None else torch.where(self._empty, self._prior.log_prob(z), log_q)

    @property
    def _empty(self) -> Tensor:
        """bool [B]: rows without any expert."""
        return ~self.mask.any(1)
