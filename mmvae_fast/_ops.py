"""Shape inference ("fakes") of the native ops, for ``torch.compile`` and ``torch.export``; registered at import.

Schemas and kernels stand in ``csrc/torch/``. Every op returns new contiguous tensors.
"""

from __future__ import annotations

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

    @torch.library.register_fake("mmvae_fast::reparameterize")
    def _(mu, logvar, seed, n_samples):
        _checks.gaussian("reparameterize", mu, logvar)
        return _sampled(mu, tuple(mu.shape), n_samples)

    @torch.library.register_fake("mmvae_fast::reparameterize_backward")
    def _(grad_z, z, mu, logvar, seed):
        return mu.new_empty(mu.shape), mu.new_empty(mu.shape)

    @torch.library.register_fake("mmvae_fast::gaussian_kl")
    def _(mu, logvar):
        _checks.gaussian("gaussian_kl", mu, logvar)
        return mu.new_empty(mu.shape[:-1])

    @torch.library.register_fake("mmvae_fast::gaussian_kl_backward")
    def _(grad_kl, mu, logvar):
        return mu.new_empty(mu.shape), mu.new_empty(mu.shape)

    @torch.library.register_fake("mmvae_fast::product_of_experts")
    def _(mu, logvar, mask, prior):
        _check_experts("product_of_experts", mu, logvar, mask)
        _, rows, dim = _rows(mu)
        return mu[0].new_empty(rows, dim), mu[0].new_empty(rows, dim)

    @torch.library.register_fake("mmvae_fast::product_of_experts_backward")
    def _(grad_mu, grad_logvar, mu, logvar, mask, joint_mu, joint_logvar):
        return [t.new_empty(t.shape) for t in (*mu, *mu)]

    @torch.library.register_fake("mmvae_fast::poe_sample_kl")
    def _(mu, logvar, mask, prior, n_samples, seed):
        _check_experts("poe_sample_kl", mu, logvar, mask)
        _, rows, dim = _rows(mu)
        first = mu[0]
        z = _sampled(first, (rows, dim), n_samples)
        return z, first.new_empty(rows, dim), first.new_empty(rows, dim), first.new_empty(rows)

    @torch.library.register_fake("mmvae_fast::poe_sample_kl_backward")
    def _(grad_z, grad_mu, grad_logvar, grad_kl, mu, logvar, mask, z, joint_mu, joint_logvar, seed):
        return [t.new_empty(t.shape) for t in (*mu, *mu)]

    @torch.library.register_fake("mmvae_fast::mopoe_sample_kl")
    def _(mu, logvar, mask, subsets, prior, seed):
        _check_experts("mopoe_sample_kl", mu, logvar, mask)
        _, rows, dim = _rows(mu)
        first = mu[0]
        return first.new_empty(rows, dim), first.new_empty(rows), first.new_empty(rows, dtype=torch.int64)

    @torch.library.register_fake("mmvae_fast::mopoe_sample_kl_backward")
    def _(grad_z, grad_kl, mu, logvar, mask, subsets, prior, z, subset, seed):
        return [t.new_empty(t.shape) for t in (*mu, *mu)]
