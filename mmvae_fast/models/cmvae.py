"""CMVAE: MMVAE+ with a clustered prior.

Palumbo, Manduchi, Laguna, Chopard & Vogt, Deep Generative Clustering with Multimodal Diffusion Variational
Autoencoders, ICLR 2024 (https://openreview.net/forum?id=k5THrhXDV3), without its diffusion decoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import positive
from mmvae_fast.models.batch import Mask
from mmvae_fast.models.mmvae_plus import MMVAEPlus
from mmvae_fast.models.priors import Clusters


class Clustering(NamedTuple):
    """The cluster of every row: its index [B], and the probabilities of all, [B, C]."""

    assignment: Tensor
    probability: Tensor


class CMVAE(MMVAEPlus):
    """MMVAE+ with the prior p(u) = sum_c pi_c p(u | c), whose weights and means are learned.

    The loss is that of :class:`MMVAEPlus`. The paper's log weights are sums over clusters,

    lw = sum_c q(c|u) [ sum_d v_d log p(x_d | u, w_d) + beta ( log pi_c + log p(u|c) + log p(w_m)
                        - log (1/M) sum_j q_j(u) - log q_m(w_m) - log q(c|u) ) ],

    with q(c|u) = p(c|u), the exact posterior; then log pi_c + log p(u|c) - log q(c|u) = log p(u) for every c, and the
    sum is MMVAE+'s log weight with this prior, in value and gradient. So it is computed. Missing data as in MMVAE+.

    Args:
        n_clusters: C.
        learned_scale: whether the clusters' scales are learned; 1 in the authors' code.

    See :class:`MMVAEPlus` for the other arguments; there is no ``learned_prior``. The paper has beta = 2.5 on
    PolyMNIST.
    """

    prior: Clusters

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        n_clusters: int = 10,
        learned_scale: bool = False,
        **options: Any,
    ) -> None:
        positive("n_clusters", n_clusters)
        super().__init__(modalities, latent_dim, learned_prior=False, **options)
        self.n_clusters, self.learned_scale = n_clusters, learned_scale
        self.prior = Clusters(n_clusters, latent_dim, self.family, learned_scale)

    def options(self) -> dict[str, Any]:
        inherited = {name: value for name, value in super().options().items() if name != "learned_prior"}
        return {**inherited, "n_clusters": self.n_clusters, "learned_scale": self.learned_scale}

    @torch.no_grad()
    def cluster(self, batch: Mapping[str, Tensor], mask: Mask = None) -> Clustering:
        """p(c | x) of every row: the mean over its observed modalities of p(c | u) at their experts' means; pi_c for a
        row without any."""
        mus, _, observed = self.encode_experts(batch, mask)
        of_experts = self.prior.probabilities(torch.stack(mus))  # [M, B, C]
        seen = observed.t().unsqueeze(-1)
        probability = torch.where(seen, of_experts, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        probability = torch.where(seen.any(0), probability, self.prior.weights)
        return Clustering(probability.argmax(-1), probability)
