"""The autoencoder: a model like the others, without noise."""

from __future__ import annotations

import pytest
import torch

from mmvae_fast.modalities import Image
from mmvae_fast.models import VAE, MultimodalVAE
from mmvae_fast.models.samplers import fit_sampler
from mmvae_fast.systems import Autoencoder
from mmvae_fast.training import fit


def make(cls=Autoencoder, **options):
    torch.manual_seed(0)
    return cls({name: Image((1, 4, 8), hidden=(64,)) for name in ("top", "bottom")}, 8, **options)


def test_it_learns_better_than_pca(digits):
    pca = pytest.importorskip("sklearn.decomposition").PCA
    pytest.importorskip("lightning")
    images = digits[0]
    torch.manual_seed(0)
    model = Autoencoder({"image": Image((1, 8, 8), hidden=(128,))}, 8)
    history = fit(model, {"image": images[:1400]}, epochs=20, lr=5e-3, progress=False)
    assert history[-1]["kl"] == 0
    flat = images.flatten(1).numpy()
    projection = pca(8).fit(flat[:1400])
    linear = (projection.inverse_transform(projection.transform(flat[1400:])) - flat[1400:]).__pow__(2).mean()
    decoded = model.eval().reconstruct({"image": images[1400:]})["image"]
    assert float((decoded - images[1400:]).square().mean()) < 0.9 * linear


def test_the_code_is_the_mean_of_what_is_observed(halves):
    model = make().eval()
    batch = {name: x[:4].clone() for name, x in halves[0].items()}
    mask = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    batch["top"][2:], batch["bottom"][1], batch["bottom"][3] = torch.nan, torch.nan, torch.nan
    a, b = model.encoders["top"](batch["top"])[0], model.encoders["bottom"](batch["bottom"])[0]
    q = model.encode(batch, mask)
    torch.testing.assert_close(q.mu, torch.stack([(a[0] + b[0]) / 2, a[1], b[2], torch.zeros(8)]))
    torch.testing.assert_close(q.sample(seed=1), q.mu)  # a point


def test_the_loss_is_the_reconstruction_of_what_is_there(halves):
    model = make(likelihood_weights={"top": 2.0, "bottom": 0.5})
    batch = {name: x[:3].clone() for name, x in halves[0].items()}
    mask = {"top": torch.tensor([True, False, True])}
    batch["top"][1] = torch.nan
    out = model(batch, mask)
    code = model.encode(batch, mask).mu
    ll = {}
    for name, x in batch.items():
        p = model.decode(code, name)[name]
        rows = (x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3))
        ll[name] = torch.where(mask[name], rows, 0.0).mean() if name in mask else rows.mean()
    torch.testing.assert_close(out.loss, -(2 * ll["top"] + 0.5 * ll["bottom"]), rtol=1e-4, atol=1e-4)
    assert out.kl.item() == 0 and out.elbo.item() == pytest.approx(sum(ll.values()).item(), rel=1e-4)
    assert torch.equal(out.loss, model(batch, mask, beta=3.0, seed=5).loss)
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_dropout_hides_from_the_code_only(halves):
    model = make(modality_dropout=0.5).train()
    batch = {name: x[:200] for name, x in halves[0].items()}
    out = model(batch, seed=0)
    assert set(out.log_likelihood) == {"top", "bottom"}
    assert out.loss != model(batch, seed=1).loss
    kept = model._dropped(model._check(batch, None), torch.tensor([0])).mask
    code = model.encode(batch, kept).mu
    scores = model.scores(model._check(batch, None), code)
    torch.testing.assert_close(out.loss, -scores.mean(-1).sum())
    assert torch.equal(model.eval()(batch, seed=0).loss, model(batch, seed=1).loss)


def test_what_it_cannot_do_it_says(halves):
    model = make()
    with pytest.raises(TypeError, match="no prior to sample"):
        model.sample(3)
    with pytest.raises(TypeError, match="no density"):
        model.log_likelihood(halves[0])
    with pytest.raises(TypeError, match="beta"):
        make(beta=2.0)
    z = model.encode(halves[0]).mu.detach()
    pytest.importorskip("sklearn")
    assert model.sample(3, prior=fit_sampler(z, "gmm", n_components=2), seed=0)["top"].shape == (3, 1, 4, 8)
    assert model.sample(z=z[:2])["top"].shape == (2, 1, 4, 8)


def test_files(halves, tmp_path):
    model = make(modality_dropout=0.25).eval()
    model.save(tmp_path)
    again = Autoencoder.load(tmp_path).eval()
    assert again.config() == model.config()
    batch = {"top": halves[0]["top"][:5]}
    assert torch.equal(again.translate(batch, "bottom"), model.translate(batch, "bottom"))
    with pytest.raises(ValueError, match="holds a model of class Autoencoder, expected VAE"):
        VAE.load(tmp_path)
    any_model = MultimodalVAE.load(tmp_path).eval()
    assert type(any_model) is Autoencoder
    assert torch.equal(any_model.translate(batch, "bottom"), model.translate(batch, "bottom"))
