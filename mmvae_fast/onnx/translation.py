"""Our native ops in ONNX: each is its plain-PyTorch twin, of standard operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvae_fast import _checks, _ext, reference


def decompositions() -> dict[Any, Callable]:
    """Native op -> its plain-PyTorch twin, to export your own modules that call ``mmvae_fast.functional``.

    ``torch.export.export(module, args).run_decompositions(decompositions())`` leaves standard operators only, which
    ``torch.onnx.export`` then takes. Empty when the package was built without kernels: there is nothing to replace.
    """
    if not _ext.LOADED:
        return {}
    ops = torch.ops.mmvae_fast

    def experts(tensors: Sequence[Tensor]) -> Sequence[Tensor] | Tensor:
        return tensors[0] if len(tensors) == 1 and tensors[0].dim() == 3 else list(tensors)

    families, places = _checks.LIKELIHOODS, reference.PRIOR_PLACES

    def reparameterize(mu, logvar, seed, n_samples, family):
        return reference.reparameterize(mu, logvar, n_samples, family=families[family], seed=seed)

    def product_of_experts(mu, logvar, mask, prior, weights):
        return reference.product_of_experts(experts(mu), experts(logvar), mask, prior=prior, weights=weights)

    def poe_sample_kl(mu, logvar, mask, prior, n_samples, seed, expert_kl):
        *sample, to_experts = reference.poe_sample_kl(
            experts(mu), experts(logvar), mask, prior=prior, n_samples=n_samples, seed=seed, expert_kl=expert_kl
        )
        kl = sample[-1]
        return *sample, kl.new_empty(0, kl.shape[0]) if to_experts is None else to_experts

    def subset_posteriors(mu, logvar, mask, subsets, prior):
        return tuple(
            reference.subset_posteriors(experts(mu), experts(logvar), mask, subsets=subsets, prior=places[prior])
        )

    def mopoe_sample_kl(mu, logvar, mask, subsets, prior, seed):
        return tuple(
            reference.mopoe_sample_kl(
                experts(mu), experts(logvar), mask, subsets=subsets, prior=places[prior], seed=seed
            )
        )

    # The second output of the next two is for their backward alone: it stays unused in an exported graph.

    def mixture_log_prob(z, mu, scale, mask, family):
        log_prob = reference.mixture_log_prob(z, experts(mu), experts(scale), mask, family=families[family])
        return log_prob, log_prob.new_empty(0)

    def log_likelihood(x, params, scale, scale_value, family, event_dims, mask):
        learned = scale_value if scale is None else scale
        out = reference.log_likelihood(
            x, params, family=families[family], scale=learned, event_dims=event_dims, mask=mask
        )
        return out, out.new_empty(0)

    return {
        ops.reparameterize.default: reparameterize,
        ops.gaussian_kl.default: reference.gaussian_kl,
        ops.laplace_kl.default: reference.laplace_kl,
        ops.product_of_experts.default: product_of_experts,
        ops.poe_sample_kl.default: poe_sample_kl,
        ops.subset_posteriors.default: subset_posteriors,
        ops.mopoe_sample_kl.default: mopoe_sample_kl,
        ops.mixture_log_prob.default: mixture_log_prob,
        ops.log_likelihood.default: log_likelihood,
    }
