"""Denormal numbers: peaked posteriors send them through every backward pass, several times slower than normal ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmvae_fast import _ext


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat denormals as zero on all threads that torch computes with, and put back what was set before.

    Without the native ops, on this thread alone.
    """
    if _ext.LOADED:
        before = torch.ops.mmvae_fast.flush_denormals(torch.ones(torch.get_num_threads(), dtype=torch.bool))
        try:
            yield
        finally:
            torch.ops.mmvae_fast.flush_denormals(before)
        return
    flushing = _flushing()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)


def _flushing() -> bool:
    return float(torch.tensor(1e-30) * torch.tensor(1e-10)) == 0.0  # torch has no getter
