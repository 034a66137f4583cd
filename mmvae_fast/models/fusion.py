"""Fusion rules: from the experts of a row to one posterior. A row without any expert gets the prior N(0, I).

Each is a module called with mus, logvars (M tensors [B, D] each) and mask (bool [B, M]).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.models.outputs import MixturePosterior, Posterior

Tensors = Sequence[Tensor]


class Product(nn.Module):
    """Product of experts; ``prior`` counts N(0, I) as one more. Wu & Goodman 2018."""

    def __init__(self, prior: bool = True) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, mus: Tensors, logvars: Tensors, mask: Tensor) -> Posterior:
        return Posterior(*functional.product_of_experts(list(mus), list(logvars), mask, prior=self.prior))


class WeightedProduct(nn.Module):
    """Generalised product of experts: precisions with learned weights, one for each expert and dimension.

    T = sum_m w_m / var_m, w_m in (0, 1): the sigmoid of a parameter that begins where w = 1 / M. No prior expert. An
    expert that is the only one has w = 1, not learned.

    Source: Cao & Fleet, Generalized Product of Experts, 2014; weights by dimension: Lawry Aguila et al., Multi-modal
    Variational Autoencoders for Normative Modelling across Multiple Imaging Modalities, 2023.
    """

    def __init__(self, count: int, latent_dim: int) -> None:
        super().__init__()
        start = torch.logit(torch.full((count, latent_dim), 1 / count))
        self.logits = nn.Parameter(start, requires_grad=count > 1)  # of one alone infinite

    @property
    def weights(self) -> Tensor:
        return self.logits.sigmoid()

    def forward(self, mus: Tensors, logvars: Tensors, mask: Tensor) -> Posterior:
        return Posterior(
            *functional.product_of_experts(list(mus), list(logvars), mask, prior=False, weights=self.weights)
        )


class FullProduct(nn.Module):
    """The product of everything observed, with the prior expert where all M modalities are: MoPoE's full subset."""

    def forward(self, mus: Tensors, logvars: Tensors, mask: Tensor) -> Posterior:
        # the prior expert of the full product: one more N(0, I), observed where everything else is
        mus, logvars = [*mus, torch.zeros_like(mus[0])], [*logvars, torch.zeros_like(mus[0])]
        mask = torch.cat([mask, mask.all(1, keepdim=True)], dim=1)
        return Posterior(*functional.product_of_experts(mus, logvars, mask, prior=False))


class Mixture(nn.Module):
    """Mixture of experts in equal parts. Shi et al. 2019."""

    def __init__(self, family: str = "normal") -> None:
        super().__init__()
        self.family = family

    def forward(self, mus: Tensors, logvars: Tensors, mask: Tensor) -> MixturePosterior:
        return MixturePosterior(mus, logvars, mask, self.family)


class MomentBarycentre(nn.Module):
    """The Gaussian with the mixture's mean and variance."""

    def forward(self, mus: Tensors, logvars: Tensors, mask: Tensor) -> Posterior:
        mixture = MixturePosterior(mus, logvars, mask)
        return Posterior(mixture.mu, mixture.logvar)


class WassersteinBarycentre(nn.Module):
    """The Gaussian closest to all experts in the 2-Wasserstein distance: means and standard deviations averaged.

    Source: Agueh & Carlier, Barycenters in the Wasserstein Space, 2011, section 6 (here with diagonal covariances).
    """

    def forward(self, mus: Tensors, logvars: Tensors, mask: Tensor) -> Posterior:
        observed = mask.t().unsqueeze(-1)  # [M, B, 1]
        count = observed.sum(0)
        mu, logvar = (torch.where(observed, torch.stack(list(t)), 0.0) for t in (mus, logvars))
        sd = torch.where(observed, torch.exp(0.5 * logvar), 0.0).sum(0) / count.clamp(min=1)
        sd = torch.where(count == 0, 1.0, sd)
        return Posterior(mu.sum(0) / count.clamp(min=1), 2 * sd.log())
