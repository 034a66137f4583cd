"""MVTCAE: multi-view total correlation auto-encoder.

Hwang, Kim, Hong & Kim, Multi-View Representation Learning via Total Correlation Objective, NeurIPS 2021
(https://openreview.net/forum?id=Q96hBs2LCJk).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE, mean, number
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.outputs import Output


class MVTCAE(MultimodalVAE):
    """A bound on the total correlation of the views explained by z, q = product of experts without a prior expert.

    loss = mean over rows of [ -(n - a) / n sum_m w_m log p(x_m | z)
                               + beta ( (1 - a) KL(q || p) + a / n sum_m KL(q || q_m) ) ],

    n the number of modalities the row has (M where data are complete; the rule for missing data is ours: the bound of
    the views that are there).

    Args:
        alpha: a in [0, 1], how much the conditional bottlenecks KL(q || q_m) weigh; 5/6 in the paper.
        beta: 2.5 in the paper.

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        alpha: float = 5 / 6,
        beta: float = 2.5,
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, beta=beta, **options)
        self.alpha = number("alpha", alpha)
        if self.alpha > 1:
            raise ValueError(f"alpha is {alpha}, expected 0 to 1")

    def options(self) -> dict[str, Any]:
        return {**super().options(), "alpha": self.alpha}

    def make_fusion(self) -> nn.Module:
        return fusion.Product(prior=False)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        q = functional.poe_sample_kl(experts.mu, experts.logvar, experts.mask, prior=False, expert_kl=True, seed=seed)
        assert q.expert_kl is not None
        count = experts.mask.sum(1).clamp(min=1).to(q.kl.dtype)
        share = (count - self.alpha) / count
        scores = self.scores(batch, q.z)
        kl, conditional = mean(q.kl), mean(q.expert_kl.sum(0) / count)
        fit = mean(share * self.weighted(batch, scores).sum(0))
        loss = beta * ((1 - self.alpha) * self.paid(kl) + self.alpha * conditional) - fit
        return self.output(batch, loss, kl, mean(scores))
