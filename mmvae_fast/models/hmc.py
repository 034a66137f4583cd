"""Hamiltonian Monte Carlo at a fixed cost, for a batch of independent chains."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmvae_fast import functional
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_uniform

_TARGET, _RATE = 0.8, 0.5  # the acceptance that a chain's step size is adapted to, and how fast


def hmc(
    log_density: Callable[[Tensor], Tensor], z: Tensor, scale: Tensor, *, steps: int, leapfrogs: int, seed: Tensor
) -> Tensor:
    """The last state of chains [K, B, D] that begin in ``z``; no gradient, no wait for the device.

    Args:
        log_density: z [K, B, D] -> [K, B], up to a constant.
        scale: [B, D], about the standard deviations of the density: what steps are measured in.
        steps: each draws a momentum, takes ``leapfrogs`` steps with it and accepts or rejects where they lead to. In
            the first half of them every chain adapts its own step size.
        seed: a row's noise depends on it and on the row alone.

    Source: Neal, MCMC Using Hamiltonian Dynamics, 2011, section 5.2; step sizes as in Andrieu & Thoms, A Tutorial on
    Adaptive MCMC, 2008, section 4.2.2, frozen after half of the steps.
    """
    samples, rows, dim = z.shape
    z = z.detach()
    scale, zero = scale.detach().to(z.dtype), z.new_zeros(rows, dim)
    # the product of step size and leapfrogs that turns a Gaussian by a quarter, as far as accuracy in D dimensions goes
    log_step = z.new_full((samples, rows, 1), math.log(min(math.pi / 2 / leapfrogs, dim**-0.25)))
    value, slope = _value_and_slope(log_density, z)
    for i in range(steps):
        momentum = start = functional.reparameterize(zero, zero, samples, seed=branch(seed, 2 * i + 1))
        new, new_value, new_slope = z, value, slope
        step = torch.exp(log_step)
        for _ in range(leapfrogs):
            momentum = momentum + 0.5 * step * scale * new_slope
            new = new + step * scale * momentum
            new_value, new_slope = _value_and_slope(log_density, new)
            momentum = momentum + 0.5 * step * scale * new_slope
        gain = new_value - value + 0.5 * (start.square() - momentum.square()).sum(-1)
        chance = torch.exp(gain.clamp(max=0)).nan_to_num(0.0)
        u = philox_uniform(branch(seed, 2 * i + 2), rows, samples, device=z.device).t()
        accepted = u < chance
        value = torch.where(accepted, new_value, value)
        z, slope = (torch.where(accepted[..., None], a, b) for a, b in ((new, z), (new_slope, slope)))
        if i < steps // 2:
            log_step = log_step + _RATE / math.sqrt(i + 1) * (chance[..., None] - _TARGET)
    return z


def _value_and_slope(log_density: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():  # the one of the two that can be traced; eager, it takes twice as long
        value, pull_back = torch.func.vjp(log_density, z.detach())[:2]
        (slope,) = pull_back(torch.ones_like(value))
        return value.detach(), slope.detach()
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_density(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope
