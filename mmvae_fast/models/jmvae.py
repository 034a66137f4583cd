"""JMVAE: a joint encoder, and unimodal ones that are drawn to it.

Suzuki, Nakayama & Matsuo, Joint Multimodal Learning with Deep Generative Models, 2016
(https://arxiv.org/abs/1611.01891): JMVAE-kl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import mean, number
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.joint import JointVAE
from mmvae_fast.models.outputs import Output


class JMVAE(JointVAE):
    """loss = mean over rows of [ -sum_m w_m log p(x_m | z) + beta KL(q_J || p) + alpha sum_m KL(q_J || q_m) ], z ~ q_J.

    Both sums are over what the row has, and q_J is the joint encoder's of that (our rule; the paper has none).
    ``encode`` gives q_J where all modalities are observed, else the product of the observed experts. Every modality has
    two feature networks, one of its own expert and one of the joint encoder; each runs once a step.

    Args:
        alpha: how much the unimodal encoders weigh; 0.1 as in the paper. Warm-up leaves it alone.
        joint_hidden: sizes of the hidden layers between the joint encoder's features and q_J.
        share_encoders: no second set of networks: the joint encoder's features are the experts' mu and logvar.

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        alpha: float = 0.1,
        joint_hidden: Sequence[int] = (256, 256),
        share_encoders: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(share_encoders, bool):
            raise TypeError(f"share_encoders is {share_encoders!r}, expected True or False")
        own = not share_encoders
        super().__init__(modalities, latent_dim, joint_hidden=joint_hidden, _own_features=own, **options)
        self.alpha, self.share_encoders = number("alpha", alpha), share_encoders

    def options(self) -> dict[str, Any]:
        return {**super().options(), "alpha": self.alpha, "share_encoders": self.share_encoders}

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        q = self.joint_posterior(batch, experts)
        joint = functional.poe_sample_kl([q.mu], [q.logvar], prior=False, seed=seed)
        elbo = self.elbo(batch, joint.z, joint.kl, beta)
        mu, logvar = experts.stacked()
        gaps = functional.gaussian_kl(q.mu.expand_as(mu), q.logvar.expand_as(mu), mu, logvar)
        gaps = torch.where(experts.mask.t(), gaps, 0.0).sum(0)
        return elbo._replace(loss=elbo.loss + self.alpha * mean(gaps))
