"""MVAE: product of experts with sub-sampled training.

Wu & Goodman, Multimodal Generative Models for Scalable Weakly-Supervised Learning, NeurIPS 2018
(https://arxiv.org/abs/1802.05335).
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
from mmvae_fast.models.seeds import branch, of_all_rows
from mmvae_fast.reference import philox_normal, seed_tensor


class MVAE(MultimodalVAE):
    """A sum of ELBOs, each with its own product of the prior and a set of experts: all, each one alone, random ones.

    loss = sum over sets s of the mean over rows of [ -sum_{m in s} w_m log p(x_m | z_s) + beta * KL(q_s || p) ]; what a
    row lacks counts 0 (equation 4 of the paper). Modalities are encoded once, and each is decoded in one call for all
    sets it is in (compiled or on a GPU, for all sets). The reported elbo, kl and log-likelihoods are those of the joint
    posterior.

    Args:
        n_random_subsets: how many more sets of 2 to M-1 modalities a training step draws, without replacement (the
            paper's k); 0 in its experiments with two modalities, and never in eval mode.

    See :class:`MultimodalVAE` for the other arguments. The paper's defaults: beta = 1 after annealing over 200 of 500
    epochs, and likelihoods weighted per data set.
    """

    _pool: Tensor

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        n_random_subsets: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        pool = _middle_subsets(len(self.modalities))
        if type(n_random_subsets) is not int or not 0 <= n_random_subsets <= len(pool):
            raise ValueError(
                f"n_random_subsets is {n_random_subsets!r}, expected 0 to {len(pool)}: so many sets of 2 to M-1 "
                f"modalities exist for M = {len(self.modalities)}"
            )
        self.n_random_subsets = n_random_subsets
        self.register_buffer("_pool", pool, persistent=False)  # [sets, M] bool: who is in which set

    def options(self) -> dict[str, Any]:
        return {**super().options(), "n_random_subsets": self.n_random_subsets}

    def make_fusion(self) -> nn.Module:
        return fusion.Product(prior=True)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        seed, count = seed_tensor(seed, device=self.device), len(self.modalities)
        mu, logvar = experts.stacked()
        joint = functional.poe_sample_kl(mu, logvar, batch.mask, seed=seed)
        z, kl = [joint.z.expand(count, -1, -1)], [joint.kl[None]]  # of every ELBO: [M, B, D] and [ELBOs, B]
        if count > 1:  # a single modality's own ELBO is the joint one
            own = functional.poe_sample_kl([abreast(mu)], [abreast(logvar)], seed=branch(seed, 1))
            own_z, own_mu, own_logvar = (apart(t, count) for t in own[:3])
            z.append(own_z)
            kl.append(torch.where(batch.mask.t(), functional.gaussian_kl(own_mu, own_logvar), 0.0))
        members = self._random_subsets(of_all_rows(branch(seed, -1)))
        for i, chosen in enumerate(members):
            random = functional.poe_sample_kl(mu, logvar, batch.mask & chosen, seed=branch(seed, 2 + i))
            z.append(random.z.expand(count, -1, -1))
            kl.append(random.kl[None])
        kls = mean(torch.cat(kl))
        latents = dict(zip(self.modalities, torch.stack(z, 1).unbind(), strict=True))  # [sets, B, D]
        included = torch.cat([members.new_ones(count, len(kl) - len(members)), members.t()], 1)  # [M, sets]
        # [scored, sets]: all, each one alone, random ones
        ll = mean(self._scores_where(batch, latents, included) if len(members) else self.scores(batch, latents))
        fit = self.weighted(batch, ll, mean)
        if len(members):  # what is not in a set does not count there
            fit = torch.where(batch.of_present(included), fit, 0.0)
        return self.output(batch, beta * self.paid(kls).sum() - fit.sum(), kls[0], ll[:, 0])

    def _scores_where(self, batch: Batch, latents: dict[str, Tensor], included: Tensor) -> Tensor:
        """:meth:`scores`, which need not be right where a modality is not ``included`` [M, sets]. In eager mode on a
        CPU, where it costs nothing to ask, those are not even decoded."""
        if self.device.type != "cpu" or torch.compiler.is_compiling():
            return self.scores(batch, latents)
        scores = []
        for name, sets in zip(self.modalities, included, strict=True):
            if name in batch.data:
                kept = sets.nonzero().squeeze(1)
                some = self.score(batch, name, latents[name][kept])
                scores.append(some.new_zeros(len(sets), batch.rows).index_copy(0, kept, some))
        return torch.stack(scores)

    def _random_subsets(self, seed: Tensor) -> Tensor:
        """Different sets of 2 to M-1 modalities, drawn uniformly: bool [k, M]. Never leaves the device.

        Each set, in the order of their bitmasks, has a normal, of the dimension of its place; the k largest draw.
        """
        if not (self.training and self.n_random_subsets):
            return self._pool[:0]
        keys = philox_normal(seed, 1, len(self._pool), device=self.device)[0]
        return self._pool[keys.topk(self.n_random_subsets).indices]


def _middle_subsets(count: int) -> Tensor:
    """Every set of at least two of the modalities but not all: bool [sets, M]."""
    if count > 16:
        return torch.zeros(0, count, dtype=torch.bool)  # too many to list: no random sets for that many modalities
    sets = [[bool(s >> m & 1) for m in range(count)] for s in range(1, 2**count - 1) if s.bit_count() >= 2]
    return torch.tensor(sets, dtype=torch.bool).reshape(-1, count)
