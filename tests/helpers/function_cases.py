"""The fused functions behind one face: inputs in, the outputs that carry gradients out."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from expert_cases import Experts
from torch import Tensor

SEED = 0x1234_5678_9ABC_DEF0

# name -> f(module, experts) -> differentiable outputs; module is functional or reference
FUNCTIONS: dict[str, Callable[[ModuleType, Experts], tuple[Tensor, ...]]] = {
    "product_of_experts": lambda f, x: f.product_of_experts(x.mu, x.logvar, x.mask),
    "product_of_experts, no prior": lambda f, x: f.product_of_experts(x.mu, x.logvar, x.mask, prior=False),
    "poe_sample_kl": lambda f, x: f.poe_sample_kl(x.mu, x.logvar, x.mask, seed=SEED)[:4],
    "poe_sample_kl, no prior": lambda f, x: f.poe_sample_kl(x.mu, x.logvar, x.mask, prior=False, seed=SEED)[:4],
    "poe_sample_kl, 3 samples": lambda f, x: f.poe_sample_kl(x.mu, x.logvar, x.mask, n_samples=3, seed=SEED)[:4],
    "mopoe_sample_kl": lambda f, x: f.mopoe_sample_kl(x.mu, x.logvar, x.mask, seed=SEED)[:2],
    "mopoe_sample_kl, prior in all": lambda f, x: f.mopoe_sample_kl(x.mu, x.logvar, x.mask, prior="all", seed=SEED)[:2],
    "mopoe_sample_kl, prior in none": lambda f, x: f.mopoe_sample_kl(x.mu, x.logvar, x.mask, prior="none", seed=SEED)[
        :2
    ],
}


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor], seed: int = 1) -> list[Tensor]:
    """Gradients of a random linear form of the outputs: every output's every element counts."""
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for out in outputs:
        weight = torch.randn(out.shape, generator=g, dtype=torch.float64)
        total = total + (out.double() * weight).sum()
    return list(torch.autograd.grad(total, inputs))
