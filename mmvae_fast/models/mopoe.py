"""MoPoE: mixture of products of experts.

Sutter, Daunhawer & Vogt, Generalized Multimodal ELBO, ICLR 2021 (https://arxiv.org/abs/2105.02470).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE, mean, number
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.outputs import Output
from mmvae_fast.models.subsets import MOST, bitmasks
from mmvae_fast.reference import seed_tensor


class MoPoE(MultimodalVAE):
    """One ELBO whose posterior is the uniform mixture of the products of subsets of the observed experts.

    loss = mean over rows of [ -sum_m w_m log p(x_m | z) + beta * mean_s KL(q_s || p) ], z from one subset's product
    drawn uniformly for every row, over the subsets s all of whose members the row has. The prior expert sits in the
    product of all M modalities and in no other, as in the authors' code. The paper's default is beta = 1 (2.5 on
    PolyMNIST). ``encode`` gives the product of everything observed.

    With ``private_dim`` it is the paper's factorised variant: every modality is decoded from z and a private latent of
    its own, w_m ~ q_m(w|x_m), and the loss has beta * beta_private * sum_m KL(q_m(w) || N(0, I)) more, over the
    modalities the row has, as in the authors' code; ``kl`` of the output counts it in full.

    Args:
        subsets: lists of modality names; None is all 2^M - 1 subsets, of at most 16 modalities.
        private_dim: P, dimensions of w_m: one number, or by modality; encoders give, and decoders take, D + P.
        beta_private: weight of the private latents' KL divergences, beside ``beta``.

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        subsets: Iterable[Sequence[str]] | None = None,
        private_dim: int | Mapping[str, int] = 0,
        beta_private: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, _private_dim=private_dim, **options)
        self.beta_private = number("beta_private", beta_private)
        if subsets is None and len(self.modalities) > MOST:
            raise ValueError(
                f"MoPoE: got {len(self.modalities)} modalities, expected at most {MOST}: it averages over all 2^M - 1 "
                "subsets of them; pass subsets=, or use MVAE, which takes any number"
            )
        self.subsets = None if subsets is None else [list(members) for members in subsets]
        self._bitmasks = None if self.subsets is None else bitmasks("MoPoE", self.subsets, list(self.modalities))

    def options(self) -> dict[str, Any]:
        own = {"private_dim": self.private_option(), "beta_private": self.beta_private}
        return {**super().options(), "subsets": self.subsets, **own}

    def make_fusion(self) -> nn.Module:
        return fusion.FullProduct()

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        seed = seed_tensor(seed, device=self.device)
        z, kl, _ = functional.mopoe_sample_kl(
            experts.mu, experts.logvar, experts.mask, subsets=self._bitmasks, prior="full", seed=seed
        )
        private = {name: self.sample_private(name, experts, seed) for name in experts.private}
        latents = {name: torch.cat([z, private[name].z], -1) if name in private else z for name in batch.data}
        ll = mean(self.scores(batch, latents))
        divergence, private_kl = mean(kl), [mean(q.kl) for q in private.values()]
        paid = self.paid(divergence)
        if private_kl:
            paid = paid + self.beta_private * sum(self.paid(own) for own in private_kl)
        loss = beta * paid - self.weighted(batch, ll, mean).sum()
        return self.output(batch, loss, sum(private_kl, start=divergence), ll)
