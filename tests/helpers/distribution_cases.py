"""Inputs of the functions of one distribution, described by the shapes of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from expert_cases import lay, leaf
from torch import Tensor

EXTRA_EVENT, CLASSES = 2, 5


@dataclass
class Arguments:
    """Tensors by name: gradients flow to the first, the others (data, mask) are only looked at."""

    differentiable: dict[str, Tensor]
    fixed: dict[str, Tensor]
    words: dict[str, str]  # the shapes of the differentiable, as make_arguments reads them

    def __getitem__(self, name: str) -> Tensor | None:
        return self.differentiable.get(name, self.fixed.get(name))

    @property
    def mask(self) -> Tensor | None:
        return self.fixed.get("mask")

    def tensors(self) -> list[Tensor]:
        return list(self.differentiable.values())

    def replaced(self, tensors: Sequence[Tensor], mask: Tensor | None) -> Arguments:
        fixed = {k: t for k, t in self.fixed.items() if k != "mask"}
        if mask is not None:
            fixed["mask"] = mask
        return Arguments(dict(zip(self.differentiable, tensors, strict=True)), fixed, self.words)

    def to(self, dtype: torch.dtype, requires_grad: bool = True) -> Arguments:
        """Fresh leaves on the CPU with the same values (and contiguous strides)."""
        return Arguments(
            {k: leaf(t, dtype, requires_grad) for k, t in self.differentiable.items()},
            {k: leaf(t, dtype if t.is_floating_point() else t.dtype, False) for k, t in self.fixed.items()},
            self.words,
        )


def make_arguments(
    differentiable: dict[str, str],
    fixed: dict[str, str],
    samples: int,
    rows: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "list",
    mask: str = "none",
    spread: float = 1.0,
    seed: int = 0,
    rubbish: float = float("nan"),
    device: str = "cpu",
) -> Arguments:
    """Shapes are words: K samples, B rows, D dims, E an extra event dimension, V classes, 1. "": no dimension.

    A mask is only made where ``fixed`` has one; then rows it leaves out hold ``rubbish``.
    """
    g = torch.Generator().manual_seed(seed)
    sizes = {"K": samples, "B": rows, "D": dim, "E": EXTRA_EVENT, "V": CLASSES, "1": 1}
    observed = None
    if "mask" in fixed and mask != "none":
        observed = torch.arange(rows) % 3 != 1 if mask in ("random", "bits") else torch.full((rows,), mask == "all")

    def make(name: str, word: str) -> Tensor:
        shape = [sizes[c] for c in word]
        if name == "classes":
            t = torch.randint(CLASSES, shape, generator=g)
        else:
            t = torch.randn(shape, generator=g, dtype=torch.float64)
            if "logvar" in name:
                t = (t * spread).clamp(-100, 100)
            elif name == "scale":
                t = torch.exp(0.5 * t)
            elif name == "bits":
                t = (t > 0).double()
            t = t.to(dtype)
        if observed is not None and "B" in word and layout != "expanded":
            gone = (slice(None),) * word.index("B") + (~observed,)
            t[gone] = rubbish if t.is_floating_point() else -100
        return lay(t.to(device), layout)

    arguments = Arguments(
        {name: make(name, word) for name, word in differentiable.items()},
        {name: make(name, word).detach() for name, word in fixed.items() if name != "mask"},
        differentiable,
    )
    if observed is not None:
        arguments.fixed["mask"] = observed.to(device)
    return arguments
