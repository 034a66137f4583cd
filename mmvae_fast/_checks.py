"""Argument checks of the public functions: every message names function, argument, what came and what was expected.

The native ops make the same checks in C++ before a kernel starts (``csrc/torch/checks.h``); these serve the twins and
the shape inference of ``torch.compile``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)
PRIOR_PLACES = ("none", "full", "all")  # in which subsets the prior expert sits; the ops count them from 0
NOISE_FAMILIES = ("normal", "laplace")
LIKELIHOODS = ("normal", "laplace", "bernoulli", "categorical")
MAX_EXPERTS = 62  # a subset is a bitmask in an int64


def _shape(t: Tensor) -> str:
    return "[" + ", ".join(str(int(n)) if not isinstance(n, torch.SymInt) else str(n) for n in t.shape) + "]"


def _fail(fn: str, text: str, error: type[Exception] = ValueError):
    raise error(f"mmvae_fast.{fn}: {text}")


def is_number(value) -> bool:
    """Whether it is a finite int or float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def tensor(fn: str, name: str, value) -> None:
    if not isinstance(value, Tensor):
        _fail(fn, f"{name} is a {type(value).__name__}, expected a tensor", TypeError)


def flag(fn: str, name: str, value) -> None:
    if not isinstance(value, bool):
        _fail(fn, f"{name} is {value!r}, expected True or False", TypeError)


def family(fn: str, value) -> None:
    if value not in NOISE_FAMILIES:
        _fail(fn, f"family is {value!r}, expected 'normal' or 'laplace'")


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


def gaussian(fn: str, mu, logvar, second: str = "logvar") -> None:
    """mu, logvar (or what the second is called): two tensors [..., D] of one shape, dtype and device."""
    _floating(fn, "mu", mu)
    if mu.dim() < 1:
        _fail(fn, "mu has no dimensions, expected [..., D]")
    _like(fn, second, logvar, "mu", mu)


def _broadcasts(fn: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        _fail(fn, f"{name} is on {value.device}, expected {other.device} like {other_name}")
    aligned = zip(reversed(value.shape), reversed(other.shape), strict=False)
    if value.dim() > other.dim() or not all(n == 1 or n == m for n, m in aligned):
        _fail(
            fn, f"{name} has shape {_shape(value)}, expected one that broadcasts to {_shape(other)} like {other_name}"
        )


def prior(fn: str, mu: Tensor, prior_mu, prior_logvar) -> None:
    for name, value in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if value is None:
            continue
        _floating(fn, name, value)
        _broadcasts(fn, name, value, "mu", mu)
        if value.dtype != mu.dtype:
            _fail(fn, f"{name} is {value.dtype}, expected {mu.dtype} like mu")


def n_samples(fn: str, value) -> None:
    if value is None or isinstance(value, torch.SymInt):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        _fail(fn, f"n_samples is a {type(value).__name__}, expected an int or None", TypeError)
    if value < 0:
        _fail(fn, f"n_samples is {value}, expected 0 or more")


def experts(fn: str, mu, logvar, mask, second: str = "logvar") -> None:
    """M experts as a list of [B, D] or stacked [M, B, D]; mask bool [B, M]. `second` is what logvar is called."""
    if isinstance(mu, Tensor) != isinstance(logvar, Tensor):
        _fail(fn, f"mu and {second} must both be lists of [B, D] or both be tensors [M, B, D]", TypeError)
    if isinstance(mu, Tensor):
        gaussian(fn, mu, logvar, second)
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
            _fail(fn, f"got {len(mu)} mu and {len(logvar)} {second}, expected as many of each")
        if not mu:
            _fail(fn, "mu is empty, expected at least one expert")
        first = mu[0]
        _floating(fn, "mu[0]", first)
        if first.dim() != 2:
            _fail(fn, f"mu[0] has shape {_shape(first)}, expected [B, D]")
        for i in range(len(mu)):
            _like(fn, f"mu[{i}]", mu[i], "mu[0]", first)
            _like(fn, f"{second}[{i}]", logvar[i], "mu[0]", first)
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
    first = mu if isinstance(mu, Tensor) else mu[0]
    if value.device != first.device:
        _fail(fn, f"weights is on {value.device}, expected {first.device} like mu")
    # learned weights stay float32 where the experts are half
    if value.dtype != first.dtype and not (value.dtype == torch.float32 and first.dtype in HALVES):
        _fail(fn, f"weights is {value.dtype}, expected {first.dtype} like mu")
    count, dim = (mu.shape[0], mu.shape[2]) if isinstance(mu, Tensor) else (len(mu), mu[0].shape[1])
    if tuple(value.shape) not in ((count,), (count, dim)):
        _fail(fn, f"weights has shape {_shape(value)}, expected [M] = [{count}] or [M, D] = [{count}, {dim}]")


def mixture(fn: str, z, mu, scale, mask, noise_family) -> None:
    """z [..., B, D] beside experts [B, D] of the same dtype."""
    family(fn, noise_family)
    experts(fn, mu, scale, mask, second="scale")
    first = mu if isinstance(mu, Tensor) else mu[0]
    tensor(fn, "z", z)
    if z.device != first.device:
        _fail(fn, f"z is on {z.device}, expected {first.device} like mu")
    if z.dim() < 2 or z.shape[-2:] != first.shape[-2:]:
        rows, dim = first.shape[-2:]
        _fail(fn, f"z has shape {_shape(z)}, expected [..., B, D] = [..., {rows}, {dim}] for these experts")
    if z.dtype != first.dtype:
        _fail(fn, f"z is {z.dtype}, expected {first.dtype} like mu")


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


def likelihood(fn: str, x, params, family, scale, event_dims, mask) -> None:
    if family not in LIKELIHOODS:
        _fail(fn, f"family is {family!r}, expected 'normal', 'laplace', 'bernoulli' or 'categorical'")
    tensor(fn, "x", x)
    _floating(fn, "params", params)
    if x.dim() < 1:
        _fail(fn, "x has no dimensions, expected [B, ...]")
    if x.device != params.device:
        _fail(fn, f"x is on {x.device}, expected {params.device} like params")
    if x.dtype.is_complex:
        _fail(fn, f"x is {x.dtype}, expected real numbers", TypeError)
    if family == "categorical" and x.dtype.is_floating_point:
        _fail(fn, f"x is {x.dtype}, expected integer class indices for family='categorical'", TypeError)
    if event_dims is not None:
        if isinstance(event_dims, bool) or not isinstance(event_dims, int):
            _fail(fn, f"event_dims is a {type(event_dims).__name__}, expected an int or None", TypeError)
        if not 0 <= event_dims <= x.dim() - 1:
            _fail(fn, f"event_dims is {event_dims}, expected 0 to {x.dim() - 1} for x {_shape(x)}")
    classes_last = family == "categorical"
    tail = params.shape[:-1] if classes_last else params.shape
    if params.dim() < x.dim() + classes_last or tail[len(tail) - x.dim() :] != x.shape:
        extra = ", classes]" if classes_last else "]"
        _fail(fn, f"params has shape {_shape(params)}, expected [..., {_shape(x)[1:-1]}{extra} for x {_shape(x)}")
    _scale(fn, params, family, scale)
    if mask is not None:
        tensor(fn, "mask", mask)
        if mask.dtype != torch.bool:
            _fail(fn, f"mask is {mask.dtype}, expected torch.bool (True = observed)")
        if tuple(mask.shape) != (x.shape[0],):
            _fail(fn, f"mask has shape {_shape(mask)}, expected [B] = [{x.shape[0]}]")
        if mask.device != params.device:
            _fail(fn, f"mask is on {mask.device}, expected {params.device} like params")


def _scale(fn: str, params: Tensor, family: str, value) -> None:
    if isinstance(value, Tensor):
        _floating(fn, "scale", value)
        _broadcasts(fn, "scale", value, "params", params)
    elif isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        _fail(fn, f"scale is a {type(value).__name__}, expected a number or a tensor", TypeError)
    elif not 0 < value < math.inf:
        _fail(fn, f"scale is {value}, expected a positive number")
    if family in ("bernoulli", "categorical") and (isinstance(value, Tensor) or value != 1):
        came = f"a tensor {_shape(value)}" if isinstance(value, Tensor) else value
        _fail(fn, f"scale is {came}, expected none: family={family!r} has no scale")


def classes(fn: str, x: Tensor, params: Tensor) -> None:
    """Reads the data, so only where that costs no synchronisation and the values are at hand (elsewhere torch's own
    gather complains, less clearly)."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if x.numel() == 0:
        return
    count = params.shape[-1]
    low, high = (int(v) for v in x.long().aminmax())
    if low < 0 or high >= count:
        worst = low if low < 0 else high
        _fail(fn, f"x holds {worst}, expected class indices from 0 to {count - 1} for params {_shape(params)}")
