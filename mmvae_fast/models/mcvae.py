"""mcVAE: multi-channel VAE, and its sparse form.

Antelmi, Ayache, Robert & Lorenzi, Sparse Multi-Channel Variational Autoencoder for the Joint Analysis of Heterogeneous
Data, ICML 2019 (https://proceedings.mlr.press/v97/antelmi19a.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE, over_sources
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts, abreast, apart
from mmvae_fast.models.outputs import Output

_TINY = 1e-16  # added to mu^2 before its logarithm


class MCVAE(MultimodalVAE):
    """Every modality's latent explains all modalities: the mean of the ELBOs of the single experts.

    loss = mean over rows of 1/n sum_i [ -sum_j w_j log p(x_j | z_i) + beta * KL(q_i || p) ],    z_i ~ q_i,

    i and j over the n modalities the row has (our rule for missing data). This is the paper's bound, an expectation
    over channels; its code has the sum, n times as much, and multi-view-AE weighs the KL n times as much against the
    likelihoods. ``kl`` and ``log_likelihood`` of the output are means over i. ``encode`` gives the mixture of the
    experts, a :class:`MixturePosterior`, whose ELBO this bounds; the paper predicts with the mean of the decoded
    experts instead.

    Args:
        sparse: the paper's variational dropout: q_i = N(mu_i, alpha mu_i^2), where alpha [D] is learned and the same
            for all modalities, and the KL is that to the log-uniform prior, in Molchanov et al.'s approximation (2017,
            equation 14). The encoders' log-variances are not used; :attr:`dropout` says which dimensions are idle. That
            prior cannot be sampled: ``sample`` and ``log_likelihood`` take N(0, I).

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self, modalities: Mapping[str, Modality], latent_dim: int, *, sparse: bool = False, **options: Any
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        if not isinstance(sparse, bool):
            raise TypeError(f"sparse is {sparse!r}, expected True or False")
        self.sparse = sparse
        if sparse:
            self.log_alpha = nn.Parameter(torch.zeros(latent_dim))

    def options(self) -> dict[str, Any]:
        return {**super().options(), "sparse": self.sparse}

    def make_fusion(self) -> nn.Module:
        return fusion.Mixture()

    @property
    def dropout(self) -> Tensor:
        """alpha / (1 + alpha) of every latent dimension, [D]: near 1 where it says nothing. Of a sparse model."""
        return self.log_alpha.detach().sigmoid()

    def _experts(self, batch: Batch) -> Experts:
        experts = super()._experts(batch)
        if not self.sparse:
            return experts
        logvar = [self.log_alpha.to(mu.dtype) + (mu.square() + _TINY).log() for mu in experts.mu]
        return Experts(experts.mu, logvar, experts.mask)

    def _divergence(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """KL(q_i || p), [..., B]."""
        if not self.sparse:
            return functional.gaussian_kl(mu, logvar)
        a = self.log_alpha
        kl = 0.63576 * torch.sigmoid(-1.8732 - 1.48695 * a) + 0.5 * F.softplus(-a)
        return kl.sum().expand(mu.shape[:-1])

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        mu, logvar = experts.stacked()
        z = functional.reparameterize(abreast(mu), abreast(logvar), seed=seed)
        kl = over_sources(self._divergence(mu, logvar), experts.mask.t())
        z, observed = batch.of_present(apart(z, len(self.modalities))), batch.of_present(experts.mask.t())
        ll = over_sources(self.scores(batch, z), observed)
        fit = self.weighted(batch, ll, lambda there: over_sources(there[:, None].expand(-1, *observed.shape), observed))
        return self.output(batch, beta * self.paid(kl) - fit.sum(), kl, ll)
