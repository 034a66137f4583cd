"""The public functions: fused sampling, KL and products of experts, as drop-ins for PyTorch code.

Rules all of them keep (DESIGN: "The functions"):

- *Experts* are a list of M tensors [B, D], as encoders return them, or one stacked [M, B, D]. Only the last dimension
  needs to be contiguous: ``mu, logvar = h.chunk(2, -1)`` costs no copy. ``mask`` is bool [B, M], True = observed.
- *Missing means untouched*: whatever a masked-out expert holds (NaN, inf) is never read into a result, and its
  gradient is exactly 0. A row with nothing observed gets the prior: mu 0, logvar 0, kl 0.
- *Stable*: logvar in [-100, 100] and +inf ("uninformative") are fine; NaN in an observed expert comes out as NaN.
- *Noise* depends on (seed, row, sample, dimension) alone, so it is the same for any batch size, thread count and
  backend (see :func:`mmvae_fast.reference.philox_normal`). ``seed=None`` draws a seed from torch's generator.
- *Errors* are ValueError or TypeError naming function, argument, what came and what was expected.
- First-order gradients; double backward and forward-mode AD raise. Inside ``torch.func`` transforms, for float16 and
  bfloat16, and on devices without a kernel, the plain-PyTorch twin of :mod:`mmvae_fast.reference` runs instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from mmvae_fast import _checks, _ext, reference
from mmvae_fast._ops import ops
from mmvae_fast.reference import PRIOR_PLACES, Experts, MoPoESample, PoESample, seed_tensor

__all__ = [
    "MoPoESample",
    "PoESample",
    "gaussian_kl",
    "log_likelihood",
    "mopoe_sample_kl",
    "poe_sample_kl",
    "product_of_experts",
    "reparameterize",
]


def _has_kernel(x: Any) -> bool:
    """Whether the native ops take this tensor; if not (or if it is no tensor at all) the twin serves, or complains."""
    return (
        _ext.LOADED
        and isinstance(x, Tensor)
        and x.device.type in ("cpu", "meta")
        and x.dtype in (torch.float32, torch.float64)
        and not torch._C._are_functorch_transforms_active()
        # an exported op has no autograd: a module exported for training gets the twin, which is differentiable
        and not (torch.compiler.is_exporting() and torch.is_grad_enabled())
    )


def _first(experts: Any) -> Any:
    if isinstance(experts, Tensor) or not isinstance(experts, Sequence) or not experts:
        return experts
    return experts[0]


def _records(fn: str, tensors: Sequence[Tensor]) -> bool:
    """Whether autograd has to know of this call. If not, the raw op serves, which would drop tangents silently."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(f"mmvae_fast.{fn}: forward-mode AD is not supported; use mmvae_fast.reference.{fn}")
    return False


def _distinct(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """torch.compile refuses an autograd.Function that gets one tensor twice (experts may share a logvar)."""
    if not torch.compiler.is_compiling() or len({id(t) for t in tensors}) == len(tensors):
        return tensors
    seen: set[int] = set()
    views = []
    for t in tensors:
        views.append(t.view_as(t) if id(t) in seen else t)
        seen.add(id(t))
    return views


# Experts reach autograd one tensor each (it does not look into lists) and reach the op as lists; a stacked tensor is a
# list of one.


def _as_lists(fn: str, mu: Experts, logvar: Experts, mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """What the ops take; kinds of things they could not even receive are refused here, the rest by the ops."""
    mus: list[Any]
    logvars: list[Any]
    if isinstance(mu, Tensor):
        mus, logvars, rank = [mu], [logvar], 3
    else:
        mus, logvars, rank = list(mu), list(logvar) if isinstance(logvar, Sequence) else [], 2
    device = mus[0].device
    received = mus + logvars if mask is None else [*mus, *logvars, mask]
    alike = all(isinstance(t, Tensor) and t.device == device for t in received)
    if alike and len(mus) == len(logvars) and mus[0].dim() == rank:
        return mus, logvars
    _checks.experts(fn, mu, logvar, mask)
    raise AssertionError("unreachable: the check above raises")


class _FirstOrderOnly(Function):
    """Stands behind gradients computed under ``create_graph``: they can be used, but not differentiated again.

    Without it a double backward would silently miss our part (torch's ``once_differentiable`` only looks at the
    incoming gradients, which rarely require grad themselves).
    """

    @staticmethod
    def forward(ctx, count, *grads_and_inputs):
        return tuple(g.view_as(g) for g in grads_and_inputs[:count])

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "mmvae_fast kernels have no double backward; use the same function of mmvae_fast.reference for that part"
        )


def _first_order(grads: Sequence[Tensor], *inputs: Tensor) -> Sequence[Tensor]:
    return _FirstOrderOnly.apply(len(grads), *grads, *inputs) if torch.is_grad_enabled() else grads


class _Reparameterize(Function):
    @staticmethod
    def forward(ctx, mu, logvar, seed, n_samples):
        z = ops.reparameterize(mu, logvar, seed, n_samples)
        ctx.save_for_backward(z, mu, logvar, seed)
        return z

    @staticmethod
    def backward(ctx, grad_z):
        z, mu, logvar, seed = ctx.saved_tensors
        grads = ops.reparameterize_backward(grad_z, z, mu, logvar, seed)
        return *_first_order(grads, mu, logvar), None, None


class _GaussianKL(Function):
    @staticmethod
    def forward(ctx, mu, logvar):
        ctx.save_for_backward(mu, logvar)
        return ops.gaussian_kl(mu, logvar)

    @staticmethod
    def backward(ctx, grad_kl):
        mu, logvar = ctx.saved_tensors
        return _first_order(ops.gaussian_kl_backward(grad_kl, mu, logvar), mu, logvar)


class _ProductOfExperts(Function):
    @staticmethod
    def forward(ctx, mask, prior, *experts):
        half = len(experts) // 2
        joint_mu, joint_logvar = ops.product_of_experts(experts[:half], experts[half:], mask, prior)
        ctx.save_for_backward(mask, joint_mu, joint_logvar, *experts)
        ctx.set_materialize_grads(False)
        return joint_mu, joint_logvar

    @staticmethod
    def backward(ctx, grad_mu, grad_logvar):
        mask, joint_mu, joint_logvar, *experts = ctx.saved_tensors
        mu, logvar = experts[: len(experts) // 2], experts[len(experts) // 2 :]
        grads = ops.product_of_experts_backward(grad_mu, grad_logvar, mu, logvar, mask, joint_mu, joint_logvar)
        return None, None, *_first_order(grads, *experts)


class _PoESampleKL(Function):
    @staticmethod
    def forward(ctx, mask, prior, n_samples, seed, *experts):
        half = len(experts) // 2
        z, joint_mu, joint_logvar, kl = ops.poe_sample_kl(experts[:half], experts[half:], mask, prior, n_samples, seed)
        ctx.save_for_backward(mask, z, joint_mu, joint_logvar, seed, *experts)
        ctx.set_materialize_grads(False)
        return z, joint_mu, joint_logvar, kl

    @staticmethod
    def backward(ctx, grad_z, grad_mu, grad_logvar, grad_kl):
        mask, z, joint_mu, joint_logvar, seed, *experts = ctx.saved_tensors
        mu, logvar = experts[: len(experts) // 2], experts[len(experts) // 2 :]
        grads = ops.poe_sample_kl_backward(
            grad_z, grad_mu, grad_logvar, grad_kl, mu, logvar, mask, z, joint_mu, joint_logvar, seed
        )
        return None, None, None, None, *_first_order(grads, *experts)


class _MoPoESampleKL(Function):
    @staticmethod
    def forward(ctx, mask, subsets, prior, seed, *experts):
        half = len(experts) // 2
        z, kl, subset = ops.mopoe_sample_kl(experts[:half], experts[half:], mask, subsets, prior, seed)
        ctx.save_for_backward(mask, z, subset, seed, *experts)
        ctx.subsets, ctx.prior = subsets, prior
        ctx.mark_non_differentiable(subset)
        ctx.set_materialize_grads(False)
        return z, kl, subset

    @staticmethod
    def backward(ctx, grad_z, grad_kl, _):
        mask, z, subset, seed, *experts = ctx.saved_tensors
        mu, logvar = experts[: len(experts) // 2], experts[len(experts) // 2 :]
        grads = ops.mopoe_sample_kl_backward(grad_z, grad_kl, mu, logvar, mask, ctx.subsets, ctx.prior, z, subset, seed)
        return None, None, None, None, *_first_order(grads, *experts)


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    n_samples: int | None = None,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample z = mu + exp(logvar / 2) * eps, eps ~ N(0, I), with gradients to mu and logvar.

    Args:
        mu, logvar: means and log-variances [..., D]; rows are counted over the flattened leading dimensions.
        n_samples: K samples of each, or None for one without a sample dimension.
        seed: 64-bit int, or int64 tensor of one element; None draws one from ``generator`` (torch's default).

    Returns:
        z [..., D], or [K, ..., D].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not match.

    Source: Kingma & Welling, Auto-Encoding Variational Bayes, 2014, section 2.4.
    """
    if not _has_kernel(mu):
        return reference.reparameterize(mu, logvar, n_samples, seed=seed, generator=generator)
    _checks.same_device("reparameterize", mu, logvar)
    _checks.n_samples("reparameterize", n_samples)
    seed = seed_tensor(seed, generator, mu.device)
    if _records("reparameterize", (mu, logvar)):
        return _Reparameterize.apply(*_distinct((mu, logvar)), seed, n_samples)
    return ops.reparameterize(mu, logvar, seed, n_samples)


def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """KL divergence in nats of diagonal Gaussians, summed over the last dimension.

    Args:
        mu, logvar: means and log-variances [..., D].
        prior_mu, prior_logvar: the second Gaussian, broadcasting to [..., D]; None is 0, so both None is N(0, I).

    Returns:
        kl [...], never negative.

    Source: Kingma & Welling 2014, appendix B: KL = 1/2 sum(mu^2 + e^logvar - 1 - logvar).
    """
    if prior_mu is not None or prior_logvar is not None or not _has_kernel(mu):
        return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    _checks.same_device("gaussian_kl", mu, logvar)
    if _records("gaussian_kl", (mu, logvar)):
        return _GaussianKL.apply(*_distinct((mu, logvar)))
    return ops.gaussian_kl(mu, logvar)


def product_of_experts(
    mu: Experts, logvar: Experts, mask: Tensor | None = None, *, prior: bool = True, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fuse Gaussian experts by their product: precisions add, means average by precision.

    Args:
        mu, logvar: M experts, a list of [B, D] or stacked [M, B, D].
        mask: bool [B, M], True = observed; None = all.
        prior: count N(0, I) as one more expert.
        weights: [M] or [M, D], non-negative factors on the precisions (generalised product of experts).

    Returns:
        (mu, logvar), each [B, D]. Where only uninformative experts (logvar = +inf) are observed: mu 0, logvar +inf.

    Source: Wu & Goodman, Multimodal Generative Models for Scalable Weakly-Supervised Learning, 2018, section 2.2;
    weights: Cao & Fleet, Generalized Product of Experts, 2014.
    """
    if weights is not None or not _has_kernel(_first(mu)):
        return reference.product_of_experts(mu, logvar, mask, prior=prior, weights=weights)
    _checks.flag("product_of_experts", "prior", prior)
    mus, logvars = _as_lists("product_of_experts", mu, logvar, mask)
    if _records("product_of_experts", mus + logvars):
        return _ProductOfExperts.apply(mask, prior, *_distinct(mus + logvars))
    return ops.product_of_experts(mus, logvars, mask, prior)


def poe_sample_kl(
    mu: Experts,
    logvar: Experts,
    mask: Tensor | None = None,
    *,
    prior: bool = True,
    n_samples: int | None = None,
    expert_kl: bool = False,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> PoESample:
    """Fusion, sampling and KL in one pass: q = product of experts, z ~ q, KL(q || N(0, I)).

    Args:
        mu, logvar, mask, prior: as in :func:`product_of_experts`.
        n_samples: K samples, or None for one without a sample dimension.
        expert_kl: also return KL(q || q_m) for every expert (0 where it is missing), as MVTCAE needs it.
        seed, generator: as in :func:`reparameterize`.

    Returns:
        PoESample(z [B, D] or [K, B, D], mu [B, D], logvar [B, D], kl [B] in nats, expert_kl [M, B] or None).

    Source: Wu & Goodman 2018; expert_kl: Hwang et al., Multi-View Representation Learning via Total Correlation
    Objective, 2021.
    """
    if expert_kl or not _has_kernel(_first(mu)):
        return reference.poe_sample_kl(
            mu, logvar, mask, prior=prior, n_samples=n_samples, expert_kl=expert_kl, seed=seed, generator=generator
        )
    mus, logvars = _as_lists("poe_sample_kl", mu, logvar, mask)
    _checks.flag("poe_sample_kl", "prior", prior)
    _checks.n_samples("poe_sample_kl", n_samples)
    seed = seed_tensor(seed, generator, mus[0].device)
    if _records("poe_sample_kl", mus + logvars):
        return PoESample(*_PoESampleKL.apply(mask, prior, n_samples, seed, *_distinct(mus + logvars)))
    return PoESample(*ops.poe_sample_kl(mus, logvars, mask, prior, n_samples, seed))


def mopoe_sample_kl(
    mu: Experts,
    logvar: Experts,
    mask: Tensor | None = None,
    *,
    subsets: Sequence[int] | None = None,
    prior: str = "full",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> MoPoESample:
    """The MoPoE training step: mean KL over a row's available subsets, and z from one of them drawn uniformly.

    A subset's posterior is the product of its members' experts; it is available in a row when all its members are
    observed. Nothing of size [S, B, D] is ever written.

    Args:
        mu, logvar, mask: as in :func:`product_of_experts`.
        subsets: bitmasks (bit m = expert m), default all 2^M - 1 in counting order.
        prior: in which subsets the prior expert N(0, I) sits: "none", "full" (the subset of all M) or "all".
        seed, generator: as in :func:`reparameterize`; the choice of subset is part of the noise.

    Returns:
        MoPoESample(z [B, D], kl [B] in nats, subset [B] int64: index into ``subsets``, -1 = nothing available).

    Source: Sutter, Daunhawer & Vogt, Generalized Multimodal ELBO, 2021.
    """
    if not _has_kernel(_first(mu)):
        return reference.mopoe_sample_kl(mu, logvar, mask, subsets=subsets, prior=prior, seed=seed, generator=generator)
    mus, logvars = _as_lists("mopoe_sample_kl", mu, logvar, mask)
    _checks.subsets("mopoe_sample_kl", mu, subsets, prior)
    seed = seed_tensor(seed, generator, mus[0].device)
    chosen, place = None if subsets is None else list(subsets), PRIOR_PLACES.index(prior)
    if _records("mopoe_sample_kl", mus + logvars):
        return MoPoESample(*_MoPoESampleKL.apply(mask, chosen, place, seed, *_distinct(mus + logvars)))
    return MoPoESample(*ops.mopoe_sample_kl(mus, logvars, mask, chosen, place, seed))


def log_likelihood(
    x: Tensor,
    params: Tensor,
    *,
    family: str,
    scale: float | Tensor = 1.0,
    event_dims: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """log p(x | params) in nats, summed over the event dimensions.

    Args:
        x: data [B, ...]; broadcasts over leading sample dimensions of ``params`` without being expanded.
        params: [..., B, ...]: mean (normal, laplace) or logits (bernoulli); logits [..., B, ..., classes] for
            categorical, with integer x.
        family: "normal", "laplace", "bernoulli" or "categorical".
        scale: standard deviation (normal) or scale (laplace), a number or a tensor that broadcasts.
        event_dims: trailing dimensions of x that form one event; default all but the first.
        mask: bool [B]; a missing row counts 0, whatever it holds.

    Returns:
        [..., B] (with ``event_dims`` smaller than the default, the remaining dimensions of x follow).
    """
    return reference.log_likelihood(x, params, family=family, scale=scale, event_dims=event_dims, mask=mask)
