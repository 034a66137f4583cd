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
        mu, logvar, mask = self._compared(experts)
        singles = [1 << m for m in range(1, mask.shape[1])]
        z = functional.mopoe_sample_kl(mu, logvar, mask, subsets=singles, prior="none", seed=seed).z
        return self.elbo(batch, z, self._divergence(mu, logvar, mask), beta)

    def _compared(self, experts: Experts) -> tuple[Tensor, Tensor, Tensor]:
        """What JS compares, mu and logvar [1 + M, B, D] and mask [B, 1 + M]: the prior, which every row has, and the
        experts."""
        prior, always = torch.zeros_like(experts.mu[0]), torch.ones_like(experts.mask[:, :1])
        mask = torch.cat([always, experts.mask], 1)
        return *Experts([prior, *experts.mu], [prior, *experts.logvar], mask).stacked(), mask

    def _divergence(self, mu: Tensor, logvar: Tensor, mask: Tensor) -> Tensor:
        """JS of every row, [B]."""
        f_mu, f_logvar = functional.product_of_experts(mu, logvar, mask, prior=False)
        count = mask.sum(1)
        f_logvar = f_logvar + count[:, None].to(f_logvar.dtype).log()  # the mean, not the sum, of the precisions
        to_f = torch.where(mask.t(), functional.gaussian_kl(mu, logvar, f_mu, f_logvar), 0.0)  # [1 + M, B]
        return to_f.sum(0) / count
