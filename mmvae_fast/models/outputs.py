"""What models return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmvae_fast import functional
from mmvae_fast.distributions import MixtureOfExperts


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
    the prior (mean 0, scale 1).

    Args:
        mus, logvars: M experts [B, D]; of a Laplace expert, logvar is 2 log scale.
        mask: bool [B, M].
        family: "normal" or "laplace".
    """

    def __init__(self, mus: Sequence[Tensor], logvars: Sequence[Tensor], mask: Tensor, family: str = "normal") -> None:
        self.mus, self.logvars, self.mask, self.family = list(mus), list(logvars), mask, family
        self._mixture = MixtureOfExperts.from_logvar(self.mus, self.logvars, mask, family=family)

    @property
    def mu(self) -> Tensor:
        """The mean, [B, D]: it may lie where no expert does; :attr:`point` does not."""
        return self._mixture.mean

    @property
    def logvar(self) -> Tensor:
        """The log of the variance, [B, D]."""
        return self._mixture.variance.log()

    @property
    def point(self) -> Tensor:
        """The mean of the row's most certain expert (the least sum of log-variances), [B, D]."""
        mu, scale, observed = self._mixture._stacked()
        spread = torch.where(observed.squeeze(-1), scale.log().sum(-1), torch.inf)  # [M, B]
        return mu.gather(0, spread.argmin(0)[None, :, None].expand(1, *mu.shape[1:]))[0]

    def sample(self, n_samples: int | None = None, seed: int | Tensor | None = None) -> Tensor:
        """z [B, D], or [n_samples, B, D]: an expert drawn for every row and sample, then a draw of it."""
        return self._mixture.rsample(() if n_samples is None else (n_samples,), seed=seed)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, z [..., B, D] -> [..., B]."""
        return self._mixture.log_prob(z)
