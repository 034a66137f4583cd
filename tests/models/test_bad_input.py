"""Everything that cannot be is refused with a message that names what came and what was expected."""

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Image, Vector
from mmvae_fast.models import MVAE, MoPoE

TRUE = torch.ones(6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "mask", "error", "message"),
    [
        (lambda b: {}, None, ValueError, r"batch is empty, expected at least one of the modalities \['image'"),
        (lambda b: list(b.values()), None, TypeError, "batch is a list, expected a dict"),
        (lambda b: {**b, "smell": b["vector"]}, None, ValueError, "batch names the modality 'smell', expected some of"),
        (
            lambda b: {**b, "audio": b["audio"][:4]},
            None,
            ValueError,
            "'audio': has 4 rows, expected 6 like modality 'image'",
        ),
        (
            lambda b: {**b, "image": b["image"].float()},
            None,
            TypeError,
            "'image': got torch.float32, expected torch.float64",
        ),
        (
            lambda b: {**b, "text": b["text"].double()},
            None,
            TypeError,
            "'text': got torch.float64, expected torch.int64",
        ),
        (lambda b: {**b, "vector": b["vector"][0]}, None, ValueError, r"'vector': got shape \[4\], expected \[B, 4\]"),
        (lambda b: {**b, "vector": b["vector"].to("meta")}, None, ValueError, "'vector': is on meta, expected cpu"),
        (lambda b: {**b, "vector": None}, None, TypeError, "'vector': got a NoneType"),
        (lambda b: b, torch.ones(6, 4), TypeError, "mask is torch.float32, expected torch.bool"),
        (lambda b: b, torch.ones(6, 3).bool(), ValueError, r"mask has shape \[6, 3\], expected \[B, M\] = \[6, 4\]"),
        (lambda b: b, TRUE, ValueError, r"mask has shape \[6\]"),
        (lambda b: b, [True] * 6, TypeError, "mask is a list, expected a bool tensor"),
        (lambda b: b, {"smell": TRUE}, ValueError, "mask names the modality 'smell'"),
        (
            lambda b: b,
            {"text": TRUE[:5]},
            ValueError,
            r"mask of modality 'text' has shape \[5\], expected \[B\] = \[6\]",
        ),
        (lambda b: b, {"text": TRUE.int()}, TypeError, "mask of modality 'text' is torch.int32"),
        (lambda b: b, {"text": True}, TypeError, "mask of modality 'text' is a bool, expected a bool tensor"),
        (lambda b: b, {"text": TRUE.to("meta")}, ValueError, "mask of modality 'text' is on meta"),
    ],
)
def test_batches_and_masks(model, several, batch, change, mask, error, message):
    for call in (model, model.encode, model.reconstruct, model.log_likelihood):
        with pytest.raises(error, match=message):
            call(change(batch), mask)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, b: m.decode(torch.zeros(3, 4)), ValueError, r"z has shape \[3, 4\], expected \[..., 5\]"),
        (lambda m, b: m.decode([0.0] * 5), TypeError, "z is a list"),
        (
            lambda m, b: m.decode(torch.zeros(5)),
            TypeError,
            r"z is torch.float32, expected torch.float64 like the model",
        ),
        (lambda m, b: m.decode(torch.zeros(5).long()), TypeError, "z is torch.int64"),
        (
            lambda m, b: m({"text": b["text"] + 9}),
            ValueError,
            r"modality 'text': token ids from \d+ to \d+, expected 0 to 4",
        ),
        (lambda m, b: m.decode(torch.zeros(5).double(), to=["smell"]), ValueError, "to names the modality 'smell'"),
        (lambda m, b: m.translate(b, "smell"), ValueError, "to names the modality 'smell'"),
        (lambda m, b: m.sample(), ValueError, "pass either n"),
        (lambda m, b: m.sample(2, z=torch.zeros(2, 5)), ValueError, "pass either n"),
        (lambda m, b: m.sample(-1), ValueError, "n is -1"),
        (lambda m, b: m.sample(2.0), ValueError, "n is 2.0"),
        (lambda m, b: m.log_likelihood(b, 1000), TypeError, "mask, the second argument, is 1000, .* n_samples=1000"),
        (lambda m, b: m.log_likelihood(b, n_samples=0), ValueError, "n_samples is 0, expected 1 or more"),
        (lambda m, b: m.log_likelihood(b, chunk=0), ValueError, "chunk is 0"),
        (lambda m, b: m(b, seed="x"), TypeError, "seed"),
    ],
)
def test_other_arguments(model, several, batch, call, error, message):
    with pytest.raises(error, match=message):
        call(model, batch)


@pytest.mark.parametrize("cls", [MVAE, MoPoE])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (({}, 2), {}, ValueError, "expected a dict of at least one Modality"),
        (([Vector(2)], 2), {}, ValueError, "expected a dict"),
        (({"a": nn.Linear(2, 2)}, 2), {}, TypeError, "modality 'a' is a Linear, expected a Modality"),
        (({"a.b": Vector(2)}, 2), {}, ValueError, "modality name 'a.b'"),
        (({"": Vector(2)}, 2), {}, ValueError, "modality name ''"),
        (({1: Vector(2)}, 2), {}, ValueError, "modality name 1"),
        (({"mask": Vector(2)}, 2), {}, ValueError, "'mask' is reserved"),
        (({"keys": Vector(2)}, 2), {}, ValueError, "'keys' is reserved"),
        (({"training": Vector(2)}, 2), {}, ValueError, "'training' is reserved"),
        (({"a": Vector(2)}, 0), {}, ValueError, "latent_dim is 0"),
        (({"a": Vector(2)}, 2.0), {}, ValueError, "latent_dim is 2.0"),
        (({"a": Vector(2)}, 2), {"beta": -1}, ValueError, "beta is -1"),
        (({"a": Vector(2)}, 2), {"beta": "1"}, TypeError, "beta is a str"),
        (({"a": Vector(2)}, 2), {"likelihood_weights": "size"}, ValueError, "likelihood_weights is 'size'"),
        (({"a": Vector(2)}, 2), {"likelihood_weights": {"b": 1}}, ValueError, "likelihood_weights is {'b': 1}"),
        (
            ({"a": Vector(2)}, 2),
            {"likelihood_weights": {"a": float("nan")}},
            ValueError,
            "likelihood weight of modality 'a'",
        ),
    ],
)
def test_constructors(cls, arguments, options, error, message):
    with pytest.raises(error, match=message):
        cls(*arguments, **options)


@pytest.mark.parametrize("count", [-1, 1, 1.0, True])
def test_too_many_random_subsets(count):
    with pytest.raises(ValueError, match="n_random_subsets"):
        MVAE({"a": Vector(2), "b": Vector(2)}, 2, n_random_subsets=count)


def test_too_many_modalities_for_all_subsets():
    many = {f"m{i}": Vector(1, hidden=()) for i in range(17)}
    with pytest.raises(ValueError, match=r"MoPoE: got 17 modalities, expected at most 16: .* subsets"):
        MoPoE(many, 2)
    assert torch.isfinite(MVAE(many, 2)({"m0": torch.zeros(1, 1)}).loss)


def test_experts_of_different_types():
    encoder = Returns(lambda x: (x.double(), x.double()))
    model = MoPoE({"v": Vector(2), "w": Vector(2, encoder=encoder)}, 2)
    with pytest.raises(
        TypeError, match="'w': its encoder returned mu in torch.float64, expected torch.float32 as mod.* 'v'"
    ):
        model({"v": torch.zeros(3, 2), "w": torch.zeros(3, 2)})
    mixed = MoPoE({"v": Vector(2, encoder=Returns(lambda x: (x, x.double())))}, 2)
    with pytest.raises(TypeError, match="'v': its encoder returned logvar in torch.float64"):
        mixed({"v": torch.zeros(3, 2)})


def test_likelihood_weights_by_dimension():
    model = MoPoE({"a": Image((1, 2, 3)), "b": Vector(2)}, 2, likelihood_weights="dimension")
    assert model.likelihood_weights.option() == {"a": 1.0, "b": 3.0}


class Returns(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x: x, TypeError, "modality 'v': its encoder returned a Tensor, expected \\(mu, logvar\\)"),
        (lambda x: {"mu": x}, TypeError, "modality 'v': its encoder returned a dict"),
        (lambda x: (x, x, x), TypeError, "a tuple of 3"),
        (lambda x: (x, None), TypeError, r"a tuple of 2 \(Tensor, NoneType\)"),
        (
            lambda x: (x, x[:, :1]),
            ValueError,
            r"modality 'v': its encoder returned logvar of shape \[3, 1\], expected \[B, latent_dim\] = \[3, 2\]",
        ),
        (lambda x: (x[0], x[0]), ValueError, r"mu of shape \[2\]"),
        (lambda x: (x[:1], x[:1]), ValueError, r"mu of shape \[1, 2\]"),
    ],
)
def test_encoders_that_return_something_else(f, error, message):
    model = MoPoE({"v": Vector(2, encoder=Returns(f))}, 2)
    with pytest.raises(error, match=message):
        model({"v": torch.zeros(3, 2)})


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda z: (z, z), TypeError, "modality 'v': its decoder returned a tuple"),
        (lambda z: z[:, :1], ValueError, r"modality 'v': its decoder returned shape \[3, 1\], expected \[3, 2\]"),
        (lambda z: z.sum(0), ValueError, r"its decoder returned shape \[2\]"),
    ],
)
def test_decoders_that_return_something_else(f, error, message):
    model = MoPoE({"v": Vector(2, decoder=Returns(f))}, 2)
    with pytest.raises(error, match=message):
        model({"v": torch.zeros(3, 2)})


def test_custom_networks_that_return_lists_are_fine():
    model = MVAE({"v": Vector(2, encoder=Returns(lambda x: [x, x]), decoder=Returns(lambda z: z))}, 2)
    assert torch.isfinite(model({"v": torch.zeros(3, 2)}).loss)
