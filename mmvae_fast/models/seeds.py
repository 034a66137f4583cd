"""Seeds of the independent draws of one step, from the step's own."""

from __future__ import annotations

from torch import Tensor


def branch(seed: Tensor, i: int) -> Tensor:
    """The seed of the i-th independent draw of a step: odd strides of 2^64 / golden ratio (Steele et al. 2014)."""
    step = i * 0x9E3779B97F4A7C15 % 2**64
    return seed + (step - 2**64 if step >= 2**63 else step)
