"""Random experts in every layout and mask the functions accept, and how results are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, torch.float64, *HALVES]
# beyond the rounding of the result to its type: halves are computed in float32
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-5, torch.float16: 1e-5}
LAYOUTS = ["list", "chunked", "stacked", "strided", "expanded"]


@dataclass
class Experts:
    """M experts of one layout, which of them each row observes, and what else the function differentiates."""

    mu: list[Tensor] | Tensor
    logvar: list[Tensor] | Tensor
    mask: Tensor | None
    extra: list[Tensor] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        """Everything gradients flow to."""
        experts = [self.mu, self.logvar] if isinstance(self.mu, Tensor) else [*self.mu, *self.logvar]
        return [*experts, *self.extra]

    def replaced(self, tensors: Sequence[Tensor], mask: Tensor | None) -> Experts:
        """The same call on other numbers, given in the order of :meth:`tensors`."""
        stacked = isinstance(self.mu, Tensor)
        count = 1 if stacked else len(self.mu)
        mu, logvar, extra = tensors[:count], tensors[count : 2 * count], list(tensors[2 * count :])
        return Experts(mu[0], logvar[0], mask, extra) if stacked else Experts(list(mu), list(logvar), mask, extra)

    def to(self, dtype: torch.dtype, requires_grad: bool = True) -> Experts:
        """Fresh leaves on the CPU with the same values (and contiguous strides)."""
        mask = None if self.mask is None else self.mask.cpu()
        return self.replaced([leaf(t, dtype, requires_grad) for t in self.tensors()], mask)


def leaf(t: Tensor, dtype: torch.dtype, requires_grad: bool = True) -> Tensor:
    t = t.detach().cpu().to(dtype).clone(memory_format=torch.contiguous_format)
    return t.requires_grad_(requires_grad and dtype.is_floating_point)


def lay(t: Tensor, layout: str) -> Tensor:
    """The numbers of ``t`` with the strides of a layout; "expanded" repeats its first row."""
    if layout == "chunked" and t.dim() > 0:  # half of what an encoder returns
        return torch.cat([t, t], -1).requires_grad_(t.is_floating_point()).chunk(2, -1)[0]
    if layout == "strided" and t.dim() > 1:  # no dimension contiguous
        t = t.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif layout == "expanded" and t.dim() > 1 and t.shape[-2]:
        t = t[..., :1, :].clone().expand(t.shape)
    else:
        t = t.clone()
    return t.requires_grad_(t.is_floating_point())


def make_experts(
    count: int,
    rows: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "list",
    mask: str = "none",
    spread: float = 1.0,
    seed: int = 0,
    rubbish: float = float("nan"),
    scales: bool = False,
    device: str = "cpu",
) -> Experts:
    """Random experts. layout: list | chunked (views of encoder outputs) | stacked | strided | expanded (stride 0).

    mask: none | all | random | bits (every pattern in turn) | nothing; masked-out experts hold ``rubbish``.
    scales: e^(logvar / 2) takes the place of logvar.
    """
    g = torch.Generator().manual_seed(seed)
    mu = torch.randn(count, rows, dim, generator=g, dtype=torch.float64).to(dtype)
    logvar = (torch.randn(count, rows, dim, generator=g, dtype=torch.float64) * spread).clamp(-100, 100).to(dtype)
    if scales:  # such that neither they nor (distance / scale)^2 leave the type
        low, high = (-15, 20) if dtype == torch.float16 else (-40, 100)
        logvar = torch.exp(0.5 * logvar.clamp(low, high)).to(dtype)
    observed = None
    if mask == "all":
        observed = torch.ones(rows, count, dtype=torch.bool)
    elif mask == "nothing":
        observed = torch.zeros(rows, count, dtype=torch.bool)
    elif mask == "random":
        observed = torch.rand(rows, count, generator=g) > 0.4
    elif mask == "bits":
        observed = (torch.arange(rows)[:, None] >> torch.arange(count)) % 2 == 1
    if observed is not None and layout != "expanded":  # there all rows are one
        gone = ~observed.t()
        mu[gone], logvar[gone] = rubbish, rubbish
    mu, logvar = mu.to(device), logvar.to(device)
    observed = None if observed is None else observed.to(device)
    if layout == "stacked":
        return Experts(mu.requires_grad_(), logvar.requires_grad_(), observed)
    if layout == "chunked":
        hidden = [torch.cat([m, v], -1).requires_grad_() for m, v in zip(mu, logvar, strict=True)]
        halves = [h.chunk(2, -1) for h in hidden]
        return Experts([h[0] for h in halves], [h[1] for h in halves], observed)
    return Experts([lay(m, layout) for m in mu], [lay(v, layout) for v in logvar], observed)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "", floor: float = 0.0) -> None:
    """|actual - expected| <= tolerance * max(max |expected|, floor), infinities and NaN in the same places.

    An element of a half type may besides be off by its own rounding.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    kind = torch.finfo(actual.dtype)
    a, e = (t.detach().double().cpu() for t in (actual, expected))
    e = torch.where(
        e.abs() > kind.max * (1 + kind.eps / 4), e.sign() * torch.inf, e
    )  # what the type cannot hold is infinite in it
    assert torch.equal(a.isnan(), e.isnan()), (
        f"{what}: NaN in {int(a.isnan().sum())} places, expected {int(e.isnan().sum())}"
    )
    infinite = a.isinf() | e.isinf()
    assert torch.equal(a[infinite], e[infinite]), f"{what}: infinities differ"
    finite = ~(infinite | a.isnan())
    if not finite.any():
        return
    a, e = a[finite], e[finite]
    error, scale = (a - e).abs(), e.abs().max().clamp(min=floor)
    if actual.dtype in HALVES:
        error = (error - 0.5 * kind.eps * e.abs() - kind.smallest_normal * kind.eps).clamp(min=0)
    error = error.max()
    assert error <= tolerance * scale, f"{what}: relative error {float(error / scale):.2e}, allowed {tolerance:.0e}"
