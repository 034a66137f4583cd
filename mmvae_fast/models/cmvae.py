"""CMVAE: MMVAE+ with a clustered prior.

Palumbo, Manduchi, Laguna, Chopard & Vogt, Deep Generative Clustering with Multimodal Diffusion Variational
Autoencoders, ICLR 2024 (https://openreview.net/forum?id=k5THrhXDV3), without its diffusion decoders.
"""

from __future__ import annotations

import math
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

    :meth:`cluster` says which cluster a row is of, and :meth:`prune_clusters` chooses their number.

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
        probability = _over_modalities(self.prior, torch.stack(mus), observed.t())
        return Clustering(probability.argmax(-1), probability)

    @torch.no_grad()
    def prune_clusters(self, data: Mapping[str, Tensor], mask: Mask = None, *, chunk: int = 1024) -> dict[int, float]:
        """Choose the number of clusters after training: drops, in place, those that the data have no use for.

        With C clusters left, the paper's penalised normalised entropy is the mean over rows and their modalities of

        beta H(p(c | u)) / log C - log p(u) / D,

        u the mean of the modality's expert and H the entropy. Then the cluster to which :meth:`cluster` assigns the
        fewest rows goes, and the others' weights grow in proportion; and so on, down to two. The model keeps the C at
        which the number is least, and ``n_clusters`` with it. (As multivae computes it, but for means instead of draws
        of u, and for :meth:`cluster` instead of a vote of the modalities.) An optimizer that was made before holds the
        old parameters; make a new one to train on.

        Args:
            data, mask: the training data, as one batch.
            chunk: how many rows to encode at a time.

        Returns:
            the number by C.

        Raises:
            ValueError: a single cluster, or no row with anything observed.
        """
        if self.n_clusters < 2:
            raise ValueError(f"prune_clusters: n_clusters is {self.n_clusters}, expected 2 or more to choose from")
        checked = self._check(data, mask)
        if not bool(checked.mask.any()):
            raise ValueError("prune_clusters: no row has anything observed, expected the training data")
        encoded = []
        for part in checked.split(positive("chunk", chunk)):
            experts = self._experts(part)
            encoded.append((torch.stack(experts.mu), experts.mask.t()))  # [M, rows, D], [M, rows]
        entropy: dict[int, float] = {}
        priors: dict[int, Clusters] = {}
        prior = self.prior
        for count in range(self.n_clusters, 1, -1):
            priors[count], (entropy[count], sizes) = prior, self._penalised_entropy(prior, encoded)
            places = torch.arange(count, device=self.device)
            prior = prior.only(places[places != sizes.argmin()])
        self.n_clusters = min(entropy, key=lambda count: entropy[count])
        self.prior = priors[self.n_clusters]
        return entropy

    def _penalised_entropy(self, prior: Clusters, encoded: list[tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
        """Of experts' means and what is observed; and the number of rows of each cluster, [C]."""
        count = len(prior.weights)
        total, sizes = 0.0, torch.zeros(count, dtype=torch.int64, device=self.device)
        for u, observed in encoded:
            probability = prior.probabilities(u)
            normalised = torch.special.entr(probability).sum(-1) / math.log(count)
            value = self.beta * normalised - prior.log_prob(u) / self.latent_dim
            share = observed.sum(0).clamp(min=1)  # a row's modalities count together as much as another row's
            total += float((torch.where(observed, value, 0.0) / share).sum())
            assigned = _over_modalities(prior, u, observed).argmax(-1)[observed.any(0)]
            sizes += assigned.bincount(minlength=count)
        return total / int(sizes.sum()), sizes


def _over_modalities(prior: Clusters, u: Tensor, observed: Tensor) -> Tensor:
    """The mean of p(c | u), u [M, B, D], over what each row has, bool [M, B]; pi_c where it has nothing: [B, C]."""
    seen = observed.unsqueeze(-1)
    probability = torch.where(seen, prior.probabilities(u), 0.0).sum(0) / seen.sum(0).clamp(min=1)
    return torch.where(seen.any(0), probability, prior.weights)
