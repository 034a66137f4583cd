"""TELBO: a joint encoder and the decoders first, then unimodal encoders for these decoders.

Vedantam, Fischer, Huang & Murphy, Generative Models of Visually Grounded Imagination, ICLR 2018
(https://arxiv.org/abs/1705.10762).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import mean
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.joint import TwoStageVAE
from mmvae_fast.models.outputs import Output
from mmvae_fast.models.seeds import branch
from mmvae_fast.models.weights import LikelihoodWeights
from mmvae_fast.reference import seed_tensor


class TELBO(TwoStageVAE):
    """The triple ELBO of the paper, for any number of modalities.

    First stage: mean over rows of -sum_m w_m log p(x_m | z) + beta KL(q_J || p), z ~ q_J. Second stage, with the joint
    encoder and the decoders frozen: mean over rows of sum_m [ -gamma_m log p(x_m | z_m) + beta KL(q_m || p) ],
    z_m ~ q_m. All sums are over what the row has (our rule; the paper trains on complete rows). In the second stage,
    ``kl`` and ``log_likelihood`` of the output are those of the unimodal ELBOs, kl their sum.

    ``encode`` gives q_J where all modalities are observed, else the product of the observed experts. The paper weighs
    small modalities more, in both stages: see ``likelihood_weights``.

    Args:
        gamma: weights of the log-likelihoods in the second stage, in any form that ``likelihood_weights`` takes; None
            is ``likelihood_weights``.
        joint_hidden: sizes of the hidden layers between the joint encoder's features and q_J.

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        gamma: str | Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        try:
            self.gamma = None if gamma is None else LikelihoodWeights(gamma, self.modalities)
        except (TypeError, ValueError) as error:
            raise type(error)(f"gamma: {error}") from None

    def options(self) -> dict[str, Any]:
        return {**super().options(), "gamma": None if self.gamma is None else self.gamma.option()}

    def second_objective(
        self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None
    ) -> Output:
        seed = seed_tensor(seed, device=self.device)
        scores, kls = [], []
        for m, name in enumerate(self.modalities):
            if name in batch.data:
                q = functional.poe_sample_kl(
                    [experts.mu[m]], [experts.logvar[m]], batch.mask[:, m : m + 1], prior=False, seed=branch(seed, m)
                )
                scores.append(self.score(batch, name, q.z))
                kls.append(q.kl)
        ll, kl = mean(torch.stack(scores)), mean(torch.stack(kls))
        loss = beta * self.paid(kl).sum() - self.weighted(batch, ll, mean, self.gamma).sum()
        return self.output(batch, loss, kl.sum(), ll)
