"""Models in folders: config.json and model.safetensors."""

import json

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Image, Text, Vector
from mmvae_fast.models import MODELS, MVAE, MoPoE, MultimodalVAE


def files(folder):
    return sorted(p.name for p in folder.rglob("*"))


def test_round_trip(model, batch, mask, tmp_path):
    model.float().eval()
    batch = {n: x.float() if x.is_floating_point() else x for n, x in batch.items()}
    folder = model.save(tmp_path / "m")
    assert files(folder) == ["config.json", "model.safetensors"]
    again = MultimodalVAE.load(folder)
    assert type(again) is type(model)
    assert again.training  # whatever it was: what a model is saved for, it does not know
    again.eval()
    assert again.config() == model.config()
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(again(batch, mask, seed=1), model(batch, mask, seed=1), rtol=0, atol=0)
    torch.testing.assert_close(again.sample(3, seed=2), model.sample(3, seed=2), rtol=0, atol=0)
    assert type(type(model).load(folder)) is type(model)


def test_saving_again_replaces(tmp_path):
    first, second = MoPoE({"v": Vector(2)}, 2), MoPoE({"v": Vector(3)}, 2)
    (tmp_path / "notes.txt").write_text("mine")
    first.save(tmp_path)
    second.save(tmp_path)
    assert MoPoE.load(tmp_path).modalities["v"].shape == (3,)
    assert files(tmp_path) == ["config.json", "model.safetensors", "notes.txt"]


def test_words_and_options_survive(tmp_path):
    vae = MVAE(
        {"text": Text(["ä", "b"], 3), "a": Vector(2), "b": Vector(2)},
        2,
        beta=0.5,
        n_random_subsets=1,
        likelihood_weights={"text": 2, "a": 1, "b": 0},
    )
    again = MVAE.load(vae.save(tmp_path))
    assert again.modalities["text"].words == ("<pad>", "<unk>", "ä", "b")
    assert (again.beta, again.n_random_subsets) == (0.5, 1)
    assert again.likelihood_weights.option() == {"text": 2.0, "a": 1.0, "b": 0.0}
    assert list(again.modalities) == ["text", "a", "b"]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.linear(x)).chunk(2, -1)


def custom():
    return Vector(4, encoder=Encoder(), decoder=nn.Linear(2, 4))


def test_custom_networks_round_trip(tmp_path):
    model = MoPoE({"v": custom(), "w": Vector(3)}, 2)
    x = {"v": torch.randn(8, 4), "w": torch.randn(8, 3)}
    model(x)  # moves the running statistics
    model.eval().save(tmp_path)
    with pytest.raises(ValueError, match="modality 'v': vector modality was saved with a custom encoder, but none was"):
        MoPoE.load(tmp_path)
    again = MoPoE.load(tmp_path, encoders={"v": Encoder()}, decoders={"v": nn.Linear(2, 4)}).eval()
    torch.testing.assert_close(again(x, seed=1), model(x, seed=1), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"linear.weight has shape \[4, 4\], expected|is missing|not part of"):
        MoPoE.load(tmp_path, encoders={"v": nn.Linear(4, 4)}, decoders={"v": nn.Linear(2, 4)})
    with pytest.raises(ValueError, match="encoders names the modality 'x'"):
        MoPoE.load(tmp_path, encoders={"x": Encoder()})


def test_tied_networks_are_saved(tmp_path):
    shared = Encoder()
    model = MoPoE({n: Vector(4, encoder=shared) for n in "ab"}, 2)
    again = MoPoE.load(model.save(tmp_path), encoders=dict.fromkeys("ab", Encoder()))
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_of_the_numbers_survives(tmp_path, dtype):
    model = MoPoE({"v": custom(), "w": Vector(3)}, 2).to(dtype)
    again = MoPoE.load(model.save(tmp_path), encoders={"v": Encoder()}, decoders={"v": nn.Linear(2, 4)})
    assert again.dtype == dtype
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


@pytest.fixture
def folder(tmp_path):
    return MoPoE({"image": Image((1, 2, 2)), "v": Vector(3)}, 2).save(tmp_path / "m")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: damaged, expected JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json: damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "holds a list, expected a JSON object"),
        (lambda f: (f / "config.json").write_text("{}"), "format is None, expected 'mmvae_fast.model'"),
        (lambda f: edit(f, schema_version=99), "schema_version is 99, expected 1"),
        (lambda f: edit(f, model="GAN"), r"model is 'GAN', expected one of \[.*'MVAE', .*'MoPoE'.*\]"),
        (lambda f: edit(f, latent_dim="2"), "latent_dim is '2', expected a int"),
        (lambda f: edit(f, modalities={"v": {"kind": "smell"}}), "modality 'v': modality of kind 'smell'"),
        (
            lambda f: edit(f, modalities={"v": {"kind": ["v"]}}),
            r"modality 'v': modality of kind \['v'\], expected one of",
        ),
        (lambda f: edit(f, dtype="int8"), "dtype is 'int8', expected one of"),
        (lambda f: edit(f, dtype=["float32"]), r"dtype is \['float32'\]"),
        (lambda f: edit(f, options={"gamma": 1}), "does not describe a MoPoE"),
        (lambda f: edit(f, latent_dim=3), "weights of another model"),
        (lambda f: edit(f, modalities={"v": Vector(3).config()}), "does not describe a MoPoE: likelihood_weights"),
        (
            lambda f: edit(f, modalities={"v": Vector(3).config()}, options={}),
            "encoders.image.* is not part of the model",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors: damaged"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "damaged"),
    ],
)
def test_damaged_and_foreign_folders(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        MultimodalVAE.load(folder)


def test_not_a_folder(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        MultimodalVAE.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="no such file"):
        MultimodalVAE.load(tmp_path / "file")


def test_a_model_of_another_class(folder):
    with pytest.raises(ValueError, match="holds a model of class MoPoE, expected MVAE"):
        MVAE.load(folder)


def test_models_of_users_load_by_their_class(tmp_path):
    class Mine(MoPoE):
        pass

    Mine({"v": Vector(2)}, 2).save(tmp_path)
    assert type(Mine.load(tmp_path)) is Mine
    with pytest.raises(ValueError, match="model is 'Mine'"):
        MultimodalVAE.load(tmp_path)


def test_registry():
    assert MODELS["MVAE"] is MVAE and MODELS["MoPoE"] is MoPoE
    assert all(name == model.__name__ for name, model in MODELS.items())


def test_an_interrupted_write_leaves_the_old_file(folder, monkeypatch):
    import os

    before = (folder / "model.safetensors").read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        MoPoE({"v": Vector(3)}, 2).save(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert files(folder) == ["config.json", "model.safetensors"]
