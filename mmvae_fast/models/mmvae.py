"""MMVAE: mixture of experts, trained with importance-weighted bounds.

Shi, Siddharth, Paige & Torr, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models,
NeurIPS 2019 (https://arxiv.org/abs/1911.03393).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE, mean, no_free_bits, output, over_sources, positive
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.importance import dreg, iwae
from mmvae_fast.models.outputs import MixturePosterior, Output
from mmvae_fast.models.priors import Clusters, LearnedScale
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import seed_tensor

FAMILIES, ESTIMATORS = ("laplace", "normal"), ("dreg", "iwae")


class MMVAE(MultimodalVAE):
    """K samples of every observed expert, each scored under all observed modalities and the mixture of the experts.

    With lw_{m,k} = sum_d w_d log p(x_d | z_{m,k}) + beta ( log p(z_{m,k}) - log (1/M) sum_j q_j(z_{m,k}) ),
    z_{m,k} ~ q_m, the loss is minus the mean over rows of (1/M) sum_m log (1/K) sum_k e^lw_{m,k} ("looser", the
    paper's) or of log (1/MK) sum_{m,k} e^lw_{m,k} (``tight``); M counts the modalities the row has. A decoder sees all
    M K B latents in one call. ``kl`` and ``log_likelihood`` of the output are means over m and k.

    Args:
        n_samples: K; 20 or 30 in the paper.
        family: of the experts and the prior: "laplace" (the paper's choice; an encoder's logvar is then 2 log scale)
            or "normal".
        estimator: of the gradient: "dreg" (doubly reparameterised, the paper's) or "iwae" (plain). With more than one
            modality in a row and K > 1 "dreg" is biased, as the paper's is: its weights hold the mixture, its samples
            come from one expert (:func:`mmvae_fast.models.importance.dreg`).
        tight: the tighter bound; it lets modalities that explain all data better take over.
        learned_prior: whether the prior's scales are learned (their mean stays 1).

    ``encode`` gives a :class:`MixturePosterior`. See :class:`MultimodalVAE` for the other arguments.
    """

    family: str
    prior: LearnedScale | Clusters

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        n_samples: int = 10,
        family: str = "laplace",
        estimator: str = "dreg",
        tight: bool = False,
        learned_prior: bool = True,
        **options: Any,
    ) -> None:
        positive("n_samples", n_samples)
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}, expected one of {FAMILIES}")
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {estimator!r}, expected one of {ESTIMATORS}")
        self.__dict__["family"] = family  # before the module exists, which makes its fusion
        super().__init__(modalities, latent_dim, **options)
        no_free_bits(self)
        self.n_samples, self.estimator, self.tight, self.learned_prior = n_samples, estimator, tight, learned_prior
        self.prior = LearnedScale(latent_dim, family, learned_prior)

    def options(self) -> dict[str, Any]:
        own = ("n_samples", "family", "estimator", "tight", "learned_prior")
        return {**super().options(), **{name: getattr(self, name) for name in own}}

    def make_fusion(self) -> nn.Module:
        return fusion.Mixture(self.family)

    def fuse(self, mus: Sequence[Tensor], logvars: Sequence[Tensor], mask: Tensor) -> MixturePosterior:
        return MixturePosterior(mus, logvars, mask, self.family, self.prior)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        seed = seed_tensor(seed, device=self.device)
        sources = [m for m, name in enumerate(self.modalities) if name in batch.data]
        samples = [self._draw(experts.mu[m], experts.logvar[m], branch(seed, m)) for m in sources]
        z = torch.cat(samples) if self.tight else torch.stack(samples, 1)  # [K sources, B, D], or [K, sources, B, D]
        # [K, sources, B]
        divergence = self._log_q(z, experts.mu, experts.logvar, experts.mask) - self.prior.log_prob(z)
        scores = self.scores(batch, z)
        log_weights = sum(self.likelihood_weights[name] * score for name, score in scores.items()) - beta * divergence

        observed = experts.mask[:, sources].t()  # [sources, B]
        if self.tight:
            bound = mean(self._bound(log_weights, z, beta, observed.repeat_interleave(self.n_samples, 0)))
        else:
            bound = over_sources(self._bound(log_weights, z, beta), observed)

        def average(values: Tensor) -> Tensor:  # over rows, their observed sources, and samples
            of_sources = values.unflatten(0, (len(sources), -1)).mean(1) if self.tight else values.mean(0)
            return over_sources(of_sources, observed)

        loss = -bound - self.likelihood_weights.normalizer(scores)
        return output(loss, average(divergence), {name: average(score) for name, score in scores.items()})

    def _draw(self, mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
        return functional.reparameterize(mu, logvar, self.n_samples, family=self.family, seed=seed)

    def _log_q(self, z: Tensor, mus: list[Tensor], logvars: list[Tensor], mask: Tensor) -> Tensor:
        """The density in the log weights, of constant parameters if the estimator is DReG."""
        scales = [torch.exp(0.5 * logvar) for logvar in logvars]
        if self.estimator == "dreg":
            mus, scales = [mu.detach() for mu in mus], [scale.detach() for scale in scales]
        return functional.mixture_log_prob(z, mus, scales, mask, family=self.family)

    def _bound(self, log_weights: Tensor, z: Tensor, beta: float | Tensor, counted: Tensor | None = None) -> Tensor:
        return iwae(log_weights, counted) if self.estimator == "iwae" else dreg(log_weights, z, counted, beta)
