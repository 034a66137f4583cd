"""Shape inference ("fakes") of the native ops, for ``torch.compile`` and ``torch.export``; registered at import.

Schemas and kernels stand in ``csrc/torch/``. Every op returns new contiguous tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmvae_fast import _checks, _ext

ops = torch.ops.mmvae_fast

if _ext.LOADED:

    def _rows(experts: list[Tensor]) -> tuple[int, int, int]:
        """M, B, D of a list of [B, D] or of one stacked [M, B, D]."""
        first = experts[0]
        return (first.shape[0], first.shape[1], first.shape[2]) if first.dim() == 3 else (len(experts), *first.shape)

    def _check_experts(fn: str, mu: list[Tensor], logvar: list[Tensor], mask: Tensor | None) -> None:
        stacked = len(mu) == 1 and mu[0].dim() == 3
        _checks.experts(fn, mu[0] if stacked else mu, logvar[0] if stacked else logvar, mask)

    def _sampled(mu: Tensor, shape: tuple[int, ...], n_samples: int | None) -> Tensor:
        return mu.new_empty(shape if n_samples is None else (n_samples, *shape))

    def _real(t: Tensor) -> torch.dtype:
        """The type of KLs and log-probabilities."""
        return torch.float32 if t.dtype in _checks.HALVES else t.dtype

    def _like_experts(mu: list[Tensor]) -> list[Tensor]:
        return [t.new_empty(t.shape) for t in (*mu, *mu)]

    @torch.library.register_fake("mmvae_fast::reparameterize")
    def _(mu, logvar, seed, n_samples, family):
        _checks.gaussian("reparameterize", mu, logvar)
        return _sampled(mu, tuple(mu.shape), n_samples)

    @torch.library.register_fake("mmvae_fast::reparameterize_backward")
    def _(grad_z, z, mu, logvar, seed, family):
        return mu.new_empty(mu.shape), mu.new_empty(mu.shape)

    def _divergence(fn: str) -> None:
        @torch.library.register_fake(f"mmvae_fast::{fn}")
        def _(mu, logvar, prior_mu, prior_logvar):
            _checks.gaussian(fn, mu, logvar)
            return mu.new_empty(mu.shape[:-1], dtype=_real(mu))

        @torch.library.register_fake(f"mmvae_fast::{fn}_backward")
        def _(grad_kl, mu, logvar, prior_mu, prior_logvar, prior_grads):
            priors = [p for p in (prior_mu, prior_logvar) if p is not None] if prior_grads else []
            return [mu.new_empty(mu.shape) for _ in (mu, logvar, *priors)]

    _divergence("gaussian_kl")
    _divergence("laplace_kl")

    @torch.library.register_fake("mmvae_fast::product_of_experts")
    def _(mu, logvar, mask, prior, weights):
        _check_experts("product_of_experts", mu, logvar, mask)
        _, rows, dim = _rows(mu)
        return mu[0].new_empty(rows, dim), mu[0].new_empty(rows, dim)

    @torch.library.register_fake("mmvae_fast::product_of_experts_backward")
    def _(grad_mu, grad_logvar, mu, logvar, mask, prior, weights, joint_mu, joint_logvar, weights_grad):
        return _like_experts(mu) + ([weights.new_empty(weights.shape)] if weights_grad else [])

    @torch.library.register_fake("mmvae_fast::poe_sample_kl")
    def _(mu, logvar, mask, prior, n_samples, seed, expert_kl):
        _check_experts("poe_sample_kl", mu, logvar, mask)
        count, rows, dim = _rows(mu)
        first, real = mu[0], _real(mu[0])
        z = _sampled(first, (rows, dim), n_samples)
        joint_mu, joint_logvar = first.new_empty(rows, dim), first.new_empty(rows, dim)
        to_experts = first.new_empty(count if expert_kl else 0, rows, dtype=real)
        return z, joint_mu, joint_logvar, first.new_empty(rows, dtype=real), to_experts

    @torch.library.register_fake("mmvae_fast::poe_sample_kl_backward")
    def _(grad_z, grad_mu, grad_logvar, grad_kl, grad_expert_kl, mu, logvar, mask, prior, z, joint_mu, joint_logvar, s):
        return _like_experts(mu)

    @torch.library.register_fake("mmvae_fast::subset_posteriors")
    def _(mu, logvar, mask, subsets, prior):
        _check_experts("subset_posteriors", mu, logvar, mask)
        count, rows, dim = _rows(mu)
        listed = 2**count - 1 if subsets is None else len(subsets)
        first = mu[0]
        joint_mu, joint_logvar = first.new_empty(listed, rows, dim), first.new_empty(listed, rows, dim)
        kl = first.new_empty(listed, rows, dtype=_real(first))
        return joint_mu, joint_logvar, kl, first.new_empty(listed, rows, dtype=torch.bool)

    @torch.library.register_fake("mmvae_fast::subset_posteriors_backward")
    def _(grad_mu, grad_logvar, grad_kl, mu, logvar, mask, subsets, prior):
        return _like_experts(mu)

    @torch.library.register_fake("mmvae_fast::mopoe_sample_kl")
    def _(mu, logvar, mask, subsets, prior, seed):
        _check_experts("mopoe_sample_kl", mu, logvar, mask)
        _, rows, dim = _rows(mu)
        first = mu[0]
        kl, subset = first.new_empty(rows, dtype=_real(first)), first.new_empty(rows, dtype=torch.int64)
        return first.new_empty(rows, dim), kl, subset

    @torch.library.register_fake("mmvae_fast::mopoe_sample_kl_backward")
    def _(grad_z, grad_kl, mu, logvar, mask, subsets, prior, z, subset, seed):
        return _like_experts(mu)

    @torch.library.register_fake("mmvae_fast::mixture_log_prob")
    def _(z, mu, scale, mask, family):
        stacked = len(mu) == 1 and mu[0].dim() == 3
        experts = (mu[0], scale[0]) if stacked else (mu, scale)
        _checks.mixture("mixture_log_prob", z, *experts, mask, _checks.LIKELIHOODS[family])
        by_expert = (*z.shape[:-1], _rows(mu)[0])
        return z.new_empty(z.shape[:-1], dtype=_real(z)), z.new_empty(by_expert, dtype=_real(z))

    @torch.library.register_fake("mmvae_fast::mixture_log_prob_backward")
    def _(grad, z, mu, scale, mask, family, densities, z_grad, expert_grads):
        return [z.new_empty(z.shape if z_grad else (0,)), *(_like_experts(mu) if expert_grads else [])]

    @torch.library.register_fake("mmvae_fast::log_likelihood")
    def _(x, params, scale, scale_value, family, event_dims, mask):
        categorical = _checks.LIKELIHOODS[family] == "categorical"
        elements = params.shape[:-1] if categorical else params.shape
        out = params.new_empty(elements[: len(elements) - event_dims], dtype=_real(params))
        rows = math.prod(x.shape[: x.dim() - event_dims])
        samples = math.prod(elements[: len(elements) - x.dim()])
        event = math.prod(x.shape[x.dim() - event_dims :])
        return out, params.new_empty((samples, rows, event) if categorical else (0,), dtype=_real(params))

    @torch.library.register_fake("mmvae_fast::log_likelihood_backward")
    def _(grad, x, params, scale, scale_value, family, event_dims, mask, log_p, params_grad, scale_grad):
        of_params = params.new_empty(params.shape if params_grad else (0,))
        of_scale = params.new_empty(scale.shape if scale_grad and scale is not None else (0,), dtype=_real(params))
        return of_params, of_scale
