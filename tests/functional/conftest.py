"""The tests draw their inputs from torch's generator: each starts it anew, so that each can be rerun alone."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
