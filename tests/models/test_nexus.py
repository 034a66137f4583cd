"""What only Nexus promises: no gradient from the top to the bottom, dropout of messages, inference through both levels.
Its loss is compared with a naive one in test_losses."""

import pytest
import torch
from conftest import NEXUS, modalities
from torch import nn

from mmvae_fast.modalities import Vector
from mmvae_fast.models import MHVAE, Nexus
from mmvae_fast.reference import seed_tensor


def make(**options):
    torch.manual_seed(0)
    return Nexus(modalities(), 5, **{**NEXUS, **options}).double()


def gradients(model, batch, where):
    model(batch, seed=1).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if name.split(".")[0] in where}


def test_the_top_does_not_train_the_bottom(batch):
    bottom = ("encoders", "decoders")
    without, strong = gradients(make(gamma=0.0), batch, bottom), gradients(make(gamma=9.0), batch, bottom)
    torch.testing.assert_close(strong, without, rtol=0, atol=0)
    top = ("messages", "top_encoder", "top_decoders")
    assert all(g.count_nonzero() for g in gradients(make(), batch, top).values())


def test_dropout_hides_one_to_all_but_one_of_a_rows_messages():
    model, rows = make(dropout=0.3), 4000
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    heard = model._heard(mask.repeat(rows, 1), seed_tensor(0)).reshape(rows, 4, 4)
    assert not (heard & ~mask).any()
    counts = heard.sum(-1)
    for row, observed in ((0, 4), (1, 3)):
        shares = torch.bincount(counts[:, row], minlength=5)[: observed + 1] / rows
        expected = torch.tensor([0.0, *[0.3 / (observed - 1)] * (observed - 1), 0.7])
        torch.testing.assert_close(shares, expected, rtol=0, atol=0.03)
        kept = heard[:, row].float().mean(0)[mask[row]]  # nobody is preferred
        torch.testing.assert_close(kept, kept.mean().expand(observed), rtol=0, atol=0.03)
    assert (counts[:, 2] == 1).all() and (counts[:, 3] == 0).all()
    assert torch.equal(model.eval()._heard(mask, seed_tensor(0)), mask)


def test_reconstruct_takes_the_own_latent_of_what_is_observed(batch, mask):
    model = make()
    mus, _, _ = model.encode_experts(batch, mask)
    through_top = model.decode(model.encode(batch, mask).mu)
    for place, (name, x) in enumerate(model.reconstruct(batch, mask).items()):
        own = model.modalities[name].predict(model.decoders[name](mus[place]))
        for b in range(6):
            torch.testing.assert_close(x[b], (own if mask[b, place] else through_top[name])[b])
    only_text = {"text": batch["text"]}
    expected = model.decode(model.encode(only_text).mu, "image")["image"]
    torch.testing.assert_close(model.translate(only_text, "image"), expected.detach())


def test_the_posterior_is_that_of_the_observed_latents_means(batch, mask):
    model = make()
    mus, _, _ = model.encode_experts(batch, mask)
    q = model.encode(batch, mask)
    for b in (0, 3):
        heard = [m for m in range(4) if mask[b, m]]
        names = list(model.modalities)
        message = sum(model.messages[names[m]](mus[m][b]) for m in heard) / len(heard)
        torch.testing.assert_close(torch.cat([q.mu[b], q.logvar[b]]), model.top_encoder(message))


class Wide(nn.Module):
    """A proposal wider than the posterior, or the importance weights have infinite variance."""

    def __init__(self, n, d, logvar):
        super().__init__()
        self.mu = nn.Linear(n, d)
        self.logvar = logvar

    def forward(self, x):
        mu = 0.3 * self.mu(x)
        return mu, torch.full_like(mu, self.logvar)


class Joined(Wide):
    def forward(self, x):
        return torch.cat(super().forward(x), -1)


def test_log_likelihood_is_that_of_the_hierarchy():
    """All linear: z ~ N(0, 1), z_m = A_m z + a_m + s noise, x_m = W_m z_m + b_m + noise."""
    torch.manual_seed(0)
    dims = {"v": 2, "w": 3}
    model = Nexus(
        {n: Vector(k, scale=0.8, encoder=Wide(k, 1, 1.0), decoder=nn.Linear(1, k)) for n, k in dims.items()},
        1,
        modality_dim=1,
        message_dim=2,
        scale=0.7,
    )
    model.top_encoder = Joined(2, 1, 0.7)
    model.top_decoders = nn.ModuleDict({n: nn.Linear(1, 1) for n in dims})
    model.double()
    batch = {n: torch.randn(4, k).double() for n, k in dims.items()}
    mask = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    estimate = model.log_likelihood(batch, mask, n_samples=30000, seed=0, chunk=30000)
    for b in range(4):
        there = [n for i, n in enumerate(dims) if mask[b, i]]
        if not there:
            torch.testing.assert_close(estimate[b], torch.zeros_like(estimate[b]))
            continue
        down, up = (
            torch.cat([model.decoders[n].weight @ model.top_decoders[n].weight for n in there]),
            torch.block_diag(*(model.decoders[n].weight for n in there)),
        )
        mean = torch.cat([model.decoders[n](model.top_decoders[n].bias) for n in there])
        covariance = down @ down.t() + 0.7**2 * up @ up.t() + 0.8**2 * torch.eye(len(mean), dtype=torch.float64)
        exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(
            torch.cat([batch[n][b] for n in there])
        )
        torch.testing.assert_close(estimate[b], exact.detach(), rtol=0, atol=0.03)


def test_the_elbo_bounds_the_log_likelihood(batch):
    """Its expectation is log_likelihood's of one sample (in eval mode, where all messages are heard)."""
    model = make().eval()
    rows = {name: x[:1].expand(4000, *x.shape[1:]) for name, x in batch.items()}
    one = model.log_likelihood(rows, n_samples=1, seed=1).mean()
    torch.testing.assert_close(model(rows, seed=2).elbo, one, rtol=0, atol=0.3)
    assert model.log_likelihood(rows, n_samples=20, seed=1).mean() > one


def test_the_size_of_the_modalities_latents_is_the_shared_ones_unless_told():
    model = Nexus({"v": Vector(4), "w": Vector(3)}, 3, message_dim=4, hidden=())
    assert model.network_dims == {"v": 3, "w": 3}
    assert model.encode_experts({"v": torch.randn(2, 4)})[0][1].shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality_dim": 0}, "modality_dim of modality 'image' is 0, expected an integer, 1 or more"),
        ({"modality_dim": {"image": 3}}, r"modality_dim names \['image'\], expected a number for each"),
        ({"message_dim": 0}, r"message_dim is \[0\], expected at least one positive integer"),
        ({"hidden": (3, 0)}, r"hidden is \(3, 0\), expected positive integer"),
        ({"gamma": {"image": 1.0}}, r"gamma names \['image'\], expected a number for each of"),
        ({"gamma": -1.0}, "gamma of modality 'image' is -1.0, expected a finite number, 0 or more"),
        ({"scale": 0.0}, "scale is 0, expected a positive number"),
        ({"dropout": 1.5}, "dropout is 1.5, expected a probability"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("cls", [Nexus, MHVAE])
def test_a_hierarchy_has_no_fusion_of_experts_alone(cls):
    model = cls({"v": Vector(2, hidden=())}, 2, hidden=())
    expert = torch.zeros(3, 2)
    with pytest.raises(NotImplementedError, match=f"{cls.__name__}: its latents form a hierarchy"):
        model.fuse([expert], [expert], torch.ones(3, 1, dtype=torch.bool))
