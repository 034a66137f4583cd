"""A deterministic multimodal autoencoder.

Hinton & Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, Science 2006; several modalities in
one code: Ngiam et al., Multimodal Deep Learning, ICML 2011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import MultimodalVAE, mean
from mmvae_fast.models.batch import Batch, Mask
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.outputs import Output, Posterior
from mmvae_fast.reference import seed_tensor

POINT = -100.0  # the least log-variance that the kernels take: a standard deviation of 2e-22


class Autoencoder(MultimodalVAE):
    """loss = mean over rows of [ -sum_m w_m log p(x_m | z) ], z the mean of the observed encoders' mu.

    No noise, no KL divergence, no prior. The verbs are a VAE's; ``encode`` gives a posterior that is a point (logvar
    -100), ``elbo`` of the output is the log-likelihood of the reconstruction, which bounds nothing, and ``kl`` is 0. A
    row with nothing observed has z = 0. What the default encoders say of their variance is not used.

    Args:
        modality_dropout: hides modalities from the encoder only; they still have to be decoded from the others, which
            is how the code becomes one for all of them (Ngiam et al. 2011, section 3.2).

    See :class:`MultimodalVAE` for the other arguments.

    Raises:
        TypeError: from ``sample(n)`` without ``prior=``, and from ``log_likelihood``: an autoencoder has neither a
            prior nor a density.
    """

    generative = False

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        likelihood_weights: str | Mapping[str, float] = "none",
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            modalities, latent_dim, likelihood_weights=likelihood_weights, modality_dropout=modality_dropout
        )

    def options(self) -> dict[str, Any]:
        options = super().options()
        return {name: options[name] for name in ("likelihood_weights", "modality_dropout")}

    def make_fusion(self) -> nn.Module:
        return MeanPoint()

    def forward(
        self,
        batch: Mapping[str, Tensor],
        mask: Mask = None,
        *,
        beta: float | Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Output:
        """As :meth:`MultimodalVAE.forward`; ``beta`` weighs nothing here."""
        checked = self._check(batch, mask)
        experts = self._experts(checked)
        if self.training and self.modality_dropout > 0:
            dropped = self._dropped(checked, seed_tensor(seed, device=self.device)).mask
            experts = Experts(experts.mu, experts.logvar, dropped)
        return self.objective(checked, experts, beta=0.0, seed=None)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        ll = mean(self.scores(batch, self.posterior(batch, experts).point))
        loss = -self.weighted(batch, ll, mean).sum()
        return self.output(batch, loss, torch.zeros_like(loss), ll)

    def sample(self, n: int | None = None, **options: Any) -> dict[str, Tensor]:
        if n is not None and options.get("prior") is None:
            raise TypeError("an Autoencoder has no prior to sample: pass z=, or prior= of models.samplers.fit_sampler")
        return super().sample(n, **options)

    def log_likelihood(self, *args: Any, **options: Any) -> Tensor:
        raise TypeError("an Autoencoder has no density log p(x); its reconstruction's is in the output of a call")


class MeanPoint(nn.Module):
    """The mean of the observed experts' mu, as a posterior without width; 0 where nothing is observed."""

    def forward(self, mus: Sequence[Tensor], logvars: Sequence[Tensor], mask: Tensor) -> Posterior:
        observed = mask.t().unsqueeze(-1)  # [M, B, 1]
        mu = torch.where(observed, torch.stack(list(mus)), 0.0).sum(0) / observed.sum(0).clamp(min=1)
        return Posterior(mu, torch.full_like(mu, POINT))
