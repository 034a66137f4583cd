"""CRMVAE: multimodal VAE whose experts are held to their product, and each to its own modality.

Suzuki & Matsuo, Mitigating the Limitations of Multimodal VAEs with Coordination-based Approach, 2022
(https://openreview.net/forum?id=Rn8u4MYgeNJ).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE, mean
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts, abreast, apart
from mmvae_fast.models.outputs import Output
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import seed_tensor


class CRMVAE(MultimodalVAE):
    """Every modality decoded from the joint posterior and from its own, q = product of experts without a prior expert.

    loss = mean over rows of 1/(n + 1) [ -1/2 sum_m w_m (log p(x_m | z) + log p(x_m | z_m))
                                         + beta ( KL(q || p) + sum_m KL(q || q_m) ) ],    z ~ q, z_m ~ q_m,

    n the number of modalities the row has (M where data are complete; the rule for missing data is ours: the bound of
    what is there). ``kl`` and ``log_likelihood`` of the output are those of the joint posterior.

    Args:
        beta: 2.5 unless told.

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self, modalities: Mapping[str, Modality], latent_dim: int, *, beta: float = 2.5, **options: Any
    ) -> None:
        super().__init__(modalities, latent_dim, beta=beta, **options)

    def make_fusion(self) -> nn.Module:
        return fusion.Product(prior=False)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        seed = seed_tensor(seed, device=self.device)
        mu, logvar = experts.stacked()
        q = functional.poe_sample_kl(mu, logvar, experts.mask, prior=False, expert_kl=True, seed=seed)
        assert q.expert_kl is not None  # asked for
        share = 1 / (experts.mask.sum(1) + 1).to(q.kl.dtype)
        own = functional.reparameterize(abreast(mu), abreast(logvar), seed=branch(seed, 1))
        own = apart(own, len(self.modalities))
        z = torch.stack([q.z.expand_as(own), own], 1)  # [M, 2, B, D]
        scores = self.scores(batch, dict(zip(self.modalities, z.unbind(), strict=True)))  # [scored, 2, B]
        fit = mean(share * self.weighted(batch, scores).mean(1).sum(0))
        divergence = self.paid(mean(share * q.kl)) + mean(share * q.expert_kl.sum(0))
        return self.output(batch, beta * divergence - fit, mean(q.kl), mean(scores[:, 0]))
