"""An evaluation gives the same in batches of any size, where each is told its first row: for every model."""

from __future__ import annotations

import pytest
import torch
from conftest import MODELS, of_the_model

from mmvae_fast.functional import row_seed
from mmvae_fast.models.samplers import FlowSampler, GaussianMixtureSampler

SEED, ROWS = 11, 7
SPLITS = [[3, 4], [1] * ROWS]


@pytest.fixture
def rows(request):
    g = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.rand(ROWS, 1, 2, 2, generator=g, dtype=torch.float64),
        "text": torch.randint(0, 5, (ROWS, 3), generator=g),
        "audio": torch.randn(ROWS, 2, 3, generator=g, dtype=torch.float64),
        "vector": torch.randn(ROWS, 4, generator=g, dtype=torch.float64),
    }
    observed = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    places = of_the_model(request)
    return {list(batch)[m]: batch[list(batch)[m]] for m in places}, torch.tensor(observed, dtype=torch.bool)[:, places]


def parts(batch, mask, split):
    """(batch, mask, seed) of every part."""
    begin = 0
    for n in split:
        some = slice(begin, begin + n)
        yield {k: x[some] for k, x in batch.items()}, None if mask is None else mask[some], row_seed(SEED, begin)
        begin += n


@pytest.mark.parametrize("split", SPLITS, ids=["3+4", "one by one"])
@pytest.mark.parametrize("masked", [False, True])
def test_log_likelihood(model, rows, masked, split):
    batch, mask = rows
    mask = mask if masked else None
    model.eval()
    for options in ({}, {"given": "text"}) if len(model.modalities) > 1 else ({},):
        whole = model.log_likelihood(batch, mask, n_samples=6, seed=SEED, chunk=4, **options)
        each = [
            model.log_likelihood(b, m, n_samples=6, seed=s, chunk=4, **options) for b, m, s in parts(batch, mask, split)
        ]
        torch.testing.assert_close(torch.cat(each), whole, rtol=1e-9, atol=1e-9)
    other = model.log_likelihood(batch, mask, n_samples=6, seed=row_seed(SEED, 1), chunk=4)
    assert not torch.allclose(other, model.log_likelihood(batch, mask, n_samples=6, seed=SEED, chunk=4))


@pytest.mark.parametrize("split", SPLITS, ids=["3+4", "one by one"])
@pytest.mark.parametrize("training", [False, True])
def test_forward(make_model, rows, training, split):
    """The mean over all rows is the mean over the parts, weighted by their rows. In training too: what hides messages
    or modalities goes by the row, and what a batch shares by the seed alone."""
    batch, mask = rows
    model = make_model(likelihood_weights="learned", modality_dropout=0.4).train(training)
    whole = model(batch, mask, seed=SEED)
    each = [(model(b, m, seed=s), len(m)) for b, m, s in parts(batch, mask, split)]

    def average(of):
        return sum(of(out) * n for out, n in each) / ROWS

    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(average(lambda out: out.loss), whole.loss, **close)
    torch.testing.assert_close(average(lambda out: out.elbo), whole.elbo, **close)
    torch.testing.assert_close(average(lambda out: out.kl), whole.kl, **close)
    for name, value in whole.log_likelihood.items():
        torch.testing.assert_close(average(lambda out, name=name: out.log_likelihood[name]), value, **close)


def test_inference(model, rows):
    """Draws of the posterior, reconstructions that draw private latents, and prior samples, which go on where others
    ended."""
    batch, mask = rows
    model.eval()
    whole = model.encode(batch, mask)
    drawn, point = whole.sample(2, SEED), whole.point
    reconstructed = model.reconstruct(batch, mask, seed=SEED)
    begin = 0
    for b, m, s in parts(batch, mask, [3, 4]):
        end = begin + len(m)
        q = model.encode(b, m)
        torch.testing.assert_close(q.point, point[begin:end], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(q.mu, whole.mu[begin:end], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(q.sample(2, s), drawn[:, begin:end], rtol=1e-9, atol=1e-9)
        for name, x in model.reconstruct(b, m, seed=s).items():
            torch.testing.assert_close(x, reconstructed[name][begin:end], rtol=1e-9, atol=1e-9)
        begin = end
    for prior in (None, GaussianMixtureSampler(3, model.latent_dim).double()):
        samples = model.sample(5, seed=SEED, prior=prior)
        for name, x in model.sample(2, seed=row_seed(SEED, 3), prior=prior).items():
            torch.testing.assert_close(x, samples[name][3:], rtol=1e-6, atol=1e-6)


def test_a_condition_has_rows_too(rows):
    batch, _ = rows
    model = MODELS["CVAE"]().double().eval()
    given = {"vector": batch["vector"]}
    whole = model.sample(2, condition=given, seed=SEED)
    part = model.sample(2, condition={"vector": batch["vector"][3:]}, seed=row_seed(SEED, 3))
    for name, x in part.items():
        torch.testing.assert_close(x, whole[name][:, 3:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["maf", "iaf"])
def test_samplers(kind):
    sampler = FlowSampler(kind, 3, layers=2, hidden=4)
    torch.testing.assert_close(sampler.sample(4, row_seed(SEED, 3)), sampler.sample(7, SEED)[3:])
