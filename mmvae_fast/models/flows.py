"""Autoregressive flows: MAF (fast densities) and IAF (fast samples), as priors or to bend a Gaussian posterior.

Germain, Gregor, Murray & Larochelle, MADE: Masked Autoencoder for Distribution Estimation, ICML 2015
(https://arxiv.org/abs/1502.03509); Papamakarios, Pavlakou & Murray, Masked Autoregressive Flow for Density Estimation,
NeurIPS 2017 (https://arxiv.org/abs/1705.07057); Kingma et al., Improving Variational Inference with Inverse
Autoregressive Flow, NeurIPS 2016 (https://arxiv.org/abs/1606.04934).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.models.outputs import Posterior
from mmvae_fast.models.priors import StandardNormal

_BOUND = 5.0  # of a layer's log scales: an early step may not blow up what a row is worth


class MaskedLinear(nn.Linear):
    """A linear layer that connects an input to an output of at least its degree (``strict``: of a greater one)."""

    mask: Tensor

    def __init__(self, inputs: Tensor, outputs: Tensor, *, strict: bool = False) -> None:
        super().__init__(len(inputs), len(outputs))
        mask = outputs[:, None] > inputs if strict else outputs[:, None] >= inputs
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, torch.where(self.mask, self.weight, 0.0), self.bias)


class MADE(nn.Module):
    """x [..., D] -> shift and log scale, each [..., D], of which the d-th look at the first d - 1 numbers only."""

    def __init__(self, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        degrees = [torch.arange(1, dim + 1)]
        degrees += [torch.arange(size) % max(1, dim - 1) + 1 for size in hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(degrees):
            layers += [MaskedLinear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, MaskedLinear(degrees[-1], degrees[0].repeat(2), strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.layers(x).chunk(2, -1)
        return shift, _BOUND * torch.tanh(log_scale / _BOUND)


class Flow(nn.Module, ABC):
    """A density on [..., D]: an invertible map from its points z to points u of a Gaussian, layer by layer.

    Every layer is z_d = u_d exp(s_d) + t_d, where a :class:`MADE` gives t and s; layers see the dimensions in turn from
    first to last and from last to first.

    Args:
        dim: D.
        layers: how many.
        hidden: sizes of the hidden layers of each MADE.
    """

    def __init__(self, dim: int, layers: int = 2, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList(MADE(dim, hidden) for _ in range(layers))

    @abstractmethod
    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """u [..., D], and log |det du/dz| [...]."""

    @abstractmethod
    def from_base(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., D], and log |det dz/du| [...]."""

    def log_prob(self, z: Tensor, base: Posterior | None = None) -> Tensor:
        """log density in nats, z [..., D] -> [...].

        ``base``: u's Gaussian, [B, D] for z [..., B, D]; None is N(0, I).
        """
        u, log_det = self.to_base(z)
        if base is not None:
            return base.log_prob(u) + log_det
        return StandardNormal(self.dim).log_prob(u) + log_det

    def sample(self, n: int, seed: int | Tensor | None = None) -> Tensor:
        """[n, D] with u ~ N(0, I); a row's draw depends on seed and row alone."""
        zero = next(self.parameters()).new_zeros(n, self.dim)
        return self.from_base(functional.reparameterize(zero, zero, seed=seed))[0]

    def _gaussianize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x - t(x)) / e^s(x) by every layer: all dimensions at once."""
        log_det = x.new_zeros(x.shape[:-1])
        for made in self.layers:
            shift, log_scale = made(x)
            x = ((x - shift) * torch.exp(-log_scale)).flip(-1)
            log_det = log_det - log_scale.sum(-1)
        return x, log_det

    def _degaussianize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Its inverse: one dimension after the other, D passes through every MADE."""
        log_det = x.new_zeros(x.shape[:-1])
        place = torch.arange(self.dim, device=x.device)
        for made in reversed(self.layers):
            x, out = x.flip(-1), torch.zeros_like(x)
            for d in range(self.dim):
                shift, log_scale = made(out)
                here = place == d
                out = torch.where(here, x * torch.exp(log_scale) + shift, out)
                log_det = log_det + torch.where(here, log_scale, 0.0).sum(-1)
            x = out
        return x, log_det


class MAF(Flow):
    """Density of a point in one pass, samples in D."""

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._gaussianize(z)

    def from_base(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._degaussianize(u)


class IAF(Flow):
    """Samples in one pass, density of a point in D."""

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._degaussianize(z)

    def from_base(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._gaussianize(u)
