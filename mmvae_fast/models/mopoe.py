"""MoPoE: mixture of products of experts.

Sutter, Daunhawer & Vogt, Generalized Multimodal ELBO, ICLR 2021 (https://arxiv.org/abs/2105.02470).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.outputs import Output
from mmvae_fast.models.subsets import MOST, bitmasks


class MoPoE(MultimodalVAE):
    """One ELBO whose posterior is the uniform mixture of the products of subsets of the observed experts.

    loss = mean over rows of [ -sum_m w_m log p(x_m | z) + beta * mean_s KL(q_s || p) ], z from one subset's product
    drawn uniformly for every row, over the subsets s all of whose members the row has. The prior expert sits in the
    product of all M modalities and in no other, as in the authors' code. The paper's default is beta = 1 (2.5 on
    PolyMNIST). ``encode`` gives the product of everything observed.

    Args:
        subsets: lists of modality names; None is all 2^M - 1 subsets, of at most 16 modalities.

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        subsets: Iterable[Sequence[str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        if subsets is None and len(self.modalities) > MOST:
            raise ValueError(
                f"MoPoE: got {len(self.modalities)} modalities, expected at most {MOST}: it averages over all 2^M - 1 "
                "subsets of them; pass subsets=, or use MVAE, which takes any number"
            )
        self.subsets = None if subsets is None else [list(members) for members in subsets]
        self._bitmasks = None if self.subsets is None else bitmasks("MoPoE", self.subsets, list(self.modalities))

    def options(self) -> dict[str, Any]:
        return {**super().options(), "subsets": self.subsets}

    def make_fusion(self) -> nn.Module:
        return fusion.FullProduct()

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        z, kl, _ = functional.mopoe_sample_kl(
            experts.mu, experts.logvar, experts.mask, subsets=self._bitmasks, prior="full", seed=seed
        )
        return self.elbo(batch, z, kl, beta)
