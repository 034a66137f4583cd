"""Random experts in every layout and mask the functions accept, and how results are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass
class Experts:
    """M experts of one layout, and which of them each row observes."""

    mu: list[Tensor] | Tensor
    logvar: list[Tensor] | Tensor
    mask: Tensor | None

    def tensors(self) -> list[Tensor]:
        return [self.mu, self.logvar] if isinstance(self.mu, Tensor) else [*self.mu, *self.logvar]

    def to(self, dtype: torch.dtype, requires_grad: bool = True) -> Experts:
        """Fresh leaves with the same values (and contiguous strides)."""

        def leaf(t: Tensor) -> Tensor:
            return t.detach().to(dtype).clone(memory_format=torch.contiguous_format).requires_grad_(requires_grad)

        if isinstance(self.mu, Tensor):
            return Experts(leaf(self.mu), leaf(self.logvar), self.mask)
        return Experts([leaf(t) for t in self.mu], [leaf(t) for t in self.logvar], self.mask)


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
) -> Experts:
    """Random experts. layout: list | chunked (views of encoder outputs) | stacked | strided (no dimension contiguous).

    mask: none | all | random | bits (every pattern in turn) | nothing; masked-out experts hold ``rubbish``.
    """
    g = torch.Generator().manual_seed(seed)
    mu = torch.randn(count, rows, dim, generator=g, dtype=torch.float64).to(dtype)
    logvar = (torch.randn(count, rows, dim, generator=g, dtype=torch.float64) * spread).clamp(-100, 100).to(dtype)
    observed = None
    if mask == "all":
        observed = torch.ones(rows, count, dtype=torch.bool)
    elif mask == "nothing":
        observed = torch.zeros(rows, count, dtype=torch.bool)
    elif mask == "random":
        observed = torch.rand(rows, count, generator=g) > 0.4
    elif mask == "bits":
        observed = (torch.arange(rows)[:, None] >> torch.arange(count)) % 2 == 1
    if observed is not None:
        gone = ~observed.t()
        mu[gone], logvar[gone] = rubbish, rubbish
    if layout == "stacked":
        return Experts(mu.requires_grad_(), logvar.requires_grad_(), observed)
    if layout == "list":
        return Experts([m.clone().requires_grad_() for m in mu], [v.clone().requires_grad_() for v in logvar], observed)
    if layout == "chunked":
        hidden = [torch.cat([m, v], -1).requires_grad_() for m, v in zip(mu, logvar, strict=True)]
        halves = [h.chunk(2, -1) for h in hidden]
        return Experts([h[0] for h in halves], [h[1] for h in halves], observed)
    assert layout == "strided"
    wide = [m.t().contiguous().t().requires_grad_() for m in mu]
    return Experts(wide, [v.t().contiguous().t().requires_grad_() for v in logvar], observed)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """|actual - expected| <= tolerance * max |expected|, infinities and NaN in the same places."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    limit = torch.finfo(actual.dtype).max
    a, e = actual.detach().double(), expected.detach().double()
    e = torch.where(e.abs() > limit, e.sign() * torch.inf, e)  # what the type cannot hold is infinite in it
    assert torch.equal(a.isnan(), e.isnan()), (
        f"{what}: NaN in {int(a.isnan().sum())} places, expected {int(e.isnan().sum())}"
    )
    infinite = a.isinf() | e.isinf()
    assert torch.equal(a[infinite], e[infinite]), f"{what}: infinities differ"
    finite = ~(infinite | a.isnan())
    if not finite.any():
        return
    a, e = a[finite], e[finite]
    error, scale = (a - e).abs().max(), e.abs().max()
    assert error <= tolerance * scale, f"{what}: relative error {float(error / scale):.2e}, allowed {tolerance:.0e}"
