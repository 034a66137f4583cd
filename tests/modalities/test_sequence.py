"""Time series: what the recurrent networks see, and that a model learns with them."""

import json

import pytest
import torch

from mmvae_fast.modalities import Modality, Sequence, Vector
from mmvae_fast.models import MVAE, MultimodalVAE


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("hidden", [(5,), (5, 5)])
def test_the_encoder_reads_every_step_and_the_decoder_writes_different_ones(cell, hidden):
    torch.manual_seed(0)
    series = Sequence(7, 2, cell=cell, hidden=hidden)
    x = torch.randn(3, 7, 2, requires_grad=True)
    mu, logvar = series.make_encoder(4)(x)
    (gradient,) = torch.autograd.grad((mu + logvar).sum(), x)
    assert (gradient.abs().sum((0, 2)) > 0).all()
    z = torch.randn(3, 4)
    decoder = series.make_decoder(4)
    params = decoder(z)
    assert all(not torch.allclose(params[:, t], params[:, t + 1]) for t in range(6))
    torch.testing.assert_close(decoder(z[1:2]), params[1:2])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_config_round_trip(cell):
    series = Sequence(7, 2, cell=cell, hidden=(5, 5), scale=0.3)
    again = Modality.from_config(json.loads(json.dumps(series.config())))
    assert again.config() == series.config()
    again.make_decoder(3).load_state_dict(series.make_decoder(3).state_dict())
    again.make_encoder(3).load_state_dict(series.make_encoder(3).state_dict())


def test_a_model_tells_a_wave_from_its_phase_and_back(tmp_path):
    torch.manual_seed(0)
    angle = 6.2832 * torch.rand(64, 1)
    steps = torch.linspace(0, 6.2832, 9)
    batch = {
        "wave": torch.sin(angle + steps)[..., None],
        "phase": torch.cat([angle.sin(), angle.cos()], 1),
    }
    modalities = {
        "wave": Sequence(9, 1, cell="gru", hidden=(16,), scale=0.2),
        "phase": Vector(2, scale=0.2, hidden=(32,)),
    }
    model = MVAE(modalities, 2)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(150):
        loss = model(batch, seed=step).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    for name, given in (("wave", "phase"), ("phase", "wave")):
        error = (model.translate({given: batch[given]}, to=name) - batch[name]).square().mean()
        assert error < 0.1 * batch[name].square().mean()
    again = MultimodalVAE.load(model.save(tmp_path / "model")).eval()
    assert torch.equal(again.reconstruct(batch)["wave"], model.reconstruct(batch)["wave"])
