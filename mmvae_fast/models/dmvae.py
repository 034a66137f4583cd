"""DMVAE: private latents beside a product of experts, trained to do without any of the others.

Lee & Pavlovic, Private-Shared Disentangled Multimodal VAE for Learning of Latent Representations, CVPR workshops 2021
(https://arxiv.org/abs/2012.13024).
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


class DMVAE(MultimodalVAE):
    """A sum of ELBOs of all data, whose shared latent comes from all modalities, or from one alone.

    loss = sum over s in {joint, 1 ... M} of the mean over rows of
        [ -sum_d v_d log p(x_d | u_s, w_{s,d}) + beta ( KL(q_s(u) || p) + sum_d KL(q_d(w) || p) ) ],

    q_joint the product of the prior and all experts, q_m the expert of modality m alone (then the others are decoded
    across), u_s ~ q_s, w_{s,d} ~ q_d(w|x_d) drawn anew for every s, v_d the likelihood weights. Every summand is an
    ELBO of its own, so each has the private KL divergences; they are computed once and count once for each. (The
    authors' code can weigh the total correlation within each KL, as the minibatch estimates it. Its default weight is
    1, with which the KL is whole; no other is offered here.) Missing data (our rule): d counts where the row has
    modality d, s = m where it has m. A decoder sees all (M + 1) B latents in one call. ``elbo``, ``kl`` (with the
    private ones) and ``log_likelihood`` of the output are those of the joint posterior.

    Args:
        private_dim: P, dimensions of w_d: one number, or by modality; default: as many as ``latent_dim``. Encoders
            give, and decoders take, D + P. In the paper's MNIST and SVHN: 1 and 4, with D = 10.

    ``encode`` gives q_joint(u). See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        private_dim: int | Mapping[str, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            modalities, latent_dim, _private_dim=latent_dim if private_dim is None else private_dim, **options
        )

    def options(self) -> dict[str, Any]:
        return {**super().options(), "private_dim": self.private_option()}

    def make_fusion(self) -> nn.Module:
        return fusion.Product(prior=True)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        seed, mask = seed_tensor(seed, device=self.device), experts.mask
        mu, logvar = experts.stacked()
        joint = functional.poe_sample_kl(mu, logvar, mask, seed=seed)
        own = functional.reparameterize(abreast(mu), abreast(logvar), seed=branch(seed, 1))
        sources = [m for m, name in enumerate(self.modalities) if name in batch.data]
        own_z, own_kl = apart(own, len(self.modalities)).unbind(), functional.gaussian_kl(mu, logvar).unbind()
        u = torch.stack([joint.z, *(own_z[m] for m in sources)])  # [sets, B, D]
        counted = torch.stack([mask.any(1), *(mask[:, m] for m in sources)])  # [sets, B]

        def paid(kl: Tensor) -> Tensor:  # of every set its mean over the rows where it counts, then their sum
            return self.paid(torch.where(counted, kl, 0.0).sum(1) / max(batch.rows, 1)).sum()

        joint_kl, total_kl = mean(joint.kl), paid(torch.stack([joint.kl, *(own_kl[m] for m in sources)]))
        latents = dict.fromkeys(batch.data, u)
        for name in batch.data:
            if name in experts.private:
                q = self.sample_private(name, experts, seed, 1 + len(self.modalities))
                w = torch.stack([q.z[0], *(q.z[1 + m] for m in sources)])
                latents[name] = torch.cat([u, w], -1)
                joint_kl, total_kl = joint_kl + mean(q.kl), total_kl + paid(q.kl)
        ll = mean(torch.where(counted, self.scores(batch, latents), 0.0))  # [scored, sets]
        fit = self.weighted(batch, ll, lambda there: mean(torch.where(counted, there[:, None], 0.0)))
        return self.output(batch, beta * total_kl - fit.sum(), joint_kl, ll[:, 0])
