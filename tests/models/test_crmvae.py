"""What only CRMVAE promises; its loss is compared with a naive one in test_losses."""

import torch
from conftest import modalities

from mmvae_fast.modalities import Vector
from mmvae_fast.models import CRMVAE


def test_the_default_beta_is_the_authors():
    assert CRMVAE(modalities(), 5).beta == 2.5


def test_one_modality_is_half_a_vae():
    """q is its only expert: nothing to coordinate, and its two reconstructions are draws of one distribution."""

    class Constant(torch.nn.Module):
        def forward(self, z):
            return torch.ones(z.shape[0], 4)

    model = CRMVAE({"v": Vector(4, hidden=(6,), decoder=Constant())}, 3, beta=2.0)
    output = model({"v": torch.randn(5, 4)})
    expected = 0.5 * (2.0 * output.kl - output.log_likelihood["v"])
    torch.testing.assert_close(output.loss.detach(), expected)
