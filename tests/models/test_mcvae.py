"""What only mcVAE promises; its losses are compared with naive ones in test_losses."""

import pytest
import torch

from mmvae_fast.modalities import Vector
from mmvae_fast.models import MCVAE, VAE


def make(cls, **options):
    torch.manual_seed(0)
    return cls({"v": Vector(4, hidden=(6,))}, 3, **options)


def test_one_modality_is_a_vae():
    x = {"v": torch.randn(7, 4)}
    mask = torch.rand(7, 1) < 0.5
    torch.testing.assert_close(make(MCVAE, beta=2)(x, mask, seed=3), make(VAE, beta=2)(x, mask, seed=3))


def test_sparse_experts_have_one_dropout_rate():
    model = make(MCVAE, sparse=True)
    model.log_alpha.data = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(model.dropout, model.log_alpha.exp() / (1 + model.log_alpha.exp()))
    (mu,), (logvar,), _ = model.encode_experts({"v": torch.randn(5, 4)})
    torch.testing.assert_close(logvar.exp() / mu.square(), model.log_alpha.exp().expand(5, 3))
    assert not model.dropout.requires_grad


def test_the_sparse_divergence_falls_to_zero_as_dropout_takes_over():
    model = make(MCVAE, sparse=True)
    kl = []
    for log_alpha in (-6.0, -1.0, 2.0, 30.0):
        model.log_alpha.data.fill_(log_alpha)
        kl.append(model({"v": torch.randn(2, 4)}).kl)
    assert kl[0] > kl[1] > kl[2] > kl[3]
    assert kl[3] < 1e-6


def test_sparse_gradients_are_finite_at_a_mean_of_zero():
    model = make(MCVAE, sparse=True)
    for p in model.encoders.parameters():
        p.data.zero_()
    model({"v": torch.randn(2, 4)}).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_sparse_is_a_switch():
    with pytest.raises(TypeError, match="sparse is 1, expected True or False"):
        make(MCVAE, sparse=1)
