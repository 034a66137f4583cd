"""KL warm-up (Bowman et al. 2016; Sønderby et al. 2016): let the decoders learn before the KL divergence bites."""

from __future__ import annotations


def warmup(step: int, steps: float) -> float:
    """The share of beta at a step: linear from 0 at step 0 to 1 at ``steps``, then 1."""
    return min(1.0, step / steps) if steps > 0 else 1.0
