"""Free bits and modality dropout against what the naive losses make of them."""

import pytest
import torch
from naive import naive_loss
from naive.free_bits import held

from mmvae_fast.models import IWAE, MMVAE
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_uniform, seed_tensor

SEED = 11


@pytest.mark.parametrize("bits", [0.4, 50.0])
def test_free_bits_hold_every_divergence_by_itself(make_model, batch, mask, bits):
    """At 50 nats all of them, at less some: value and gradients."""
    twin = make_model()
    if isinstance(twin, (IWAE, MMVAE)):
        with pytest.raises(ValueError, match=f"free_bits is {bits}, expected 0: .* bound of {type(twin).__name__} has"):
            make_model(free_bits=bits)
        return
    model = make_model(free_bits=bits)
    loss = model(batch, mask, seed=SEED).loss
    loss.backward()
    parts = held(twin, batch, mask, SEED)
    dearer = sum(factor * torch.clamp(bits - kl, min=0) for factor, kl in parts)
    expected = naive_loss(twin, batch, mask, SEED)[0] + twin.beta * dearer
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for (name, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if own.grad is not None or other.grad is not None:
            zero = torch.zeros_like(own)
            grads = [zero if p.grad is None else p.grad for p in (own, other)]
            torch.testing.assert_close(*grads, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("probability", [0.3, 0.8])
def test_modality_dropout_hides_what_its_uniforms_say(make_model, batch, mask, probability):
    """The loss of a batch with less observed; a row that would lose all that it has keeps it."""
    model, twin = make_model(modality_dropout=probability), make_model()
    u = philox_uniform(branch(seed_tensor(SEED), -2), 6, mask.shape[1])
    kept = mask.clone()
    for b in range(6):
        left = [bool(mask[b, m]) and float(u[b, m]) >= probability for m in range(mask.shape[1])]
        if any(left):
            kept[b] = torch.tensor(left)
    if mask.shape[1] > 1:
        assert not torch.equal(kept, mask)
    output = model(batch, mask, seed=SEED)
    loss, kl, ll = naive_loss(twin, batch, kept, SEED)
    if getattr(model, "estimator", None) != "dreg":  # a surrogate, whose value says nothing
        torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(output.kl, kl.detach())
    for name, value in output.log_likelihood.items():
        torch.testing.assert_close(value, ll[name].detach())
    torch.testing.assert_close(model.eval()(batch, mask, seed=SEED).kl, twin.eval()(batch, mask, seed=SEED).kl)
