"""Missing modalities: by key, by mask, or by row, whatever the missing data hold."""

import pytest
import torch
from conftest import MODELS, moments

from mmvae_fast.models import MHVAE, MMVAE

SEED = 5
NEEDS = {"TELBO": ["decoders"], "JNF": ["joint"]}  # in the second stage, besides the encoders
NAMES = ["image", "text", "audio", "vector"]


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def run(model, batch, mask=None):
    model.zero_grad(set_to_none=True)
    output = model(batch, mask, seed=SEED)
    output.loss.backward()
    return output, gradients(model)


@pytest.mark.parametrize("gone", NAMES)
def test_an_absent_key_is_an_all_false_mask(model, several, batch, gone):
    nowhere = torch.zeros(6, dtype=torch.bool)
    masked, masked_gradients = run(model, batch, {gone: nowhere})
    absent, absent_gradients = run(model, {n: x for n, x in batch.items() if n != gone})
    torch.testing.assert_close(absent.loss, masked.loss)
    torch.testing.assert_close(absent.kl, masked.kl)
    assert masked.log_likelihood.get(gone, 0) == 0  # a condition has none
    assert gone not in absent.log_likelihood
    for name, gradient in absent_gradients.items():
        assert gradient is None or f".{gone}." not in f".{name}."
        if gradient is None:
            assert masked_gradients[name] is None or torch.count_nonzero(masked_gradients[name]) == 0
        else:
            torch.testing.assert_close(gradient, masked_gradients[name])
    without = {n: x for n, x in batch.items() if n != gone}
    torch.testing.assert_close(moments(model.encode(batch, {gone: nowhere})), moments(model.encode(without)))


def test_the_encoder_of_an_absent_modality_does_not_run(model, several, batch):
    class Forbidden(torch.nn.Module):
        def forward(self, x):
            raise AssertionError("ran")

    model.encoders["audio"] = Forbidden()
    model.decoders["audio"] = Forbidden()
    del batch["audio"]
    model(batch).loss.backward()
    model.encode(batch)
    model.log_likelihood(batch, n_samples=2)


def test_every_modality_is_encoded_and_decoded_once_a_step(model, batch, mask):
    """Or not at all: in one stage of two, some networks are not needed. Joint encoders have networks of their own."""
    parts = {"encoders": model.encoders, "decoders": model.decoders}
    if hasattr(model, "joint"):
        parts["joint"] = model.joint.encoders
    calls = []
    for part, networks in parts.items():
        for name, network in networks.items():
            network.register_forward_hook(lambda *_, what=(part, name): calls.append(what))
    model(batch, mask)
    assert len(set(calls)) == len(calls)
    needed = {"encoders", "decoders", *(["joint"] if parts.get("joint") else [])}
    if model.stages > 1:
        needed = {"joint", "decoders"} if model.stage == 1 else {"encoders", *NEEDS[type(model).__name__]}
    assert set(calls) == {(part, name) for part in needed for name in parts[part]}


def test_what_missing_rows_hold_has_no_effect(model, batch, mask):
    clean, clean_gradients = run(model, batch, mask)
    garbage = {"image": float("nan"), "text": -999, "audio": float("inf"), "vector": float("nan")}
    dirty = {}
    for i, (name, x) in enumerate(batch.items()):
        missing = ~mask[:, i].reshape(-1, *[1] * (x.dim() - 1))
        dirty[name] = x.masked_fill(missing, garbage[name])
    output, dirty_gradients = run(model, dirty, mask)
    torch.testing.assert_close(output, clean, rtol=0, atol=0)
    torch.testing.assert_close(dirty_gradients, clean_gradients, rtol=0, atol=0)
    assert all(torch.isfinite(g).all() for g in dirty_gradients.values() if g is not None)
    torch.testing.assert_close(moments(model.encode(dirty, mask)), moments(model.encode(batch, mask)), rtol=0, atol=0)
    torch.testing.assert_close(
        model.log_likelihood(dirty, mask, 3, seed=1), model.log_likelihood(batch, mask, 3, seed=1), rtol=0, atol=0
    )


def test_nan_in_an_observed_row_is_not_hidden(model, batch):
    batch["vector"][2, 1] = float("nan")
    assert model(batch).loss.isnan()


def test_all_forms_of_a_mask_agree(model, several, batch, mask):
    by_name = {name: mask[:, i] for i, name in enumerate(NAMES)}
    a, b = model(batch, mask, seed=1), model(batch, by_name, seed=1)
    torch.testing.assert_close(a, b)
    everything = model(batch, seed=1)
    torch.testing.assert_close(model(batch, torch.ones(6, 4, dtype=torch.bool), seed=1), everything)
    torch.testing.assert_close(model(batch, {}, seed=1), everything)
    some = {"text": mask[:, 1]}
    full = torch.ones(6, 4, dtype=torch.bool)
    full[:, 1] = mask[:, 1]
    torch.testing.assert_close(model(batch, some, seed=1), model(batch, full, seed=1))


def test_an_absent_key_wins_over_a_mask(model, several, batch, mask):
    del batch["image"]
    without = mask.clone()
    without[:, 0] = False
    torch.testing.assert_close(moments(model.encode(batch, mask)), moments(model.encode(batch, without)))


def test_nothing_observed_is_the_prior(model, batch, mask):
    nothing = torch.zeros_like(mask)
    q = model.encode(batch, nothing)
    if isinstance(model, MMVAE):
        torch.testing.assert_close(q.mu, model.prior.mean.expand(6, -1))
        torch.testing.assert_close(q.logvar.exp(), model.prior.variance.expand(6, -1))
        z = q.sample(20_000, seed=1)
        torch.testing.assert_close(z.mean(0), q.mu, atol=0.06, rtol=0)
        torch.testing.assert_close(z.var(0), q.logvar.exp(), atol=0.15, rtol=0)
        torch.testing.assert_close(q.log_prob(z), model.prior.log_prob(z))
    elif not isinstance(model, MHVAE):  # whose prior of the level it decodes is another: see test_mhvae
        assert torch.count_nonzero(q.mu) == torch.count_nonzero(q.point) == torch.count_nonzero(q.logvar) == 0
    assert torch.count_nonzero(model.log_likelihood(batch, nothing, 3)) == 0
    output, grads = run(model, batch, nothing)
    assert output.loss == output.kl == output.elbo == 0
    assert all(g is None or torch.count_nonzero(g) == 0 for g in grads.values())


def test_an_empty_batch_costs_nothing(model, batch):
    empty = {name: x[:0] for name, x in batch.items()}
    for mask in (None, torch.zeros(0, len(batch), dtype=torch.bool)):
        output, grads = run(model, empty, mask)
        assert output.loss == output.elbo == output.kl == 0
        assert all(g is None or torch.count_nonzero(g) == 0 for g in grads.values())
    assert model.encode(empty).mu.shape == (0, 5)
    assert model.log_likelihood(empty, n_samples=2).shape == (0,)
    for name, x in model.reconstruct(empty).items():
        assert x.shape == (0, *model.modalities[name].shape)


def test_the_caller_keeps_his_batch(model, batch, mask):
    before = {name: x.clone() for name, x in batch.items()}
    first = next(iter(batch))
    kept, by_name = mask.clone(), {first: mask[:, 0]}
    for chosen in (mask, by_name):
        model(batch, chosen).loss.backward()
        model.encode(batch, chosen)
        model.reconstruct(batch, chosen)
        model.log_likelihood(batch, chosen, n_samples=2)
    assert list(batch) == list(before)
    torch.testing.assert_close(batch, before, rtol=0, atol=0)
    assert torch.equal(mask, kept)
    assert list(by_name) == [first]


class Fragile(torch.nn.Module):
    """An encoder that makes infinities of a row of zeros, which is what a missing row is given as."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        mu, logvar = self.encoder(x)
        blank = (x == 0).flatten(1).all(1, keepdim=True)
        return torch.where(blank, torch.nan, mu), torch.where(blank, torch.inf, logvar)


@pytest.mark.parametrize("kind", ["MVAE", "MVAE+2", "MMVAE", "MMJSD", "MCVAE", "CRMVAE", "MMVAE+", "DMVAE"])
def test_what_encoders_make_of_missing_rows_does_not_matter(kind, batch, mask):
    model = MODELS[kind](beta=1.0).double()
    expected = run(model, batch, mask)
    for name in NAMES:
        model.encoders[name] = Fragile(model.encoders[name])
    batch["text"] = batch["text"] + (batch["text"] == 0)  # no observed row of zeros
    model.encoders["text"] = model.encoders["text"].encoder
    output, fragile = run(model, batch, mask)
    assert output.loss.isfinite()
    assert len(fragile) == len(expected[1])
    assert all(g is None or g.isfinite().all() for g in fragile.values())
