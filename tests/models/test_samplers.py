"""Samplers fitted to latents: they have the latents' distribution, and stand in for the prior."""

import math

import pytest
import torch
from conftest import modalities

from mmvae_fast.models import MMVAEPlus, MoPoE
from mmvae_fast.models.samplers import KINDS, fit_sampler, load_sampler, save_sampler

FIT = {"gmm": {"n_components": 4}, "maf": {"epochs": 15}, "iaf": {"epochs": 15}}


@pytest.fixture(scope="module")
def latents():
    """Two correlated clusters in two dimensions."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 2, generator=g) @ torch.tensor([[0.6, 0.3], [0.0, 0.3]])
    return z + torch.where(torch.rand(2000, 1, generator=g) < 0.3, 2.0, -1.0)


@pytest.fixture(scope="module", params=KINDS)
def sampler(request, latents):
    return fit_sampler(latents, request.param, seed=1, **FIT[request.param])


def test_samples_have_the_latents_moments(sampler, latents):
    z = sampler.sample(4000, seed=3)
    torch.testing.assert_close(z.mean(0), latents.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(z.t().cov(), latents.t().cov(), atol=0.35, rtol=0)


def test_the_density_fits_better_than_one_gaussian(sampler, latents):
    gaussian = torch.distributions.MultivariateNormal(latents.mean(0), latents.t().cov())
    with torch.no_grad():
        assert sampler.log_prob(latents).mean() > gaussian.log_prob(latents).mean() + 0.1


def test_the_density_integrates_to_one(sampler):
    grid = torch.linspace(-8, 8, 321)
    points = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        total = sampler.log_prob(points).exp().sum() * (16 / 320) ** 2
    assert math.isclose(total.item(), 1.0, abs_tol=0.02)


def test_a_sample_depends_on_its_seed_and_row(sampler):
    a = sampler.sample(6, seed=5)
    assert torch.equal(sampler.sample(6, seed=5), a)
    torch.testing.assert_close(sampler.sample(3, seed=5), a[:3])
    assert not torch.equal(sampler.sample(6, seed=6), a)


def test_a_fit_is_reproducible_and_leaves_generators_alone(latents):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, second = (fit_sampler(latents, "maf", seed=2, epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.sample(5, seed=0), second.sample(5, seed=0))


def test_it_is_saved_and_loaded(sampler, tmp_path):
    again = load_sampler(save_sampler(sampler, tmp_path))
    assert torch.equal(again.sample(5, seed=0), sampler.sample(5, seed=0))
    (tmp_path / "sampler.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="expected the format"):
        load_sampler(tmp_path)


def test_models_draw_from_it():
    z = torch.randn(100, 5) * 0.1 + 3
    sampler = fit_sampler(z, "gmm", n_components=2)
    for model in (MoPoE(modalities(), 5), MMVAEPlus(modalities(), 5, private_dim=2)):
        drawn = model.sample(4, seed=1, prior=sampler)
        assert drawn["image"].shape == (4, 1, 2, 2)
        assert not torch.equal(drawn["image"], model.sample(4, seed=1)["image"])
    model = MoPoE(modalities(), 5)
    expected = model.sample(z=sampler.sample(4, seed=1))
    torch.testing.assert_close(model.sample(4, seed=1, prior=sampler), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "own"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_the_latents_type_is_the_samplers(kind, dtype, own, tmp_path):
    z = torch.randn(40, 3).to(dtype)
    sampler = fit_sampler(z, kind, **({"n_components": 2} if kind == "gmm" else {"epochs": 1}))
    assert sampler.sample(2, seed=0).dtype == sampler.log_prob(z.to(own)).dtype == own
    again = load_sampler(save_sampler(sampler, tmp_path))
    assert torch.equal(again.sample(2, seed=0), sampler.sample(2, seed=0))
    with pytest.raises(TypeError, match=f"log_prob: z is torch.float16, expected {own} like the sampler"):
        sampler.log_prob(z.half())
    with pytest.raises(ValueError, match=r"log_prob: z has shape \[40, 2\], expected \[..., 3\]"):
        sampler.log_prob(z[:, :2])
    with pytest.raises(ValueError, match=r"sample: prior drew latents .* \[4, 3\], expected \[4, 5\] like the model's"):
        MoPoE(modalities(), 5).sample(4, prior=sampler)


@pytest.mark.parametrize(
    ("z", "kind", "error", "message"),
    [
        (torch.randn(5), "gmm", ValueError, r"shape \[5\]"),
        (torch.randn(5, 2), "gan", ValueError, "kind is 'gan'"),
        (torch.randn(5, 2), "gmm", ValueError, "got 5 latents"),
        (torch.zeros(5, 2, dtype=torch.int64), "maf", TypeError, "torch.int64"),
        (torch.full((30, 2), float("nan")), "gmm", ValueError, "finite"),
    ],
)
def test_what_cannot_be_fitted(z, kind, error, message):
    with pytest.raises(error, match=message):
        fit_sampler(z, kind)
