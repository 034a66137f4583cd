"""Seeds of the independent draws of one step, from the step's own."""

from __future__ import annotations

import torch
from torch import Tensor


def branch(seed: Tensor, i: int) -> Tensor:
    """The seed of the i-th independent draw of a step: odd strides of 2^64 / golden ratio (Steele et al. 2014). A first
    row (see :func:`mmvae_fast.functional.row_seed`) stays."""
    step = i * 0x9E3779B97F4A7C15 % 2**64
    step = step - 2**64 if step >= 2**63 else step
    return seed + step if seed.numel() == 1 else torch.cat([seed[:1] + step, seed[1:]])


def of_all_rows(seed: Tensor) -> Tensor:
    """The seed of a draw that rows share: the same whichever of them there are."""
    return seed.reshape(-1)[:1]
