"""Convolutional and residual networks: sizes, what norms do, and the models around them."""

import json

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Audio, Image, Modality, Vector
from mmvae_fast.modalities.convolutions import ConvDecoder, ConvEncoder
from mmvae_fast.models import MMVAE, MVAE, MultimodalVAE

SHAPES = [(8, 8), (1, 1), (2, 3), (5, 4), (1, 28, 28), (64, 1), (7, 9), (13, 101), (2, 3, 9, 6)]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_size_comes_back_exactly(shape, residual):
    options = {"width": 4, "residual": residual}
    encoder, decoder = ConvEncoder(shape, 3, **options).eval(), ConvDecoder(3, shape, **options).eval()
    for rows in (0, 1, 2):
        mu, logvar = encoder(torch.rand(rows, *shape))
        assert mu.shape == logvar.shape == (rows, 3)
        assert decoder(mu).shape == (rows, *shape)


def test_a_large_photo_is_halved_down_to_a_few_pixels():
    encoder, decoder = ConvEncoder((3, 224, 224), 2, width=2), ConvDecoder(2, (3, 224, 224), width=2)
    assert sum(isinstance(m, nn.Conv2d) for m in encoder.modules()) == 6
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in decoder.modules()) == 6
    assert encoder.head.in_features == 2 * 8 * 3 * 3
    x = torch.rand(2, 3, 224, 224)
    assert decoder(encoder(x)[0]).shape == x.shape


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("residual", [False, True])
def test_every_weight_learns(norm, residual):
    torch.manual_seed(0)
    encoder = ConvEncoder((9, 6), 3, width=4, residual=residual, norm=norm)
    decoder = ConvDecoder(3, (9, 6), width=4, residual=residual, norm=norm)
    mu, logvar = encoder(torch.rand(5, 9, 6))
    (decoder(mu + logvar) ** 2).sum().backward()
    for network in (encoder, decoder):
        for name, weight in network.named_parameters():
            assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_rows_know_nothing_of_each_other_but_in_batch_norm_s_training(norm):
    torch.manual_seed(0)
    x, z = torch.rand(6, 9, 6), torch.randn(6, 3)
    for network, whole in ((ConvEncoder((9, 6), 3, norm=norm), x), (ConvDecoder(3, (9, 6), norm=norm), z)):

        def run(part, network=network):
            out = network(part)
            return out[0] if isinstance(out, tuple) else out

        alike = torch.allclose(run(whole)[:2], run(whole[:2]), atol=1e-5)
        assert alike == (norm == "group")
        network.eval()
        torch.testing.assert_close(run(whole)[:2], run(whole[:2]))


@pytest.mark.parametrize("network", ["conv", "residual"])
@pytest.mark.parametrize("make", [Audio, Image])
def test_by_default_missing_rows_change_nothing_for_the_others(make, network):
    """Neither how many there are, nor the encoder's loss and gradient, training or not."""
    torch.manual_seed(0)
    model = MVAE({"picture": make((1, 9, 6) if make is Image else (9, 6), network=network, width=4)}, 3).train()
    x = torch.rand(8, *model.modalities["picture"].shape)
    there = torch.arange(8) < 5
    for rows, mask in ((x[:5], None), (x, there[:, None])):
        experts = model.encode_experts({"picture": rows}, mask)
        mu, logvar = experts[0][0][:5], experts[1][0][:5]
        model.zero_grad()
        (mu.square() + logvar).sum().backward()
        gradients = [p.grad.clone() for p in model.encoders.parameters()]
        if mask is None:
            expected = (mu, logvar, gradients)
        else:
            torch.testing.assert_close((mu, logvar, gradients), expected)


def test_one_pixel_survives_the_norm():
    torch.manual_seed(0)
    encoder = ConvEncoder((1, 1), 3, width=8)
    dark, bright = encoder(torch.zeros(1, 1, 1))[0], encoder(torch.ones(1, 1, 1))[0]
    assert not torch.allclose(dark, bright)


@pytest.mark.parametrize("network", ["mlp", "conv", "residual"])
def test_config_round_trip(network):
    audio = Audio((9, 6), network=network, width=4, norm="group", scale=0.5)
    again = Modality.from_config(json.loads(json.dumps(audio.config())))
    assert again.config() == audio.config()
    for mine, other in ((audio.make_encoder(3), again.make_encoder(3)), (audio.make_decoder(3), again.make_decoder(3))):
        other.load_state_dict(mine.state_dict())
    own = nn.Identity()
    assert Audio((9, 6), network=network, encoder=own).make_encoder(3) is own
    assert Audio((9, 6), network=network, decoder=own).make_decoder(3) is own


def test_a_description_from_before_there_was_a_choice_is_an_mlp():
    old = {key: value for key, value in Audio((9, 6)).config().items() if key not in ("network", "width", "norm")}
    assert Modality.from_config(old).network == "mlp"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "cnn"}, "Audio: network is 'cnn', expected one of"),
        ({"norm": "layer"}, "Audio: norm is 'layer', expected one of"),
        ({"width": 0}, "Audio: width is"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Audio((9, 6), **options)


def test_a_decoder_with_batch_norm_sees_all_rows_at_once_in_training():
    """On a CPU many samples are decoded in parts; batch statistics are those of all of them all the same."""
    torch.manual_seed(0)
    model = MVAE({"audio": Audio((8, 8), network="conv", width=2, norm="batch")}, 3)
    seen = []
    model.decoders["audio"].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    z = torch.randn(20, 60, 3)
    model.train()
    together = model.decode(z)["audio"]
    assert seen == [1200]
    norm = next(m for m in model.decoders["audio"].modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(together, model.decoders["audio"](z.flatten(0, 1)).reshape(20, 60, 8, 8))
    model.eval()
    seen.clear()
    in_parts = model.decode(z)["audio"]
    assert seen == [480, 480, 240]
    torch.testing.assert_close(in_parts, model.decoders["audio"](z.flatten(0, 1)).reshape(20, 60, 8, 8))


@pytest.mark.parametrize("network", ["conv", "residual"])
def test_models_train_save_and_load(tmp_path, network):
    torch.manual_seed(0)
    model = MMVAE({"audio": Audio((10, 7), network=network, width=4, scale=0.1), "v": Vector(2)}, 4, n_samples=2)
    t = torch.linspace(0, 3, 32)
    pictures = torch.sin(t[:, None, None] + torch.arange(7) / 3) * torch.linspace(0, 1, 10)[:, None]
    batch, mask = {"audio": pictures, "v": torch.stack([t.sin(), t.cos()], 1)}, {"audio": t > 0.3}
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(60):
        loss = model(batch, mask, seed=step).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    again = MultimodalVAE.load(model.eval().save(tmp_path / "model")).eval()
    for mine, other in zip(model.reconstruct(batch).values(), again.reconstruct(batch).values(), strict=True):
        assert torch.equal(mine, other)
    part = {name: x[:5] for name, x in batch.items()}
    torch.testing.assert_close(
        model.log_likelihood(part, n_samples=30, seed=1, chunk=7), model.log_likelihood(part, n_samples=30, seed=1)
    )
    compiled = torch.compile(model.train(), fullgraph=True, backend="eager")
    assert torch.isfinite(compiled(batch, seed=torch.tensor(0)).loss)
