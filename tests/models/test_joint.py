"""What is special about the models with a joint encoder: JMVAE, TELBO, JNF."""

import math

import pytest
import torch
from conftest import FLOWS, JOINT, modalities
from torch import nn

from mmvae_fast.modalities import Vector
from mmvae_fast.models import JMVAE, JNF, TELBO, MultimodalVAE, Posterior
from mmvae_fast.models.jnf import FlowPosterior
from mmvae_fast.reference import philox_normal


def build(cls, seed=0, **options):
    torch.manual_seed(seed)
    own = FLOWS if cls is JNF else JOINT
    return cls(modalities(), 5, **{**own, **options}).double()


@pytest.mark.parametrize("cls", [JMVAE, TELBO])
def test_complete_rows_are_the_joint_encoders_the_others_a_product(cls, batch, mask):
    model = build(cls)
    q, complete = model.encode(batch, mask), model.encode(batch)
    torch.testing.assert_close((q.mu[0], q.logvar[0]), (complete.mu[0], complete.logvar[0]))
    mus, logvars, _ = model.encode_experts(batch)
    torch.testing.assert_close((q.mu[2], q.logvar[2]), (mus[0][2], logvars[0][2]))  # one modality: its own
    precision = torch.exp(-logvars[1][3]) + torch.exp(-logvars[3][3])
    torch.testing.assert_close(q.logvar[3], -precision.log())
    assert not torch.allclose(complete.mu, model.fuse(mus, logvars, torch.ones(6, 4, dtype=torch.bool)).mu)


def test_jmvae_with_alpha_0_leaves_the_unimodal_encoders_alone(batch, mask):
    model, other = build(JMVAE, alpha=0.0), build(JMVAE, alpha=0.5)
    other.load_state_dict(model.state_dict())
    a, b = model(batch, mask, seed=1), other(batch, mask, seed=1)
    a.loss.backward()
    assert all(torch.count_nonzero(p.grad) == 0 for p in model.encoders.parameters())
    torch.testing.assert_close(a.loss.detach(), 1.0 * a.kl - sum(a.log_likelihood.values()))
    torch.testing.assert_close(a[1:], b[1:])
    assert b.loss > a.loss


def test_the_gaps_of_jmvae_are_not_warmed_up(batch):
    model = build(JMVAE, alpha=1e3)
    assert model(batch, beta=0.0, seed=1).loss > 100


def test_shared_encoders_are_the_joint_features(batch):
    model = build(JMVAE, share_encoders=True)
    assert len(model.joint.encoders) == 0
    model.alpha = 0.0
    model(batch, seed=1).loss.backward()
    assert all(torch.count_nonzero(p.grad) for p in model.encoders["audio"].parameters())


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.linear(x)).chunk(2, -1)


def test_custom_encoders_are_copied_and_ties_kept(tmp_path):
    tied = Encoder()
    model = TELBO({"a": Vector(4, encoder=tied), "b": Vector(4, encoder=tied), "c": Vector(4, encoder=Encoder())}, 2)
    joint = model.joint.encoders
    assert joint["a"] is joint["b"]
    assert joint["a"] is not joint["c"]
    assert joint["a"].linear.weight is not tied.linear.weight
    model({"a": torch.randn(8, 4), "c": torch.randn(8, 4)})  # moves the running statistics
    copy = Encoder()
    again = TELBO.load(model.save(tmp_path), encoders={"a": copy, "b": copy, "c": Encoder()})
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("cls", [TELBO, JNF])
def test_the_second_stage_trains_the_unimodal_posteriors_alone(cls, batch, mask, tmp_path):
    model = build(cls, likelihood_weights="learned")
    model.decoders["vector"].requires_grad_(False)  # by the user: no stage thaws it
    first = {n for n, p in model.named_parameters() if p.requires_grad}
    model(batch, mask).loss.backward()
    assert all(p.grad is None for p in model.encoders.parameters())
    assert all(p.grad is not None for p in model.joint.parameters())
    model.zero_grad()
    model.start_stage(2)
    model(batch, mask).loss.backward()
    own = ("encoders.", "flows.")
    for name, p in model.named_parameters():
        assert p.requires_grad == name.startswith(own), name
        assert (p.grad is not None) == name.startswith(own), name
    assert model.encoders.training
    assert not model.decoders.training
    assert not model.train().joint.training
    model.start_stage(1)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == first
    assert model.joint.training
    model.start_stage(2)
    again = MultimodalVAE.load(model.save(tmp_path))
    assert again.stage == 2
    assert not any(p.requires_grad for p in again.joint.parameters())
    torch.testing.assert_close(again(batch, mask, seed=1), model(batch, mask, seed=1))


def test_stages_that_are_not_there():
    with pytest.raises(ValueError, match="stage is 3, expected 1 or 2"):
        build(TELBO).start_stage(3)
    with pytest.raises(ValueError, match="stage is 2, but a JMVAE has only one"):
        build(JMVAE).start_stage(2)


def test_a_frozen_module_in_eval_mode_stays_so():
    model = build(TELBO)
    model.decoders["text"].eval()
    model.start_stage(1)
    assert not model.decoders["text"].training
    model.eval()
    model.start_stage(2)
    model.start_stage(1)
    assert not model.decoders.training


def test_the_second_stage_of_telbo_is_a_sum_of_elbos(batch):
    """No negative KL divergence, and each modality's ELBO is that of a VAE of its own."""
    model = build(TELBO)
    model.start_stage(2)
    output = model(batch, seed=1)
    mus, logvars, _ = model.encode_experts(batch)
    kl = sum(0.5 * (m**2 + v.exp() - 1 - v).sum(1).mean() for m, v in zip(mus, logvars, strict=True))
    torch.testing.assert_close(output.kl, kl.detach())
    alone = sum(model({n: x}, seed=1).kl for n, x in batch.items())
    torch.testing.assert_close(output.kl, alone)
    weighted = build(TELBO, gamma={"image": 2.0, "text": 0.0, "audio": 1.0, "vector": 1.0})
    weighted.start_stage(2)
    other = weighted(batch, seed=1)
    torch.testing.assert_close(other[1:], output[1:])
    ll = output.log_likelihood
    torch.testing.assert_close((other.loss - output.loss).detach(), ll["text"] - ll["image"])


def bent(model):
    """Flows that do something."""
    with torch.no_grad():
        for p in model.flows.parameters():
            p.mul_(1.5)
    return model


def test_one_modality_of_jnf_is_its_flow(batch):
    model = bent(build(JNF))
    q = model.encode({"text": batch["text"]})
    assert isinstance(q, FlowPosterior)
    mus, logvars, _ = model.encode_experts(batch)
    base, flow = Posterior(mus[1], logvars[1]), model.flows["text"]
    u = base.sample(7, seed=3)
    z = q.sample(7, seed=3)
    torch.testing.assert_close(z, flow.from_base(u)[0])
    torch.testing.assert_close(q.log_prob(z), base.log_prob(u) - flow.from_base(u)[1])
    assert q.sample(seed=3).shape == (6, 5)
    many = q.sample(4000, seed=1)
    spread = many.std(0)
    assert ((q.mu - many.mean(0)).abs() < 0.6 * spread).all()
    candidates = torch.stack([flow.from_base(mus[1])[0], q.mu])
    torch.testing.assert_close(q.log_prob(q.point[None])[0], q.log_prob(candidates).max(0).values)
    assert torch.equal(model.encode({"text": batch["text"]}).mu, q.mu)  # no noise of the moment


def test_products_of_flows():
    """Two of three modalities, in two dimensions: chains and density against the product on a grid."""
    torch.manual_seed(0)
    model = JNF({n: Vector(2, hidden=(8,)) for n in "abc"}, 2, flow_hidden=(8,), joint_hidden=(4,)).double()
    with torch.no_grad():
        for name in "ab":  # posteriors narrower than the prior, as they are
            model.encoders[name].layers[-1].bias[2:].fill_(-1.5)
    bent(model)
    batch = {n: torch.randn(2, 2, dtype=torch.float64) for n in "abc"}
    q = model.encode(batch, {"c": torch.zeros(2, dtype=torch.bool)})
    grid = torch.linspace(-8, 8, 400, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)[:, None].expand(-1, 2, 2)
    mus, logvars, _ = model.encode_experts(batch)
    with torch.no_grad():
        logs = [model.flows[n].log_prob(points, Posterior(mus[i], logvars[i])) for i, n in enumerate("ab")]
        log_prior = -0.5 * points.square().sum(-1) - math.log(2 * math.pi)
        density = (sum(logs) - log_prior).exp()
        total = density.sum(0) * (16 / 399) ** 2
        density = density / density.sum(0)
        torch.testing.assert_close(q._log_normalizer(), total.log(), atol=0.3, rtol=0)
    mean = (density[..., None] * points).sum(0)
    sd = (density[..., None] * (points - mean).square()).sum(0).sqrt()
    z = q.sample(2000, seed=0)
    assert ((z.mean(0) - mean).abs() < 0.12 * sd).all()
    torch.testing.assert_close(z.std(0), sd, rtol=0.12, atol=0)
    assert ((q.mu - mean).abs() < sd).all()
    best = points.gather(0, density.argmax(0)[None, :, None].expand(1, 2, 2))[0]
    assert (q.log_prob(q.point[None]) > q.log_prob(best[None]) - 1.5).all()


def test_rows_of_all_kinds_in_one_posterior(batch, mask):
    model = bent(build(JNF))
    q, joint = model.encode(batch, mask), model.encode(batch)
    assert isinstance(joint, Posterior)
    z = q.sample(3, seed=2)
    torch.testing.assert_close(z[:, 0], joint.sample(3, seed=2)[:, 0])
    torch.testing.assert_close(z[:, 1], philox_normal(2, 6, 5, 3, dtype=torch.float64)[:, 1])  # the prior
    text = {"text": batch["text"]}
    alone = model.encode(text).log_prob(z)[:, 3]
    assert not torch.allclose(q.log_prob(z)[:, 3], alone)  # text and vector
    image = model.encode({"image": batch["image"]})
    torch.testing.assert_close(z[:, 2], image.sample(3, seed=2)[:, 2])
    torch.testing.assert_close(q.log_prob(z)[:, 2], image.log_prob(z)[:, 2])
    torch.testing.assert_close(q.log_prob(z)[:, 0], joint.log_prob(z)[:, 0])
    torch.testing.assert_close(q.log_prob(z)[:, 1], torch.distributions.Normal(0, 1).log_prob(z[:, 1]).sum(-1))


def test_jnf_learns_the_joint_posterior():
    """In its second stage -log q_m(z | x_m) falls towards the entropy of q_J where one modality tells all."""
    torch.manual_seed(0)
    model = JNF({n: Vector(2, hidden=(32,), scale=0.3) for n in "ab"}, 2, flow_hidden=(16,), joint_hidden=(32,))
    x = torch.randn(256, 2)
    batch = {"a": x, "b": x.flip(-1)}
    for stage in (1, 2):
        model.start_stage(stage)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for step in range(400):
            loss = model(batch, seed=step).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    entropy = (0.5 * (model.encode(batch).logvar + math.log(2 * math.pi * math.e))).sum(1).mean()
    output = model(batch, seed=1000)
    for value in output.log_likelihood.values():
        assert -value < entropy + 0.3
    gap = (model.encode({"a": x}).point - model.encode(batch).mu).square().mean().sqrt()
    assert gap < 0.3


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (JMVAE, {"alpha": -1}, ValueError, "alpha is -1"),
        (JMVAE, {"share_encoders": 1}, TypeError, "share_encoders is 1, expected True or False"),
        (JMVAE, {"joint_hidden": ()}, ValueError, r"joint_hidden is \(\), expected at least one positive integer"),
        (TELBO, {"joint_hidden": 3}, ValueError, "joint_hidden is 3"),
        (TELBO, {"gamma": {"image": 1}}, ValueError, "gamma: likelihood_weights is"),
        (TELBO, {"gamma": "size"}, ValueError, "gamma: likelihood_weights is 'size'"),
        (JNF, {"flow_layers": 0}, ValueError, "flow_layers is 0, expected 1 or more"),
        (JNF, {"flow_hidden": (0,)}, ValueError, r"flow_hidden is \(0,\)"),
        (JNF, {"hmc_steps": 1.0}, ValueError, "hmc_steps is 1.0"),
        (JNF, {"hmc_leapfrogs": True}, ValueError, "hmc_leapfrogs is True"),
    ],
)
def test_options_that_cannot_be(cls, options, error, message):
    with pytest.raises(error, match=message):
        build(cls, **options)


@pytest.mark.parametrize("cls", [JMVAE, TELBO, JNF])
def test_all_verbs_with_no_rows(cls, batch, mask):
    model, empty, nothing = build(cls), {n: x[:0] for n, x in batch.items()}, torch.zeros(0, 4, dtype=torch.bool)
    q = model.encode(empty, nothing)
    assert q.point.shape == (0, 5)
    z = q.sample(2)
    assert z.shape == (2, 0, 5)
    assert q.log_prob(z).shape == (2, 0)
    assert model.log_likelihood(empty, nothing, n_samples=2).shape == (0,)


@pytest.mark.parametrize("cls", [JMVAE, TELBO, JNF])
def test_autocast(cls, batch, mask):
    model = build(cls).float()
    batch = {n: x.float() if x.is_floating_point() else x for n, x in batch.items()}
    for stage in range(1, model.stages + 1):
        model.start_stage(stage)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch, mask, seed=1).loss
            assert torch.isfinite(model.log_likelihood(batch, mask, n_samples=3)).all()
            model.encode(batch, mask).sample(2, seed=1)
        loss.backward()
        torch.testing.assert_close(loss.float(), model(batch, mask, seed=1).loss, rtol=0.03, atol=0.03)


def test_jnf_gives_complete_rows_the_joint_posterior_with_any_mask(batch):
    """No value of the mask is read, so what comes back with one is a FlowPosterior, even if it is all true."""
    torch.manual_seed(0)
    model = JNF(modalities(), 5, **FLOWS).double()
    joint, masked = model.encode(batch), model.encode(batch, torch.ones(6, 4, dtype=torch.bool))
    assert (type(joint).__name__, type(masked).__name__) == ("Posterior", "FlowPosterior")
    for what in ("mu", "logvar", "point"):
        torch.testing.assert_close(getattr(masked, what), getattr(joint, what))
    torch.testing.assert_close(masked.sample(3, seed=1), joint.sample(3, seed=1))
