"""Importance-weighted bounds and their gradient estimators, for log weights lw_k = log p(x, z_k) - log q(z_k)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ESTIMATORS = ("dreg", "iwae", "stl")
CONSTANT_Q = ("dreg", "stl")  # those for whose log weights log q has to have constant parameters
NEGLIGIBLE = 1e-30  # weights below are exact zeros: subnormal gradients slow every decoder they pass through


def iwae(log_weights: Tensor, counted: Tensor | None = None) -> Tensor:
    """log (1/K) sum_k e^lw_k over the first dimension: [K, ...] -> [...].

    ``counted`` bool [K, ...]: the others are no samples, and K is how many are; 0 where none is.

    Source: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016, equation 8.
    """
    if counted is None:
        return log_weights.logsumexp(0) - math.log(log_weights.shape[0])
    some = counted.any(0)
    counted = counted | ~some  # the sum over nothing is -inf, and its gradient NaN
    total = torch.where(counted, log_weights, -torch.inf).logsumexp(0)
    return torch.where(some, total - counted.sum(0).to(total.dtype).log(), 0.0)


def normalized(log_weights: Tensor, counted: Tensor | None = None) -> Tensor:
    """e^lw_k over their sum over the first dimension, as constants: [K, ...]; 0 where not ``counted``."""
    logits = log_weights.detach()
    if counted is not None:
        logits = torch.where(counted | ~counted.any(0), logits, -torch.inf)
    w = torch.softmax(logits, 0)
    w = torch.where(w < NEGLIGIBLE, 0.0, w)
    return w if counted is None else torch.where(counted, w, 0.0)


def weigh_gradient(z: Tensor, weights: Tensor, beta: float | Tensor = 1.0) -> None:
    """From here on the gradient that z [..., D] receives is multiplied by 1 - beta + beta w, w = weights [...]."""
    if z.requires_grad:
        factor = (1 - beta + beta * weights).unsqueeze(-1)
        z.register_hook(lambda gradient: gradient * factor.to(gradient.dtype))


def dreg(log_weights: Tensor, z: Tensor, counted: Tensor | None = None, beta: float | Tensor = 1.0) -> Tensor:
    """The doubly reparameterised surrogate of :func:`iwae`: [K, ...] -> [...], sum_k w_k lw_k with constant w_k.

    Its value is not the bound's; its gradient is, in expectation, with less noise near beta = 1: w_k for the decoders,
    (1 - beta) w_k + beta w_k^2 for the encoders, where log q in the log weights has to have constant parameters. For
    that a hook multiplies the gradient that z [K, ..., D] receives by 1 - beta + beta w_k.

    ``beta`` is the factor of log q in lw_k = log p(x|z_k) + beta (log p(z_k) - log q(z_k)). What constant parameters
    leave out is -beta sum_k w_k d log q(z_k), where E[w_k d log q(z_k)] = E[(w_k - w_k^2) dlw_k/dz_k dz_k]; with
    beta = 1 what remains of the encoders' w_k dlw_k/dz_k is the paper's w_k^2.

    That holds where z is a draw of the q in its log weight. Of a mixture of experts, z is a draw of one of them while q
    is the mixture: with K > 1 the gradient is then biased, an approximation that the authors of MMVAE make, too. "iwae"
    is unbiased.

    Source: Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019, equation 8.
    """
    w = normalized(log_weights, counted)
    weigh_gradient(z, w, beta)
    return (w * log_weights).sum(0)


def stl(log_weights: Tensor, counted: Tensor | None = None) -> Tensor:
    """The bound of :func:`iwae` with the gradient of "sticking the landing": [K, ...] -> [...].

    Where log q in the log weights has constant parameters, the gradient is sum_k w_k grad lw_k without the score
    function of q. For one sample, K = 1, that is the ELBO's, without bias, and without any variance in the encoder's
    parameters once q is the posterior. For more it is biased in them (what is left out has no mean of 0 under the
    weights); :func:`dreg` is not. The decoder's is that of :func:`iwae` in any case.

    Source: Roeder, Wu & Duvenaud, Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
    Inference, 2017 (https://arxiv.org/abs/1703.09194); its bias for K > 1: Tucker et al. 2019.
    """
    return iwae(log_weights, counted)


def estimate(
    estimator: str, log_weights: Tensor, z: Tensor, beta: float | Tensor, counted: Tensor | None = None
) -> Tensor:
    """The bound of log weights [K, ...] of samples z [K, ..., D], or what has its gradient, by name: [...]."""
    if estimator == "dreg":
        return dreg(log_weights, z, counted, beta)
    return stl(log_weights, counted) if estimator == "stl" else iwae(log_weights, counted)
