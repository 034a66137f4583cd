"""Priors p(z) of the shared latent. Each knows log_prob(z) and sample(n, seed)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.reference import philox_uniform


class StandardNormal(nn.Module):
    """N(0, I) in ``dim`` dimensions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def log_prob(self, z: Tensor) -> Tensor:
        """z [..., D] -> [...], nats."""
        return -0.5 * (z.square().sum(-1) + self.dim * math.log(2 * math.pi))

    def sample(self, n: int, seed: Tensor) -> Tensor:
        """[n, D], float32; a row's draw depends on seed and row alone."""
        zero = torch.zeros(n, self.dim, device=seed.device)
        return functional.reparameterize(zero, zero, seed=seed)


class LearnedScale(nn.Module):
    """A normal or Laplace distribution with mean 0 and learned scales, 1 at first.

    scale_d = D * softmax(parameter)_d, which keeps their mean at 1: the prior of MMVAE's authors. Not ``learned``, they
    stay 1.
    """

    logits: Tensor

    def __init__(self, dim: int, family: str = "laplace", learned: bool = True) -> None:
        super().__init__()
        self.dim, self.family = dim, family
        if learned:
            self.logits = nn.Parameter(torch.zeros(dim))
        else:
            self.register_buffer("logits", torch.zeros(dim))

    @property
    def scale(self) -> Tensor:
        return self.dim * torch.softmax(self.logits, -1)

    def log_prob(self, z: Tensor) -> Tensor:
        """z [..., D] -> [...], nats."""
        dtype = torch.promote_types(z.dtype, self.logits.dtype)
        rows = z.to(dtype).reshape(-1, 1, self.dim)  # of one row each: the scales are the same for all
        scale = self.scale.to(dtype)[None]
        log_p = functional.mixture_log_prob(rows, [torch.zeros_like(scale)], [scale], family=self.family)
        return log_p.reshape(z.shape[:-1])

    @property
    def mean(self) -> Tensor:
        """[D]."""
        return torch.zeros_like(self.logits)

    point = mean

    @property
    def variance(self) -> Tensor:
        """[D]."""
        return (1.0 if self.family == "normal" else 2.0) * self.scale.square()

    def sample(self, n: int, seed: Tensor, n_samples: int | None = None) -> Tensor:
        """[n, D], or [n_samples, n, D], float32; a row's draw depends on seed and row alone."""
        logvar = 2 * self.scale.detach().float().log().expand(n, -1)
        return functional.reparameterize(torch.zeros_like(logvar), logvar, n_samples, family=self.family, seed=seed)


class Clusters(nn.Module):
    """A mixture of ``count`` normal or Laplace distributions with learned weights and means: p(z) = sum_c pi_c p(z|c).

    Means start uniform in [-1, 1]; scales are 1, as in CMVAE's code, or ``learned`` from there.

    Source: Palumbo, Manduchi, Laguna, Chopard & Vogt, Deep Generative Clustering with Multimodal Diffusion Variational
    Autoencoders, 2024.
    """

    log_scale: Tensor

    def __init__(self, count: int, dim: int, family: str = "laplace", learned_scale: bool = False) -> None:
        super().__init__()
        self.dim, self.family = dim, family
        self.logits = nn.Parameter(torch.zeros(count))
        self.mu = nn.Parameter(torch.empty(count, dim).uniform_(-1, 1))
        if learned_scale:
            self.log_scale = nn.Parameter(torch.zeros(count, dim))
        else:
            self.register_buffer("log_scale", torch.zeros(count, dim))

    def only(self, places: Tensor) -> Clusters:
        """A copy with some of the clusters, [C'] their places; the weights keep their proportions."""
        kept = copy.deepcopy(self)
        for name, p in self.named_parameters():
            setattr(kept, name, nn.Parameter(p.detach()[places].clone(), p.requires_grad))
        for name, b in self.named_buffers():
            setattr(kept, name, b[places].clone())
        return kept

    @property
    def weights(self) -> Tensor:
        """pi, [C]."""
        return torch.softmax(self.logits, -1)

    def joint_log_prob(self, z: Tensor) -> Tensor:
        """log pi_c + log p(z | c), z [..., D] -> [..., C], nats."""
        z = z.unsqueeze(-2).expand(*z.shape[:-1], *self.mu.shape)  # the clusters are the rows of one kernel
        density = functional.mixture_log_prob(z, [self.mu], [self.log_scale.exp()], family=self.family)
        return density + torch.log_softmax(self.logits, -1)

    def log_prob(self, z: Tensor) -> Tensor:
        """z [..., D] -> [...], nats."""
        return self.joint_log_prob(z).logsumexp(-1)

    def probabilities(self, z: Tensor) -> Tensor:
        """p(c | z), z [..., D] -> [..., C]."""
        return torch.softmax(self.joint_log_prob(z), -1)

    @property
    def point(self) -> Tensor:
        """The likeliest cluster's mean, [D]."""
        return self.mu.index_select(0, self.logits.argmax(-1, keepdim=True))[0]

    @property
    def mean(self) -> Tensor:
        """[D]."""
        return self.weights @ self.mu

    @property
    def variance(self) -> Tensor:
        """[D]."""
        unit = 1.0 if self.family == "normal" else 2.0
        spread = unit * (2 * self.log_scale).exp() + (self.mu - self.mean).square()
        return self.weights @ spread

    def sample(self, n: int, seed: Tensor, n_samples: int | None = None) -> Tensor:
        """[n, D], or [n_samples, n, D], float32; a row's draw depends on seed and row alone."""
        u = philox_uniform(seed, n, n_samples or 1, stream=1, device=seed.device).t().contiguous()  # [K, n]
        ends = self.weights.detach().float().cumsum(-1)
        chosen = torch.searchsorted(ends, u).clamp(max=len(ends) - 1)
        zero = torch.zeros(n, self.dim, device=seed.device)
        eps = functional.reparameterize(zero, zero, n_samples or 1, family=self.family, seed=seed)
        z = self.mu.detach().float()[chosen] + self.log_scale.detach().float().exp()[chosen] * eps
        return z if n_samples is not None else z[0]
