"""What models return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmvae_fast import functional


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

    def sample(self, n_samples: int | None = None, seed: int | Tensor | None = None) -> Tensor:
        """z [B, D], or [n_samples, B, D]; with gradients to ``mu`` and ``logvar``."""
        return functional.reparameterize(self.mu, self.logvar, n_samples, seed=seed)
