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
from mmvae_fast.models.base import MultimodalVAE, mean, no_free_bits, over_sources, positive
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts, abreast, apart
from mmvae_fast.models.importance import CONSTANT_Q, ESTIMATORS, estimate
from mmvae_fast.models.outputs import MixturePosterior, Output
from mmvae_fast.models.priors import Clusters, LearnedScale

FAMILIES = ("laplace", "normal")


class MMVAE(MultimodalVAE):
    """K samples of every observed expert, each scored under all observed modalities and the mixture of the experts.

    With lw_{m,k} = sum_d w_d log p(x_d | z_{m,k}) + beta ( log p(z_{m,k}) - log (1/M) sum_j q_j(z_{m,k}) ),
    z_{m,k} ~ q_m, the loss is minus the mean over rows of (1/M) sum_m log (1/K) sum_k e^lw_{m,k} ("looser", the
    paper's) or of log (1/MK) sum_{m,k} e^lw_{m,k} (``tight``); M counts the modalities the row has. A decoder sees all
    M K B latents in one call. ``kl`` and ``log_likelihood`` of the output are means over m and k.

    Args:
        n_samples: K; 20 or 30 in the paper. A step costs K decodings of every modality from every other; 10, the K
            of MMVAE+, costs a third of that.
        family: of the experts and the prior: "laplace" (the paper's choice; an encoder's logvar is then 2 log scale)
            or "normal". The authors' encoders end in a softmax over dimensions that gives the scales; ours need not.
        estimator: of the gradient: "dreg" (doubly reparameterised, the paper's), "iwae" (plain) or "stl" (sticking the
            landing; see :func:`mmvae_fast.models.importance.stl`). With more than one modality in a row and K > 1
            "dreg" is biased, as the paper's is: its weights hold the mixture, its samples come from one expert
            (:func:`mmvae_fast.models.importance.dreg`).
        tight: the tighter bound; it lets modalities that explain all data better take over.
        learned_prior: whether the prior's scales are learned (their mean stays 1); an option of the authors' code, too.

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
        mu, logvar = experts.stacked()
        z = self._draw_each(batch, mu, logvar, seed)  # [K, sources, B, D]
        if self.tight:
            z = z.transpose(0, 1).flatten(0, 1)  # [sources K, B, D]
        divergence = self._log_q(z, mu, logvar, experts.mask) - self.prior.log_prob(z)  # [K, sources, B]
        scores = self.scores(batch, z)
        log_weights = self.weighted(batch, scores).sum(0) - beta * divergence

        observed = batch.of_present(experts.mask.t())  # [sources, B]
        if self.tight:
            counted = observed.repeat_interleave(self.n_samples, 0)
            bound = mean(estimate(self.estimator, log_weights, z, beta, counted))
        else:
            bound = over_sources(estimate(self.estimator, log_weights, z, beta), observed)

        def average(values: Tensor) -> Tensor:  # over rows, their observed sources, and samples
            of_sources = values.unflatten(-2, (len(observed), -1)) if self.tight else values.transpose(-3, -2)
            return over_sources(of_sources.mean(-2), observed)

        return self.output(batch, -bound, average(divergence), average(scores))

    def _draw_each(self, batch: Batch, mu: Tensor, logvar: Tensor, seed: int | Tensor | None) -> Tensor:
        """K samples of the experts [M, B, D] of what is in the batch, [K, sources, B, D]."""
        drawn = apart(self._draw(abreast(mu), abreast(logvar), seed), len(mu))
        return batch.of_present(drawn, 1)

    def _draw(self, mu: Tensor, logvar: Tensor, seed: int | Tensor | None) -> Tensor:
        return functional.reparameterize(mu, logvar, self.n_samples, family=self.family, seed=seed)

    def _log_q(self, z: Tensor, mu: Tensor, logvar: Tensor, mask: Tensor) -> Tensor:
        """The density in the log weights of experts [M, B, D], with constant parameters if estimated by DReG or STL."""
        if self.estimator in CONSTANT_Q:
            mu, logvar = mu.detach(), logvar.detach()
        return functional.mixture_log_prob(z, mu, torch.exp(0.5 * logvar), mask, family=self.family)
