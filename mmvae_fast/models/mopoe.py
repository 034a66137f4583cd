"""MoPoE: mixture of products of experts.

Sutter, Daunhawer & Vogt, Generalized Multimodal ELBO, ICLR 2021 (https://arxiv.org/abs/2105.02470).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import MultimodalVAE, mean
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.outputs import Output, Posterior


class MoPoE(MultimodalVAE):
    """One ELBO whose posterior is the uniform mixture of the products of all subsets of the observed experts.

    loss = mean over rows of [ -sum_m w_m log p(x_m | z) + beta * mean_s KL(q_s || p) ], z from one subset's product
    drawn uniformly for every row, over the subsets s all of whose members the row has. The prior expert sits in the
    product of all M modalities and in no other, as in the authors' code. The paper's default is beta = 1 (2.5 on
    PolyMNIST). ``encode`` gives the product of everything observed.

    See :class:`MultimodalVAE` for the arguments; there are 2^M - 1 subsets, so M is at most 16.
    """

    def __init__(self, modalities: Mapping[str, Modality], latent_dim: int, **options: Any) -> None:
        super().__init__(modalities, latent_dim, **options)
        if len(self.modalities) > 16:
            raise ValueError(
                f"MoPoE: got {len(self.modalities)} modalities, expected at most 16: it averages over all 2^M - 1 "
                "subsets of them; MVAE takes any number"
            )

    def objective(
        self, batch: Batch, mus: list[Tensor], logvars: list[Tensor], *, beta: float | Tensor, seed: int | Tensor | None
    ) -> Output:
        drawn = functional.mopoe_sample_kl(mus, logvars, batch.mask, prior="full", seed=seed)
        kl = mean(drawn.kl)
        scores = {name: mean(self._score(batch, name, drawn.z)) for name in batch.data}
        loss = beta * kl - self._weighted(scores)
        ll = {name: score.detach() for name, score in scores.items()}
        return Output(loss, sum(ll.values()) - kl.detach(), kl.detach(), ll)

    def fuse(self, mus: Sequence[Tensor], logvars: Sequence[Tensor], mask: Tensor) -> Posterior:
        # the prior expert of the full product: one more N(0, I), observed where everything else is
        mus, logvars = [*mus, torch.zeros_like(mus[0])], [*logvars, torch.zeros_like(mus[0])]
        mask = torch.cat([mask, mask.all(1, keepdim=True)], dim=1)
        return Posterior(*functional.product_of_experts(mus, logvars, mask, prior=False))
