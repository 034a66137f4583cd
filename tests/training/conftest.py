"""A tiny learnable data set: two views of the same hidden numbers."""

import pytest
import torch

from mmvae_fast.modalities import Text, Vector
from mmvae_fast.models import MVAE, MoPoE

ROWS = 40


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, 2, generator=g)
    return {
        "vector": hidden @ torch.randn(2, 6, generator=g) + 0.1 * torch.randn(ROWS, 6, generator=g),
        "text": torch.stack([(hidden[:, 0] > 0).long(), (hidden[:, 1] > 0).long() + 2], dim=1),
    }


@pytest.fixture
def make_model():
    """Equal models: the same weights every time."""

    def make(cls=MoPoE, **options):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            modalities = {"vector": Vector(6, hidden=(16,)), "text": Text(4, 2, hidden=(16,), embedding_dim=4)}
            return cls(modalities, 3, **options)

    return make


@pytest.fixture(params=[MVAE, MoPoE])
def any_model(request, make_model):
    return make_model(request.param)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing may be written but into ``out``: run in an empty folder and look at it afterwards."""
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    yield
    assert list(place.iterdir()) == []


QUIET = {"batch_size": 16, "progress": False, "accelerator": "cpu"}


@pytest.fixture
def quiet():
    return dict(QUIET)
