"""What all tests share; cases and comparisons stand in helpers/."""

from __future__ import annotations

import os
import signal

import pytest

# Tensors are tiny here: on a busy machine two threads that wait for each other made the suite five times as long. Tests
# of threads set their number themselves. (Before torch is imported, and for every process a test starts.)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CUDA tests are the CPU's with another device; without one they say why they do not run."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works():
    """A suite started in the background (CI, `&`) inherits an ignored SIGINT; the tests of Ctrl-C, and the processes
    they start, need it to work as it does in a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
