"""The public functions: fused sampling, KL and products of experts, as drop-ins for PyTorch code.

Rules all of them keep (DESIGN: "The functions"):

- *Experts* are a list of M tensors [B, D], as encoders return them, or one stacked [M, B, D]. Only the last dimension
  needs to be contiguous: ``mu, logvar = h.chunk(2, -1)`` costs no copy. ``mask`` is bool [B, M], True = observed.
- *Missing means untouched*: whatever a masked-out expert holds (NaN, inf) is never read into a result, and its
  gradient is exactly 0. A row with nothing observed gets the prior: mu 0, logvar 0, kl 0.
- *Stable*: logvar in [-100, 100] and +inf ("uninformative") are fine; NaN in an observed expert comes out as NaN.
- *Noise* depends on (seed, row, sample, dimension) alone, so it is the same for any batch size, thread count and
  backend (see :func:`mmvae_fast.reference.philox_normal`). ``seed=None`` draws a seed from torch's generator;
  :func:`row_seed` makes one with which a part of some rows gets the noise it has among all of them.
- *Errors* are ValueError or TypeError naming function, argument, what came and what was expected.
- *Types*: float32, float64, bfloat16 and float16 (computed in float32; KLs and log-probabilities come out as float32).
  Tensors of one call share one type; under ``torch.autocast`` mixed ones are promoted to the widest.
- First-order gradients; double backward and forward-mode AD raise. Inside ``torch.func`` transforms and on devices
  without a kernel, the plain-PyTorch twin of :mod:`mmvae_fast.reference` runs instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from mmvae_fast import _checks, _ext, reference
from mmvae_fast._ops import ops
from mmvae_fast.reference import PRIOR_PLACES, Experts, MoPoESample, PoESample, SubsetPosteriors, row_seed, seed_tensor

__all__ = [
    "MoPoESample",
    "PoESample",
    "SubsetPosteriors",
    "gaussian_kl",
    "laplace_kl",
    "log_likelihood",
    "mixture_log_prob",
    "mopoe_sample_kl",
    "poe_sample_kl",
    "product_of_experts",
    "reparameterize",
    "row_seed",
    "subset_posteriors",
]

_DEVICES = ("cpu", "meta", "cuda") if _ext.CUDA_LOADED else ("cpu", "meta")


def _has_kernel(x: Any) -> bool:
    """Whether the native ops take this tensor; if not (or if it is no tensor at all) the twin serves, or complains."""
    return (
        _ext.LOADED
        and isinstance(x, Tensor)
        and x.device.type in _DEVICES
        and x.dtype in _checks.FLOATS
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


def _autocasts(x: Tensor) -> bool:
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def _promoted(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Under autocast tensors of several types become the widest of them, as in torch; else they stay, to be refused."""
    if not _autocasts(tensors[0]):
        return list(tensors)
    widest = tensors[0].dtype
    for t in tensors:
        widest = torch.promote_types(widest, t.dtype)
    return [t.to(widest) for t in tensors]


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _checks.HALVES else dtype


def _distinct(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """torch.compile refuses an autograd.Function that gets one tensor twice (experts may share a logvar)."""
    if not torch.compiler.is_compiling():
        return tensors
    # ``is``, not id(): the compiler would guard the number, which every new input has another of
    views: list[Tensor] = []
    for i, t in enumerate(tensors):
        views.append(t.view_as(t) if any(t is other for other in tensors[:i]) else t)
    return views


# Experts reach autograd one tensor each (it does not look into lists) and reach the op as lists; a stacked tensor is a
# list of one.


def _as_lists(
    fn: str, mu: Experts, logvar: Experts, mask: Tensor | None, second: str = "logvar"
) -> tuple[list[Tensor], list[Tensor]]:
    """What the ops take; kinds of things they could not even receive are refused here, the rest by the ops."""
    mus: list[Any]
    logvars: list[Any]
    if isinstance(mu, Tensor):
        mus, logvars, rank = [mu], [logvar], 3
    else:
        mus, logvars, rank = list(mu), list(logvar) if isinstance(logvar, Sequence) else [], 2
    device, dtype = mus[0].device, mus[0].dtype
    experts = mus + logvars
    alike = all(isinstance(t, Tensor) and t.device == device and t.dtype == dtype for t in experts)
    if not alike and all(isinstance(t, Tensor) and t.device == device and t.is_floating_point() for t in experts):
        experts = _promoted(experts)
        mus, logvars = experts[: len(mus)], experts[len(mus) :]
        alike = all(t.dtype == experts[0].dtype for t in experts)
    mask_fits = mask is None or (isinstance(mask, Tensor) and mask.device == device)
    if alike and mask_fits and len(mus) == len(logvars) and mus[0].dim() == rank:
        return mus, logvars
    _checks.experts(fn, mu, logvar, mask, second)
    raise AssertionError("unreachable: the check above raises")


def _pair(fn: str, mu: Tensor, logvar: Tensor) -> Sequence[Tensor]:
    """mu and logvar of one distribution: what the ops cannot check, or autocast makes alike."""
    _checks.same_device(fn, mu, logvar)
    return (mu, logvar) if mu.dtype == logvar.dtype else _promoted((mu, logvar))


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
    def forward(ctx, mu, logvar, seed, n_samples, family):
        z = ops.reparameterize(mu, logvar, seed, n_samples, family)
        ctx.save_for_backward(z, mu, logvar, seed)
        ctx.family = family
        return z

    @staticmethod
    def backward(ctx, grad_z):
        z, mu, logvar, seed = ctx.saved_tensors
        grads = ops.reparameterize_backward(grad_z, z, mu, logvar, seed, ctx.family)
        return *_first_order(grads, mu, logvar), None, None, None


def _kl_ops(family: str):
    if family == "laplace":
        return ops.laplace_kl, ops.laplace_kl_backward
    return ops.gaussian_kl, ops.gaussian_kl_backward


class _KL(Function):
    """Of two Gaussians or two Laplace distributions; a prior that is None is the standard one's."""

    @staticmethod
    def forward(ctx, family, mu, logvar, prior_mu, prior_logvar):
        ctx.save_for_backward(mu, logvar, prior_mu, prior_logvar)
        ctx.family = family
        return _kl_ops(family)[0](mu, logvar, prior_mu, prior_logvar)

    @staticmethod
    def backward(ctx, grad_kl):
        mu, logvar, prior_mu, prior_logvar = ctx.saved_tensors
        of_prior = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        op = _kl_ops(ctx.family)[1]
        grads = op(grad_kl, mu, logvar, prior_mu, prior_logvar, of_prior)
        priors = [p for p in (prior_mu, prior_logvar) if p is not None] if of_prior else []
        grads = list(_first_order(grads, mu, logvar, *priors))
        of_prior_mu = grads[2] if of_prior and prior_mu is not None else None
        of_prior_logvar = grads[-1] if of_prior and prior_logvar is not None else None
        return None, grads[0], grads[1], of_prior_mu, of_prior_logvar


class _ProductOfExperts(Function):
    @staticmethod
    def forward(ctx, mask, prior, weights, *experts):
        half = len(experts) // 2
        joint_mu, joint_logvar = ops.product_of_experts(experts[:half], experts[half:], mask, prior, weights)
        ctx.save_for_backward(mask, weights, joint_mu, joint_logvar, *experts)
        ctx.prior = prior
        ctx.set_materialize_grads(False)
        return joint_mu, joint_logvar

    @staticmethod
    def backward(ctx, grad_mu, grad_logvar):
        mask, weights, joint_mu, joint_logvar, *experts = ctx.saved_tensors
        mu, logvar = experts[: len(experts) // 2], experts[len(experts) // 2 :]
        of_weights = ctx.needs_input_grad[2]
        grads = ops.product_of_experts_backward(
            grad_mu, grad_logvar, mu, logvar, mask, ctx.prior, weights, joint_mu, joint_logvar, of_weights
        )
        if not of_weights:
            return None, None, None, *_first_order(grads, *experts)
        *of_experts, own = _first_order(grads, *experts, weights)
        return None, None, own, *of_experts


class _PoESampleKL(Function):
    @staticmethod
    def forward(ctx, mask, prior, n_samples, seed, expert_kl, *experts):
        half = len(experts) // 2
        z, joint_mu, joint_logvar, kl, to_experts = ops.poe_sample_kl(
            experts[:half], experts[half:], mask, prior, n_samples, seed, expert_kl
        )
        ctx.save_for_backward(mask, z, joint_mu, joint_logvar, seed, *experts)
        ctx.prior = prior
        ctx.set_materialize_grads(False)
        return (z, joint_mu, joint_logvar, kl, to_experts) if expert_kl else (z, joint_mu, joint_logvar, kl)

    @staticmethod
    def backward(ctx, grad_z, grad_mu, grad_logvar, grad_kl, grad_expert_kl=None):
        mask, z, joint_mu, joint_logvar, seed, *experts = ctx.saved_tensors
        mu, logvar = experts[: len(experts) // 2], experts[len(experts) // 2 :]
        grads = ops.poe_sample_kl_backward(
            grad_z, grad_mu, grad_logvar, grad_kl, grad_expert_kl,
            mu, logvar, mask, ctx.prior, z, joint_mu, joint_logvar, seed,
        )  # fmt: skip
        return None, None, None, None, None, *_first_order(grads, *experts)


class _SubsetPosteriors(Function):
    @staticmethod
    def forward(ctx, mask, subsets, prior, *experts):
        half = len(experts) // 2
        mu, logvar, kl, available = ops.subset_posteriors(experts[:half], experts[half:], mask, subsets, prior)
        ctx.save_for_backward(mask, *experts)
        ctx.subsets, ctx.prior = subsets, prior
        ctx.mark_non_differentiable(available)
        ctx.set_materialize_grads(False)
        return mu, logvar, kl, available

    @staticmethod
    def backward(ctx, grad_mu, grad_logvar, grad_kl, _):
        mask, *experts = ctx.saved_tensors
        mu, logvar = experts[: len(experts) // 2], experts[len(experts) // 2 :]
        grads = ops.subset_posteriors_backward(grad_mu, grad_logvar, grad_kl, mu, logvar, mask, ctx.subsets, ctx.prior)
        return None, None, None, *_first_order(grads, *experts)


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


class _MixtureLogProb(Function):
    @staticmethod
    def forward(ctx, mask, family, z, *experts):
        half = len(experts) // 2
        log_prob, densities = ops.mixture_log_prob(z, experts[:half], experts[half:], mask, family)
        ctx.save_for_backward(mask, z, densities, *experts)
        ctx.family = family
        return log_prob

    @staticmethod
    def backward(ctx, grad):
        mask, z, densities, *experts = ctx.saved_tensors
        mu, scale = experts[: len(experts) // 2], experts[len(experts) // 2 :]
        of_z, of_experts = ctx.needs_input_grad[2], any(ctx.needs_input_grad[3:])
        grads = ops.mixture_log_prob_backward(grad, z, mu, scale, mask, ctx.family, densities, of_z, of_experts)
        if not of_experts:
            grads, experts, missing = grads[:1], [], [None] * len(experts)
        else:
            missing = []
        own, *rest = _first_order(grads, z, *experts)
        return None, None, own if of_z else None, *rest, *missing


class _LogLikelihood(Function):
    @staticmethod
    def forward(ctx, x, params, scale, scale_value, family, event_dims, mask):
        out, log_p = ops.log_likelihood(x, params, scale, scale_value, family, event_dims, mask)
        ctx.save_for_backward(x, params, scale, mask, log_p)
        ctx.options = scale_value, family, event_dims
        return out

    @staticmethod
    def backward(ctx, grad):
        x, params, scale, mask, log_p = ctx.saved_tensors
        of_params, of_scale = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        grads = ops.log_likelihood_backward(grad, x, params, scale, *ctx.options, mask, log_p, of_params, of_scale)
        of_inputs = [params] if scale is None else [params, scale]
        own = _first_order(grads[: len(of_inputs)], *of_inputs)
        return None, own[0] if of_params else None, own[1] if of_scale else None, None, None, None, None


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    n_samples: int | None = None,
    *,
    family: str = "normal",
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample z = mu + exp(logvar / 2) * eps, eps ~ N(0, I) or Laplace(0, 1), with gradients to mu and logvar.

    Args:
        mu, logvar: means and log-variances [..., D]; rows are counted over the flattened leading dimensions.
        n_samples: K samples of each, or None for one without a sample dimension.
        family: "normal" or "laplace". exp(logvar / 2) is the scale in both: the standard deviation, or Laplace's b
            (whose variance is 2 b^2, so there logvar is 2 log b).
        seed: 64-bit int, int64 tensor of one element, or what :func:`row_seed` makes; None draws one from ``generator``
            (torch's default).

    Returns:
        z [..., D], or [K, ..., D].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not match.

    Source: Kingma & Welling, Auto-Encoding Variational Bayes, 2014, section 2.4.
    """
    if not _has_kernel(mu):
        return reference.reparameterize(mu, logvar, n_samples, family=family, seed=seed, generator=generator)
    mu, logvar = _pair("reparameterize", mu, logvar)
    _checks.n_samples("reparameterize", n_samples)
    _checks.family("reparameterize", family)
    kind = _checks.LIKELIHOODS.index(family)
    seed = seed_tensor(seed, generator, mu.device)
    if _records("reparameterize", (mu, logvar)):
        return _Reparameterize.apply(*_distinct((mu, logvar)), seed, n_samples, kind)
    return ops.reparameterize(mu, logvar, seed, n_samples, kind)


def _same_shape(a: Tensor, b: Tensor) -> bool:
    """dim() first: tuples of different lengths compare their elements, and a graph for any number of rows would be
    guarded against as many as dims."""
    return a.dim() == b.dim() and a.shape == b.shape


def _divergence(fn: str, family: str, mu: Any, logvar: Any, prior_mu: Any, prior_logvar: Any) -> Tensor:
    if not _has_kernel(mu):
        return getattr(reference, fn)(mu, logvar, prior_mu, prior_logvar)
    mu, logvar = _pair(fn, mu, logvar)
    if prior_mu is None and prior_logvar is None:
        if _records(fn, (mu, logvar)):
            return _KL.apply(family, *_distinct((mu, logvar)), None, None)
        return _kl_ops(family)[0](mu, logvar, None, None)
    for name, prior in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if prior is not None:
            _checks.tensor(fn, name, prior)
    given = _promoted([t for t in (mu, logvar, prior_mu, prior_logvar) if t is not None])
    halves = mu.dtype in _checks.HALVES and all(t.dtype == mu.dtype for t in given)
    if halves and any(p.requires_grad and not _same_shape(p, mu) for p in given[2:]):
        given = [t.float() for t in given]  # else the gradient is a sum of many rounded ones
    mu, logvar, *priors = given
    prior_mu = None if prior_mu is None else priors[0]
    prior_logvar = None if prior_logvar is None else priors[-1]
    _checks.prior(fn, mu, prior_mu, prior_logvar)
    # strides of 0 cost nothing, and autograd sums what expand repeats
    prior_mu, prior_logvar = (
        p if p is None or _same_shape(p, mu) else p.expand(mu.shape) for p in (prior_mu, prior_logvar)
    )
    if not _records(fn, given):
        return _kl_ops(family)[0](mu, logvar, prior_mu, prior_logvar)
    distinct = iter(_distinct([t for t in (mu, logvar, prior_mu, prior_logvar) if t is not None]))
    return _KL.apply(family, *(None if t is None else next(distinct) for t in (mu, logvar, prior_mu, prior_logvar)))


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
    return _divergence("gaussian_kl", "normal", mu, logvar, prior_mu, prior_logvar)


def laplace_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """KL divergence in nats of Laplace distributions, summed over the last dimension.

    Args:
        mu, logvar: locations and 2 log b of the scales b, [..., D] (see :func:`reparameterize`).
        prior_mu, prior_logvar: the second one, broadcasting to [..., D]; None is 0, so both None is Laplace(0, 1).

    Returns:
        kl [...], never negative.

    Source: with t = |mu - mu_p| / b and r = b / b_p, KL = sum r (t + e^-t - 1) + (r - 1 - log r); Gil, Alajaji and
    Linder, Renyi divergence measures for commonly used univariate continuous distributions, 2013, table 2.
    """
    return _divergence("laplace_kl", "laplace", mu, logvar, prior_mu, prior_logvar)


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
    if not _has_kernel(_first(mu)):
        return reference.product_of_experts(mu, logvar, mask, prior=prior, weights=weights)
    _checks.flag("product_of_experts", "prior", prior)
    mus, logvars = _as_lists("product_of_experts", mu, logvar, mask)
    received = mus + logvars
    if weights is not None:
        if isinstance(weights, Tensor) and _autocasts(mus[0]):
            weights = weights.to(_arithmetic(mus[0].dtype))
        _checks.weights("product_of_experts", mus[0] if mus[0].dim() == 3 else mus, weights)
        weights = weights.to(_arithmetic(mus[0].dtype))
        if weights.dim() == 1:
            weights = weights.unsqueeze(-1).expand(-1, mus[0].shape[-1]).contiguous()
        received = [*received, weights]
    if _records("product_of_experts", received):
        return _ProductOfExperts.apply(mask, prior, weights, *_distinct(mus + logvars))
    return ops.product_of_experts(mus, logvars, mask, prior, weights)


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
    if not _has_kernel(_first(mu)):
        return reference.poe_sample_kl(
            mu, logvar, mask, prior=prior, n_samples=n_samples, expert_kl=expert_kl, seed=seed, generator=generator
        )
    mus, logvars = _as_lists("poe_sample_kl", mu, logvar, mask)
    _checks.flag("poe_sample_kl", "prior", prior)
    _checks.flag("poe_sample_kl", "expert_kl", expert_kl)
    _checks.n_samples("poe_sample_kl", n_samples)
    seed = seed_tensor(seed, generator, mus[0].device)
    if _records("poe_sample_kl", mus + logvars):
        return PoESample(*_PoESampleKL.apply(mask, prior, n_samples, seed, expert_kl, *_distinct(mus + logvars)))
    z, joint_mu, joint_logvar, kl, to_experts = ops.poe_sample_kl(mus, logvars, mask, prior, n_samples, seed, expert_kl)
    return PoESample(z, joint_mu, joint_logvar, kl, to_experts if expert_kl else None)


def subset_posteriors(
    mu: Experts,
    logvar: Experts,
    mask: Tensor | None = None,
    *,
    subsets: Sequence[int] | None = None,
    prior: str = "full",
) -> SubsetPosteriors:
    """Every subset's product of experts and its KL to N(0, I), from one read of the experts.

    Args:
        mu, logvar, mask: as in :func:`product_of_experts`.
        subsets: bitmasks (bit m = expert m), default all 2^M - 1 in counting order.
        prior: in which subsets the prior expert N(0, I) sits: "none", "full" (the subset of all M) or "all".

    Returns:
        SubsetPosteriors(mu [S, B, D], logvar [S, B, D], kl [S, B] in nats, available [S, B] bool). A subset is
        available in a row when all its members are observed; elsewhere it is the prior: mu 0, logvar 0, kl 0.

    Source: Sutter, Daunhawer & Vogt, Generalized Multimodal ELBO, 2021, section 3.
    """
    if not _has_kernel(_first(mu)):
        return reference.subset_posteriors(mu, logvar, mask, subsets=subsets, prior=prior)
    mus, logvars = _as_lists("subset_posteriors", mu, logvar, mask)
    _checks.subsets("subset_posteriors", mu, subsets, prior)
    chosen, place = None if subsets is None else list(subsets), PRIOR_PLACES.index(prior)
    if _records("subset_posteriors", mus + logvars):
        return SubsetPosteriors(*_SubsetPosteriors.apply(mask, chosen, place, *_distinct(mus + logvars)))
    return SubsetPosteriors(*ops.subset_posteriors(mus, logvars, mask, chosen, place))


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


def mixture_log_prob(
    z: Tensor, mu: Experts, scale: Experts, mask: Tensor | None = None, *, family: str = "normal"
) -> Tensor:
    """log of the mean density of a row's observed experts at z: log (1 / M_b) sum_m q_m(z), in nats.

    Args:
        z: points [..., B, D].
        mu, scale: M experts, a list of [B, D] or stacked [M, B, D]; scale > 0 is a standard deviation or Laplace scale.
        mask: bool [B, M], True = observed; None = all. Where nothing is observed the density is the prior's (mean 0,
            scale 1).
        family: "normal" or "laplace".

    Returns:
        [..., B]; responsibilities below 1e-30 count as 0.

    Source: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models, 2019, eq. 3.
    """
    if not _has_kernel(_first(mu)) or not isinstance(z, Tensor):
        return reference.mixture_log_prob(z, mu, scale, mask, family=family)
    mus, scales = _as_lists("mixture_log_prob", mu, scale, mask, "scale")
    if z.dtype != mus[0].dtype:
        z, *experts = _promoted([z, *mus, *scales])
        mus, scales = experts[: len(mus)], experts[len(mus) :]
    if z.device != mus[0].device or family not in _checks.NOISE_FAMILIES:
        _checks.mixture("mixture_log_prob", z, mu, scale, mask, family)
    kind = _checks.LIKELIHOODS.index(family)
    if _records("mixture_log_prob", [z, *mus, *scales]):
        return _MixtureLogProb.apply(mask, kind, *_distinct([z, *mus, *scales]))
    return ops.mixture_log_prob(z, mus, scales, mask, kind)[0]


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
    differentiable_x = isinstance(x, Tensor) and x.requires_grad  # rare: only the twin has a gradient for it
    if not _has_kernel(params) or differentiable_x:
        return reference.log_likelihood(x, params, family=family, scale=scale, event_dims=event_dims, mask=mask)
    _checks.likelihood("log_likelihood", x, params, family, scale, event_dims, mask)
    real = _arithmetic(params.dtype)
    x = x.to(torch.int64 if family == "categorical" else real)
    event_dims = x.dim() - 1 if event_dims is None else event_dims
    learned, value = None, 1.0
    if isinstance(scale, Tensor):
        learned = _expanded_scale(scale.to(real), x, params)
    else:
        value = float(scale)
    options = value, _checks.LIKELIHOODS.index(family), event_dims
    if _records("log_likelihood", (x, params) if learned is None else (x, params, learned)):
        return _LogLikelihood.apply(x, params, learned, *options, mask)
    return ops.log_likelihood(x, params, learned, *options, mask)[0]


def _expanded_scale(scale: Tensor, x: Tensor, params: Tensor) -> Tensor:
    """One number, or a view of x's shape where all samples share the scale, else of params'; autograd undoes it."""
    if scale.numel() == 1:
        return scale.reshape(1)
    shared = scale.dim() <= x.dim() or all(n == 1 for n in scale.shape[: scale.dim() - x.dim()])
    return scale.reshape(scale.shape[-x.dim() :]).expand(x.shape) if shared else scale.expand(params.shape)
