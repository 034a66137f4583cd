"""The discretized logistic likelihood of images, and the networks they can have."""

import json

import pytest
import torch

from mmvae_fast.modalities import Image, Modality
from mmvae_fast.modalities.image import discretized_logistic
from mmvae_fast.models import VAE

DISCRETIZED = "discretized_logistic"


@pytest.mark.parametrize("levels", [2, 16, 256])
@pytest.mark.parametrize(("mean", "log_scale"), [(0.3, -3.0), (-2.0, -12.0), (0.5, 5.0), (0.0, -40.0), (7.0, -6.0)])
def test_probabilities_of_all_levels_sum_to_one(levels, mean, log_scale):
    x = torch.linspace(0, 1, levels, dtype=torch.float64)
    params = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in (mean, log_scale)]
    log_p = discretized_logistic(x, *params, levels)
    torch.testing.assert_close(log_p.exp().sum(), torch.ones((), dtype=torch.float64))
    log_p.sum().backward()
    assert all(p.grad.isfinite() for p in params)


def test_it_is_the_difference_of_two_sigmoids():
    x = torch.linspace(0, 1, 256, dtype=torch.float64)[1:-1]
    mean, log_scale = torch.tensor(0.4).double(), torch.tensor(-2.0).double()
    upper, lower = (torch.sigmoid((x + sign * 0.5 / 255 - mean) / log_scale.exp()) for sign in (1, -1))
    torch.testing.assert_close(discretized_logistic(x, mean, log_scale, 256), (upper - lower).log())


def test_gradients_are_right():
    x = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    params = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *p: discretized_logistic(x, *p, 16), params)


def test_shapes_masks_and_predictions():
    image = Image((3, 5, 4), likelihood=DISCRETIZED, hidden=(8,))
    params = image.make_decoder(2)(torch.randn(6, 2))
    assert params.shape == (6, 2, 3, 5, 4)
    x = torch.rand(6, 3, 5, 4)
    log_p = image.log_likelihood(x, params.expand(7, 6, 2, 3, 5, 4))
    assert log_p.shape == (7, 6)
    x[1] = torch.nan
    masked = image.log_likelihood(x, params, torch.tensor([True, False, True, True, True, True]))
    assert masked[1] == 0
    torch.testing.assert_close(masked[2:], log_p[0, 2:])
    assert image.predict(params * 100).shape == (6, 3, 5, 4)
    assert 0 <= image.predict(params * 100).min() <= image.predict(params * 100).max() <= 1
    with pytest.raises(ValueError, match="values from -1 to -1, expected 0 to 1 for a discretized_logistic"):
        image.check_values("image", torch.full((1, 3, 5, 4), -1.0))


@pytest.mark.parametrize("network", ["mlp", "conv", "residual"])
def test_config_round_trip(network):
    image = Image((1, 8, 6), likelihood=DISCRETIZED, levels=16, network=network, width=4)
    again = Modality.from_config(json.loads(json.dumps(image.config())))
    assert again.config() == image.config()
    assert again.levels == 16
    assert again.make_decoder(3)(torch.randn(2, 3)).shape == (2, 2, 1, 8, 6)


def test_images_saved_before_there_was_a_choice_still_load():
    old = {"kind": "image", "shape": [1, 2, 2], "likelihood": "bernoulli", "scale": 1.0, "hidden": [4]}
    assert Modality.from_config(old).network == "mlp"


@pytest.mark.parametrize("levels", [1, 2.5, True])
def test_wrong_levels(levels):
    with pytest.raises(ValueError, match="levels is"):
        Image((1, 2, 2), likelihood=DISCRETIZED, levels=levels)


def test_a_model_learns_with_it():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE({"image": Image((1, 4, 4), likelihood=DISCRETIZED, hidden=(16,))}, 2)
    x = torch.rand(32, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(32, 1, 4, 4).contiguous()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(150):
        loss = model({"image": x}, seed=step).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 20
    assert model.log_likelihood({"image": x}, n_samples=5, seed=0).shape == (32,)
