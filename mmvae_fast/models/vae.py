"""Models of one modality: VAE, beta-VAE and IWAE.

Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014 (https://arxiv.org/abs/1312.6114);
Higgins et al., beta-VAE, ICLR 2017; Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016
(https://arxiv.org/abs/1509.00519).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE, mean, no_free_bits, positive
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.importance import CONSTANT_Q, ESTIMATORS, estimate
from mmvae_fast.models.outputs import Output


class VAE(MultimodalVAE):
    """loss = mean over rows of [ -log p(x | z) + beta * KL(q || p) ] of one modality; a missing row is its prior.

    See :class:`MultimodalVAE` for the arguments.
    """

    def __init__(self, modalities: Mapping[str, Modality], latent_dim: int, **options: Any) -> None:
        super().__init__(modalities, latent_dim, **options)
        if len(self.modalities) != 1:
            raise ValueError(f"{type(self).__name__}: got the modalities {list(self.modalities)}, expected exactly one")

    def make_fusion(self) -> nn.Module:
        return fusion.Product(prior=False)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        q = functional.poe_sample_kl(experts.mu, experts.logvar, experts.mask, prior=False, seed=seed)
        return self.elbo(batch, q.z, q.kl, beta)


class BetaVAE(VAE):
    """A VAE whose KL divergence weighs beta = 4 unless told."""

    def __init__(
        self, modalities: Mapping[str, Modality], latent_dim: int, *, beta: float = 4.0, **options: Any
    ) -> None:
        super().__init__(modalities, latent_dim, beta=beta, **options)


class IWAE(VAE):
    """loss = -mean over rows of log (1/K) sum_k p(x | z_k) (p(z_k) / q(z_k))^beta, z_k ~ q.

    Args:
        n_samples: K; 50 in the paper.
        estimator: of the gradient: "iwae" (plain), "dreg" (doubly reparameterised, Tucker et al. 2019) or "stl"
            (sticking the landing, Roeder et al. 2017; unbiased only for K = 1, the ELBO).

    ``kl`` and ``log_likelihood`` of the output are means over the samples. See :class:`MultimodalVAE` for the other
    arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        n_samples: int = 50,
        estimator: str = "iwae",
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        no_free_bits(self)
        positive("n_samples", n_samples)
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {estimator!r}, expected one of {ESTIMATORS}")
        self.n_samples, self.estimator = n_samples, estimator

    def options(self) -> dict[str, Any]:
        return {**super().options(), "n_samples": self.n_samples, "estimator": self.estimator}

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        (mu,), (logvar,), observed = experts.mu, experts.logvar, experts.mask
        z = functional.reparameterize(mu, logvar, self.n_samples, seed=seed)  # [K, B, D]
        if self.estimator in CONSTANT_Q:
            mu, logvar = mu.detach(), logvar.detach()
        log_q = functional.mixture_log_prob(z, [mu], [torch.exp(0.5 * logvar)], observed)
        divergence = log_q - self.prior.log_prob(z)  # [K, B]
        scores = self.scores(batch, z)  # [1, K, B]
        log_weights = self.weighted(batch, scores)[0] - beta * divergence
        bound = estimate(self.estimator, log_weights, z, beta)
        bound = mean(torch.where(observed[:, 0], bound, 0.0))
        kl = mean(torch.where(observed[:, 0], divergence.mean(0), 0.0))
        return self.output(batch, -bound, kl, mean(scores.mean(1)))
