"""Random numbers that depend on the seed and the epoch alone, so that an interrupted run continues unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# NumPy's legacy generator is not ours, but data sets of users draw from it
# ruff: noqa: NPY002


def derive(seed: int, *what: object) -> int:
    """A 63-bit seed for one use of a run's seed; different uses are unrelated."""
    return random.Random(repr((seed, *what))).getrandbits(63)  # seeds from strings go through SHA-512


def seed_all(seed: int) -> None:
    """Seed torch, NumPy and Python, all of which a user's data set or network may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave the global generators as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
