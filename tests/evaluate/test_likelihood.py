"""Log-likelihoods of subsets, against a model whose marginals are known."""

import math

import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")

from mmvae_fast.evaluate import log_likelihood, log_likelihoods
from mmvae_fast.evaluate.likelihood import Mean
from mmvae_fast.modalities import Vector
from mmvae_fast.models import CVAE, MHVAE, MMVAE, MVAE

W = {"a": 1.5, "b": -0.7}  # x_m = w_m z + noise of standard deviation 1


class Encode(nn.Module):
    """The exact expert of one linear modality: p(x_m | z) as a Gaussian in z."""

    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, x):
        return x / self.w, torch.full_like(x, -2 * math.log(abs(self.w)))


class Decode(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, z):
        return self.w * z


@pytest.fixture
def model():
    return MVAE({name: Vector(1, encoder=Encode(w), decoder=Decode(w)) for name, w in W.items()}, 1).double()


@pytest.fixture
def data():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.bool)
    return {"a": x[:, :1], "b": x[:, 1:], "mask": mask}


def exact(data, names):
    """log N(x; 0, w w' + I)."""
    w = torch.tensor([W[name] for name in names]).double()
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(w)).double(), w[:, None] * w + torch.eye(len(w)))
    return normal.log_prob(torch.cat([data[name] for name in names], 1))


def test_with_the_exact_posterior_every_estimate_is_exact(model, data):
    a = log_likelihood(model, data, ["a"], n_samples=2)
    torch.testing.assert_close(a[[0, 1, 2]], exact(data, "a")[[0, 1, 2]])
    assert a[3:].isnan().all()  # they lack it
    given = log_likelihood(model, data, ["b"], given=["a"], n_samples=2)
    torch.testing.assert_close(given[[0, 2]], (exact(data, "ab") - exact(data, "a"))[[0, 2]])
    assert given[[1, 3, 4]].isnan().all()


def test_the_table_is_the_means_of_these(model, data):
    found = log_likelihoods(model, data, n_samples=2, batch_size=2)
    assert list(found["joint"]) == ["a", "b", "a+b"] and list(found["conditional"]) == ["a", "b"]
    assert found["joint"]["b"].rows == 3 and found["conditional"]["a"].rows == 2
    values = exact(data, "b")[[0, 2, 3]]
    assert found["joint"]["b"].mean == pytest.approx(values.mean().item())
    assert found["joint"]["b"].error == pytest.approx(values.std().item() / math.sqrt(3))
    conditional = (exact(data, "ab") - exact(data, "b"))[[0, 2]].mean().item()
    assert found["conditional"]["b"].mean == pytest.approx(conditional)


def test_a_mean_of_nothing_is_not_a_number():
    empty = Mean.of(torch.full((3,), math.nan))
    assert math.isnan(empty.mean) and math.isnan(empty.error) and empty.rows == 0


def test_the_seed_decides(model, data):
    model = MVAE({name: Vector(1, hidden=(3,)) for name in W}, 1).double()
    first, again, other = (log_likelihood(model, data, n_samples=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(first[[0, 2]], again[[0, 2]]) and not torch.equal(first[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("cls", [MVAE, MMVAE, MHVAE])
def test_the_batch_size_changes_nothing(data, cls):
    torch.manual_seed(0)
    model = cls({name: Vector(1, hidden=(3,)) for name in W}, 1).double()
    whole, parts = (log_likelihoods(model, data, n_samples=3, batch_size=size) for size in (100, 2))
    for kind in ("joint", "conditional"):
        for name, mean in whole[kind].items():
            assert parts[kind][name] == pytest.approx(mean, rel=1e-9)


def test_a_condition_is_never_explained(data):
    model = CVAE({name: Vector(1, hidden=(3,)) for name in W}, 1, condition=["b"]).double()
    found = log_likelihoods(model, data, n_samples=500)
    assert list(found["joint"]) == ["a+b"] and list(found["conditional"]) == ["b"]
    assert found["joint"]["a+b"].mean == pytest.approx(found["conditional"]["b"].mean)


def test_bad_input(model, data):
    with pytest.raises(ValueError, match=r"subset and given both name \['a'\]"):
        log_likelihood(model, data, ["a"], given=["a"])
    with pytest.raises(ValueError, match="n_samples is 0, expected 1 or more"):
        log_likelihood(model, data, n_samples=0)
    with pytest.raises(ValueError, match="batch_size is 0, expected 1 or more"):
        log_likelihoods(model, data, batch_size=0)
    with pytest.raises(ValueError, match=r"subsets holds \['c'\]"):
        log_likelihood(model, data, ["c"])
