"""What all tests share; cases and comparisons stand in helpers/."""

from __future__ import annotations

import os
import signal

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")


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
