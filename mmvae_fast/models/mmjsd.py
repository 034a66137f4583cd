"""mmJSD: the multimodal Jensen-Shannon divergence.

Sutter, Daunhawer & Vogt, Multimodal Generative Learning Utilizing Jensen-Shannon-Divergence, NeurIPS 2020
(https://arxiv.org/abs/2006.08242).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.outputs import Output


class MMJSD(MultimodalVAE):
    """z from the mixture of the experts, which are held to each other and to p by a Jensen-Shannon divergence.

    loss = mean over rows of [ -sum_m w_m log p(x_m | z) + beta * JS ], z from one expert drawn uniformly for every row,

    JS = 1/(n + 1) [ KL(p || f) + sum_m KL(q_m || f) ],    f = (p prod_m q_m)^(1/(n + 1)), normalised:

    the dynamic prior f is the geometric mean of everything JS compares, and it learns. m runs over the n modalities
    that the row has; that a row's divergence is of these alone is our rule for missing data. ``kl`` of the output is
    JS, and ``encode`` gives the mixture, a :class:`MixturePosterior`. The authors train with beta = 2.5 or 5 and with
    likelihoods weighted by dimension.

    See :class:`MultimodalVAE` for the arguments.
    """

    def make_fusion(self) -> nn.Module:
        return fusion.Mixture()

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        singles = [1 << m for m in range(len(self.modalities))]
        z = functional.mopoe_sample_kl(
            experts.mu, experts.logvar, experts.mask, subsets=singles, prior="none", seed=seed
        ).z
        return self.elbo(batch, z, self._divergence(experts), beta)

    def _divergence(self, experts: Experts) -> Tensor:
        """JS of every row, [B]."""
        count = experts.mask.sum(1) + 1
        f_mu, f_logvar = functional.product_of_experts(experts.mu, experts.logvar, experts.mask, prior=True)
        f_logvar = f_logvar + count[:, None].to(f_logvar.dtype).log()  # the mean, not the sum, of the precisions
        observed = experts.mask.t()[..., None]
        mu, logvar = (torch.where(observed, torch.stack(t), 0.0) for t in (experts.mu, experts.logvar))
        to_f = torch.where(observed[..., 0], functional.gaussian_kl(mu, logvar, f_mu, f_logvar), 0.0)  # [M, B]
        prior = torch.zeros_like(f_mu)
        return (to_f.sum(0) + functional.gaussian_kl(prior, prior, f_mu, f_logvar)) / count
