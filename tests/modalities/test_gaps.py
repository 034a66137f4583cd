"""Entries missing inside a vector: what they count, what the encoder sees, and every model around them."""

import conftest as models
import pytest
import torch

from mmvae_fast.modalities import Vector
from mmvae_fast.models import MVAE

NAN = float("nan")
LIKELIHOODS = {"normal": torch.distributions.Normal, "laplace": torch.distributions.Laplace}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_only_what_is_there_counts(likelihood):
    modality = Vector(3, likelihood=likelihood, scale=0.7, missing=True)
    x = torch.tensor([[1.0, NAN, 2.0], [NAN, NAN, NAN], [0.5, 0.1, -1.0]], dtype=torch.float64)
    params = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    log_p = modality.log_likelihood(x, params)
    each = LIKELIHOODS[likelihood](params, 0.7).log_prob(x.nan_to_num())
    torch.testing.assert_close(log_p, (each * ~x.isnan()).sum(-1))
    (gradient,) = torch.autograd.grad(log_p.sum(), params)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient != 0, ~x.isnan().expand(4, -1, -1))
    mask = torch.tensor([False, True, True])
    torch.testing.assert_close(modality.log_likelihood(x, params, mask), log_p * mask)
    complete = Vector(3, likelihood=likelihood, scale=0.7)
    torch.testing.assert_close(log_p[:, 2], complete.log_likelihood(x[2:], params[:, 2:])[:, 0])


def test_the_encoder_sees_a_gap_as_a_gap():
    encoder = Vector(2, missing=True, hidden=(4,)).make_encoder(3)
    x = torch.tensor([[NAN, 1.0], [0.0, 1.0]])
    mu, _ = encoder(x)
    assert torch.isfinite(mu).all()
    assert not torch.allclose(mu[0], mu[1])  # not the number 0


def test_values():
    with_gaps = Vector(2, missing=True)
    with_gaps.check_values("v", torch.tensor([[NAN, 1.0]]))
    with pytest.raises(ValueError, match="modality 'v': holds NaN or infinite"):
        with_gaps.check_values("v", torch.tensor([[float("inf"), 1.0]]))
    with pytest.raises(ValueError, match="modality 'v': holds NaN or infinite"):
        Vector(2).check_values("v", torch.tensor([[NAN, 1.0]]))


def test_missing_entries_are_filled_in():
    """Two numbers that are always equal, one of them often missing: the model learns to tell it."""
    torch.manual_seed(0)
    t = torch.randn(256, 1)
    x = torch.cat([t, t, -t], 1)
    x[torch.rand(256, 3) < 0.3] = NAN
    model = MVAE({"v": Vector(3, scale=0.1, missing=True, hidden=(32,))}, 2)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(300):
        loss = model({"v": x}, seed=step).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    some = torch.tensor([[1.0, NAN, NAN], [NAN, -0.5, NAN], [NAN, NAN, 1.0]])
    expected = torch.tensor([1.0, -0.5, -1.0])[:, None] * torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(model.eval().reconstruct({"v": some})["v"], expected, atol=0.2, rtol=0)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_takes_gaps(name, monkeypatch):
    plain = models.modalities

    def gappy():
        return {**plain(), "vector": Vector(4, likelihood="laplace", scale=1.3, hidden=(6,), missing=True)}

    monkeypatch.setattr(models, "modalities", gappy)
    torch.manual_seed(0)
    model = models.MODELS[name]()
    modalities = {n: m for n, m in gappy().items() if n in model.modalities}
    batch = {
        n: torch.randint(0, 5, (6, *m.shape)) if n == "text" else torch.rand(6, *m.shape) for n, m in modalities.items()
    }
    gaps = torch.rand(6, 4) < 0.4
    batch["vector"] = torch.where(gaps, NAN, batch["vector"])
    mask = {"vector": torch.tensor([True, True, False, True, True, False])}
    loss = model(batch, mask, seed=1).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(w.grad).all() for w in model.parameters() if w.grad is not None)
    assert torch.isfinite(model.eval().log_likelihood(batch, mask, n_samples=3, seed=1)).all()
    assert all(torch.isfinite(x.double()).all() for x in model.reconstruct(batch, mask).values())


def test_an_exported_model_takes_gaps(tmp_path):
    pytest.importorskip("onnxscript", reason="needs the 'onnx' extra")
    pytest.importorskip("onnxruntime", reason="needs the 'runtime' extra")
    from mmvae_fast.onnx import Runtime, export_onnx

    torch.manual_seed(0)
    model = MVAE({"gappy": Vector(3, missing=True, hidden=(8,)), "whole": Vector(2, hidden=(8,))}, 2).eval()
    runtime = Runtime.load(export_onnx(model, tmp_path / "bundle").folder)
    x = torch.tensor([[1.0, NAN, 2.0], [NAN, NAN, 0.5]])
    again = runtime.reconstruct({"gappy": x.numpy()})["gappy"]
    torch.testing.assert_close(torch.from_numpy(again), model.reconstruct({"gappy": x})["gappy"])
    with pytest.raises(ValueError, match="modality 'gappy' holds inf"):
        runtime.reconstruct({"gappy": x.nan_to_num(nan=float("inf")).numpy()})
    with pytest.raises(ValueError, match="modality 'whole' holds nan"):
        runtime.reconstruct({"whole": x[:, :2].numpy()})
