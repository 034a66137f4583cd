"""The GAN learns digits, conditional on their class or on an embedding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import BagOfWords, Image, Text, Vector
from mmvae_fast.systems import GAN, System, fit


def make(seed=0, modality=None, **options):
    torch.manual_seed(seed)
    return GAN({"image": modality or Image((1, 8, 8))}, **{"latent_dim": 16, "width": 16, **options})


def test_it_learns_the_intended_digit(digits, judge):
    images, labels = digits
    gan = make(classes=10, lr_generator=2e-3, lr_discriminator=4e-3, ema=0.98)
    history = fit(gan, {"image": images, "label": labels}, epochs=12, batch_size=64, progress=False)
    assert {"generator_loss", "discriminator_loss", "real_score", "fake_score"} < set(history[-1])
    asked = torch.arange(10).repeat_interleave(30)
    samples = gan.eval().sample(condition=asked, seed=0)
    assert samples.shape == (300, 1, 8, 8) and float(samples.min()) >= 0 and float(samples.max()) <= 1
    assert float((judge(samples) == asked).float().mean()) > 0.8
    assert float(samples[:30].std(0).mean()) > 0.3 * float(images[labels == 0].std(0).mean())  # no single prototype


WGAN_GP = {"loss": "wasserstein", "penalty": "gradient", "penalty_weight": 1.0, "spectral_norm": False}


@pytest.mark.parametrize(
    "options",
    [
        {**WGAN_GP, "discriminator_steps": 2},
        {"loss": "nonsaturating", "penalty": "r1", "penalty_weight": 1.0},
        {"loss": "least squares", "gradient_clip": 1.0},
    ],
)
def test_every_stabiliser_moves_samples_to_the_data(options):
    """Two numbers around (2, -1): the mean of what is generated comes close."""
    data = torch.tensor([2.0, -1.0]) + 0.1 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    gan = make(modality=Vector(2), lr_generator=2e-3, lr_discriminator=4e-3, ema=0.9, **options)
    history = fit(gan, {"image": data}, epochs=12, batch_size=64, progress=False)
    assert ("penalty" in history[0]) == ("penalty" in options)
    far = (gan.sample(200, seed=0).mean(0) - data.mean(0)).norm()
    assert float(far) < 0.7


def test_conditional_on_an_embedding():
    """x is twice its condition: what is asked for comes out."""
    g = torch.Generator().manual_seed(0)
    condition = torch.rand(512, 1, generator=g) * 2 - 1
    data = {"image": 2 * condition + 0.05 * torch.randn(512, 1, generator=g), "condition": condition}
    gan = make(modality=Vector(1), condition_dim=1, lr_generator=2e-3, lr_discriminator=4e-3, ema=0.9, width=8)
    fit(gan, data, epochs=15, batch_size=64, progress=False)
    asked = torch.tensor([[-0.8], [0.8]]).repeat_interleave(50, 0)
    samples = gan.sample(condition=asked, seed=0)
    assert float(samples[50:].mean() - samples[:50].mean()) > 1.5
    assert gan.preview() == {}


def test_missing_rows_are_left_out(digits):
    images, labels = (x[:40].clone() for x in digits)
    mask = torch.arange(40) % 3 > 0
    results = []
    for data in (
        {"image": torch.where(mask[:, None, None, None], images, torch.nan), "label": labels, "mask": mask[:, None]},
        {"image": images[mask], "label": labels[mask]},
    ):
        gan = make(classes=10)
        sums = gan.step(data, gan.optimizer(), seed=1)
        assert sums["generator_loss"][1] == int(mask.sum())
        results.append(gan.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True))
    nothing = {"image": images, "label": labels, "mask": torch.zeros(40, 1, dtype=torch.bool)}
    assert gan.step(nothing, gan.optimizer(), seed=1) == {}


@pytest.mark.parametrize("options", [{}, {"classes": 3}, {"condition_dim": 2}])
def test_files_and_seeds(options, tmp_path):
    gan = make(modality=Image((1, 16, 16)), **options)
    condition = {"classes": torch.tensor([0, 2]), "condition_dim": torch.rand(2, 2)}.get(next(iter(options), None))
    gan.save(tmp_path)
    again = System.load(tmp_path)
    assert again.config() == gan.config() and any(isinstance(m, nn.Conv2d) for m in gan.modules())
    ask = {"n": 2, "condition": condition, "seed": 3}
    assert torch.equal(again.sample(**ask), gan.sample(**ask))
    assert not torch.equal(gan.sample(**ask), gan.sample(**{**ask, "seed": 4}))
    assert gan.sample(0, None if condition is None else condition[:0]).shape == (0, 1, 16, 16)


@pytest.mark.parametrize("width", [1, 4, 12])
def test_pictures_at_any_width(width):
    gan = make(modality=Image((1, 16, 16)), width=width)
    history = fit(gan, {"image": torch.rand(6, 1, 16, 16)}, epochs=1, progress=False)
    assert gan.sample(2, seed=0).shape == (2, 1, 16, 16) and len(history) == 1


def test_networks_of_your_own(tmp_path):
    def networks():
        torch.manual_seed(5)
        return {"generator": nn.Linear(16, 3), "features": nn.Linear(3, 5)}

    gan = make(modality=Vector(3), networks=networks())
    fit(gan, {"image": torch.randn(20, 3)}, epochs=1, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"networks of its own for \['features', 'generator'\], got \[\]"):
        GAN.load(tmp_path / "last")
    again = GAN.load(tmp_path / "last", networks=networks())
    assert torch.equal(again.sample(4, seed=0), gan.sample(4, seed=0))


def test_bad_input(digits):
    for options, message in [
        ({"modality": Text(5, 3)}, "discrete, expected floating-point"),
        ({"classes": 3, "condition_dim": 2}, "at most one"),
        ({"loss": "l2"}, "loss is 'l2', expected one of"),
        ({"penalty": "gp"}, "penalty is 'gp'"),
        ({"network": "conv"}, "sides of 16 or more"),
        ({"ema": -1.0}, "ema is -1.0"),
        ({"ema": 2.0}, "ema is 2.0, expected a decay of 0 or more, below 1"),
        ({"ema": 1.0}, "ema is 1.0, expected a decay"),
        ({"lr_generator": 0}, "lr_generator is 0, expected a finite number above 0"),
        ({"lr_discriminator": 0.0}, "lr_discriminator is 0.0, expected"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0, expected"),
        ({"betas": (0.5,)}, r"betas is \(0.5,\), expected two numbers"),
        ({"betas": (0.5, 1.0)}, r"betas\[1\] is 1.0, expected a decay"),
        ({"modality": BagOfWords(["a", "b"])}, r"GAN: modality 'image' \(BagOfWords\) holds counts"),
        ({"modality": Vector(3, missing=True)}, r"GAN: modality 'image' is a Vector\(missing=True\)"),
        ({"networks": {"critic": nn.Linear(1, 1)}}, "networks names 'critic'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(TypeError, match="network 'generator' is a int"):
        make(networks={"generator": 3})
    with pytest.raises(ValueError, match="expected exactly one"):
        GAN({"a": Vector(1), "b": Vector(1)})
    images, labels = digits
    conditional = make(classes=10)
    for label in (None, labels.float(), labels - 1, labels[:5]):
        with pytest.raises(ValueError, match="data: label (is|holds)"):
            fit(conditional, {"image": images, **({} if label is None else {"label": label})}, epochs=1, progress=False)
    with pytest.raises(ValueError, match="has no loss that tells"):
        fit(conditional, {"image": images, "label": labels}, validation={}, epochs=1, progress=False)
    with pytest.raises(ValueError, match="data: batch names the modality 'label'"):
        fit(make(), {"image": images, "label": labels}, epochs=1, progress=False)
    with pytest.raises(ValueError, match="has no condition"):
        make().sample(2, condition=labels[:2])
    with pytest.raises(ValueError, match="pass n"):
        make().sample()
    with pytest.raises(ValueError, match="n is -1"):
        make().sample(-1)
