"""Flushing of denormals: on every thread that computes, and put back."""

import pytest
import torch

from mmvae_fast import _ext
from mmvae_fast.training.numerics import flushed_denormals


def survivors() -> int:
    """How many of many denormal products are not zero: enough of them to occupy several threads."""
    return int((torch.full((1_000_000,), 1e-30) * torch.full((1_000_000,), 1e-10)).count_nonzero())


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(not _ext.LOADED, reason="without the native ops, the calling thread alone is reached")
def test_every_thread_flushes_and_goes_back(threads):
    assert survivors() == 1_000_000
    with flushed_denormals():
        assert survivors() == 0
        with flushed_denormals():
            assert survivors() == 0
        assert survivors() == 0  # what was set before
    assert survivors() == 1_000_000


def test_an_error_does_not_leave_it_on():
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert survivors() == 1_000_000


def test_without_the_native_ops(monkeypatch):
    monkeypatch.setattr(_ext, "LOADED", False)
    with flushed_denormals():
        assert float(torch.tensor(1e-30) * torch.tensor(1e-10)) == 0.0
    assert survivors() == 1_000_000
