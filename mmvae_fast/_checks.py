"""Argument checks of the public functions: every message names function, argument, what came and what was expected.

The native ops make the same checks in C++ before a kernel starts (``csrc/torch/checks.h``); these serve the twins and
the shape inference of ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PRIOR_PLACES = ("none", "full", "all")  # in which subsets the prior expert sits; the ops count them from 0
LIKELIHOODS = ("normal", "laplace", "bernoulli", "categorical")
MAX_EXPERTS = 62  # a subset is a bitmask in an int64


def _shape(t: Tensor) -> str:
    return "[" + ", ".join(str(int(n)) if not isinstance(n, torch.SymInt) else str(n) for n in t.shape) + "]"


def _fail(fn: str, text: str, error: type[Exception] = ValueError):
    raise error(f"mmvae_fast.{fn}: {text}")


def tensor(fn: str, name: str, value) -> None:
    if not isinstance(value, Tensor):
        _fail(fn, f"{name} is a {type(value).__name__}, expected a tensor", TypeError)


def flag(fn: str, name: str, value) -> None:
    if not isinstance(value, bool):
        _fail(fn, f"{name} is {value!r}, expected True or False", TypeError)


def same_device(fn: str, mu: Tensor, logvar) -> None:
    """The part of :func:`gaussian` the native ops cannot check: what they never receive."""
    tensor(fn, "logvar", logvar)
    if logvar.device != mu.device:
        _fail(fn, f"logvar is on {logvar.device}, expected {mu.device} like mu")


def _floating(fn: str, name: str, value) -> None:
    tensor(fn, name, value)
    if value.dtype not in FLOATS:
        _fail(fn, f"{name} is {value.dtype}, expected float32, float64, float16 or bfloat16")


def _like(fn: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    tensor(fn, name, value)
    if value.device != other.device:
        _fail(fn, f"{name} is on {value.device}, expected {other.device} like {other_name}")
    if value.shape != other.shape:
        _fail(fn, f"{name} has shape {_shape(value)}, expected {_shape(other)} like {other_name}")
    if value.dtype != other.dtype:
        _fail(fn, f"{name} is {value.dtype}, expected {other.dtype} like {other_name}")


def gaussian(fn: str, mu, logvar) -> None:
    """mu, logvar: two tensors [..., D] of one shape, dtype and device."""
    _floating(fn, "mu", mu)
    if mu.dim() < 1:
        _fail(fn, "mu has no dimensions, expected [..., D]")
    _like(fn, "logvar", logvar, "mu", mu)


def prior(fn: str, mu: Tensor, prior_mu, prior_logvar) -> None:
    for name, value in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if value is None:
            continue
        _floating(fn, name, value)
        if value.device != mu.device:
            _fail(fn, f"{name} is on {value.device}, expected {mu.device} like mu")
        try:
            broadcasts = torch.broadcast_shapes(mu.shape, value.shape) == mu.shape
        except RuntimeError:
            broadcasts = False
        if not broadcasts:
            _fail(fn, f"{name} has shape {_shape(value)}, expected one that broadcasts to {_shape(mu)} like mu")


def n_samples(fn: str, value) -> None:
    if value is None or isinstance(value, torch.SymInt):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        _fail(fn, f"n_samples is a {type(value).__name__}, expected an int or None", TypeError)
    if value < 0:
        _fail(fn, f"n_samples is {value}, expected 0 or more")


def experts(fn: str, mu, logvar, mask) -> None:
    """M experts as a list of [B, D] or stacked [M, B, D]; mask bool [B, M]."""
    if isinstance(mu, Tensor) != isinstance(logvar, Tensor):
        _fail(fn, "mu and logvar must both be lists of [B, D] or both be tensors [M, B, D]", TypeError)
    if isinstance(mu, Tensor):
        gaussian(fn, mu, logvar)
        if mu.dim() != 3:
            _fail(fn, f"mu has shape {_shape(mu)}, expected stacked experts [M, B, D] (or a list of [B, D])")
        count, rows = mu.shape[0], mu.shape[1]
        first = mu
    else:
        if not isinstance(mu, Sequence) or not isinstance(logvar, Sequence):
            _fail(
                fn, f"mu is a {type(mu).__name__}, expected a list of tensors [B, D] or a tensor [M, B, D]", TypeError
            )
        if len(mu) != len(logvar):
            _fail(fn, f"got {len(mu)} mu and {len(logvar)} logvar, expected as many of each")
        if not mu:
            _fail(fn, "mu is empty, expected at least one expert")
        first = mu[0]
        _floating(fn, "mu[0]", first)
        if first.dim() != 2:
            _fail(fn, f"mu[0] has shape {_shape(first)}, expected [B, D]")
        for i in range(len(mu)):
            _like(fn, f"mu[{i}]", mu[i], "mu[0]", first)
            _like(fn, f"logvar[{i}]", logvar[i], "mu[0]", first)
        count, rows = len(mu), first.shape[0]
    if count < 1 or count > MAX_EXPERTS:
        _fail(fn, f"got {count} experts, expected 1 to {MAX_EXPERTS}")
    if mask is None:
        return
    tensor(fn, "mask", mask)
    if mask.dtype != torch.bool:
        _fail(fn, f"mask is {mask.dtype}, expected torch.bool (True = observed)")
    if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] != count:
        _fail(fn, f"mask has shape {_shape(mask)}, expected [B, M] = [{rows}, {count}]")
    if mask.device != first.device:
        _fail(fn, f"mask is on {mask.device}, expected {first.device} like mu")


def weights(fn: str, mu, value) -> None:
    if value is None:
        return
    _floating(fn, "weights", value)
    count, dim = (mu.shape[0], mu.shape[2]) if isinstance(mu, Tensor) else (len(mu), mu[0].shape[1])
    if tuple(value.shape) not in ((count,), (count, dim)):
        _fail(fn, f"weights has shape {_shape(value)}, expected [M] = [{count}] or [M, D] = [{count}, {dim}]")


def subsets(fn: str, mu, value, prior_place) -> None:
    if prior_place not in PRIOR_PLACES:
        _fail(fn, f"prior is {prior_place!r}, expected 'none', 'full' or 'all'")
    count = mu.shape[0] if isinstance(mu, Tensor) else len(mu)
    if value is None:
        if count > 16:
            _fail(fn, f"got {count} experts, expected at most 16 when all 2**M - 1 subsets are used; pass subsets=")
        return
    if not isinstance(value, Sequence) or not value:
        _fail(fn, f"subsets is {value!r}, expected a non-empty list of bitmasks")
    for s in value:
        if isinstance(s, bool) or not isinstance(s, int):
            _fail(fn, f"subsets holds {s!r}, expected int bitmasks", TypeError)
        if not 0 < s < 2**count:
            _fail(fn, f"subsets holds {s}, expected bitmasks from 1 to {2**count - 1} for {count} experts")
    if len(set(value)) != len(value):
        _fail(fn, f"subsets {list(value)} names one twice")


def likelihood(fn: str, x, params, family, event_dims, mask) -> None:
    if family not in LIKELIHOODS:
        _fail(fn, f"family is {family!r}, expected 'normal', 'laplace', 'bernoulli' or 'categorical'")
    tensor(fn, "x", x)
    _floating(fn, "params", params)
    if x.dim() < 1:
        _fail(fn, "x has no dimensions, expected [B, ...]")
    if x.device != params.device:
        _fail(fn, f"x is on {x.device}, expected {params.device} like params")
    if family == "categorical" and x.dtype.is_floating_point:
        _fail(fn, f"x is {x.dtype}, expected integer class indices for family='categorical'", TypeError)
    if event_dims is not None and not 0 <= event_dims <= x.dim() - 1:
        _fail(fn, f"event_dims is {event_dims}, expected 0 to {x.dim() - 1} for x {_shape(x)}")
    tail = params.shape[:-1] if family == "categorical" else params.shape
    if len(tail) < x.dim() or tail[len(tail) - x.dim() :] != x.shape:
        extra = ", classes]" if family == "categorical" else "]"
        _fail(fn, f"params has shape {_shape(params)}, expected [..., {_shape(x)[1:-1]}{extra} for x {_shape(x)}")
    if mask is not None:
        tensor(fn, "mask", mask)
        if mask.dtype != torch.bool:
            _fail(fn, f"mask is {mask.dtype}, expected torch.bool (True = observed)")
        if tuple(mask.shape) != (x.shape[0],):
            _fail(fn, f"mask has shape {_shape(mask)}, expected [B] = [{x.shape[0]}]")
