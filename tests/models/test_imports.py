"""Custom networks by import path: made by the model, named in its folder, and imported from there only when allowed."""

import json
import sys

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Counts, Image, Modality, Text, Vector
from mmvae_fast.modalities.imports import allows
from mmvae_fast.models import CVAE, DMVAE, JMVAE, MoPoE, MultimodalVAE

NETS = """
from torch import nn
import torch

class Encoder(nn.Module):
    def __init__(self, latent_dim, size=4, width=6, hidden=()):
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}")
        self.hidden = hidden
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.Tanh(), nn.Linear(width, 2 * latent_dim))

    def forward(self, x):
        return self.net(x.float()).chunk(2, -1)

class Decoder(nn.Module):
    def __init__(self, latent_dim, shape):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent_dim, torch.Size(shape).numel()), nn.Unflatten(1, tuple(shape)))

    def forward(self, z):
        return self.net(z)

def function(latent_dim):
    return Encoder(latent_dim)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that can be imported during the test, and counts as never imported."""
    root = tmp_path / "code"
    (root / "studio").mkdir(parents=True)
    (root / "studio" / "__init__.py").write_text("")
    (root / "studio" / "nets.py").write_text(NETS)
    (root / "studio" / "broken.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(root)
    forget()
    yield
    forget()


def forget():
    for name in [n for n in sys.modules if n == "studio" or n.startswith("studio.")]:
        del sys.modules[name]


def vector(**options):
    chosen = {
        "encoder": "studio.nets:Encoder",
        "encoder_options": {"width": 5},
        "decoder": "studio.nets:Decoder",
        "decoder_options": {"shape": [4]},
    }
    return Vector(4, **{**chosen, **options})


@pytest.fixture
def folder(package, tmp_path):
    model = MoPoE({"v": vector(), "w": Vector(3)}, 2)
    return model.save(tmp_path / "m")


def test_round_trip(package, tmp_path):
    model = MoPoE({"v": vector(encoder_options={"width": 5, "hidden": (1, 2)}), "w": Vector(3)}, 2)
    assert model.encoders["v"].hidden == [1, 2]  # as it will be on the way back
    folder = model.save(tmp_path / "m")
    described = json.loads((folder / "config.json").read_text())["modalities"]["v"]
    assert described["encoder"] == {"path": "studio.nets:Encoder", "options": {"width": 5, "hidden": [1, 2]}}
    x = {"v": torch.randn(8, 4), "w": torch.randn(8, 3)}
    for allowed in (True, "studio", ["other", "studio.nets"]):
        forget()  # as in a new process
        again = MultimodalVAE.load(folder, allow_import=allowed)
        assert again.config() == model.config()
        torch.testing.assert_close(again(x, seed=1), model(x, seed=1), rtol=0, atol=0)


@pytest.mark.parametrize("allowed", [False, [], "other", ["studi", "studio.net", "studio.nets.more"]])
def test_nothing_is_imported_unless_allowed(folder, allowed):
    forget()
    message = (
        r"modality 'v': its encoder is the code at 'studio.nets:Encoder', and allow_import is .*: pass allow_import="
    )
    with pytest.raises(ValueError, match=message):
        MoPoE.load(folder, allow_import=allowed)
    assert not [name for name in sys.modules if name.startswith("studio")]


def test_modules_passed_in_take_the_place_of_the_code(folder):
    from studio.nets import Decoder, Encoder

    networks = {"encoders": {"v": Encoder(2, width=5)}, "decoders": {"v": Decoder(2, [4])}}
    forget()
    again = MoPoE.load(folder, **networks)
    assert not [name for name in sys.modules if name.startswith("studio")]
    assert again.encoders["v"] is networks["encoders"]["v"]
    with pytest.raises(ValueError, match="its decoder is the code at 'studio.nets:Decoder'"):
        MoPoE.load(folder, encoders=networks["encoders"])


def change(folder, **described):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["modalities"]["v"] |= described
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"path": "studio.nets:Missing"}, "cannot import 'studio.nets:Missing': module 'studio.nets' has no 'Missing'"),
        ({"path": "studio.nowhere:Encoder"}, "cannot import 'studio.nowhere:Encoder': No module named"),
        ({"path": "studio.broken:Encoder"}, "cannot import .*: No module named 'no_such_module_anywhere'"),
        ({"path": "studio.nets:function"}, "expected a subclass of torch.nn.Module"),
        ({"path": "studio.nets:torch"}, "expected a subclass of torch.nn.Module"),
        ({"path": "studio.nets:nn.Linear"}, "import path is 'studio.nets:nn.Linear', expected 'package.module:Class'"),
        ({"path": "studio.nets"}, "expected 'package.module:Class'"),
        ({"path": "studio/nets:Encoder"}, "its encoder is the code at 'studio/nets:Encoder', and allow_import is"),
        ({"path": ["studio.nets:Encoder"]}, "expected an import path and options"),
        ("studio.nets:Encoder", "expected an import path and options"),
        ({"path": "studio.nets:Encoder", "options": {"depth": 2}}, r"called with 2 and .*unexpected keyword .*'depth'"),
        ({"path": "studio.nets:Encoder", "options": {"width": 0}}, r"called with 2 and .*: width is 0"),
        (
            {"path": "studio.nets:Encoder", "options": [1]},
            r"options of 'studio.nets:Encoder' are \[1\], expected a dict",
        ),
        ({"path": "studio.nets:Encoder", "options": {"width": 7}}, "weights of another model: encoders.v"),
    ],
)
def test_paths_that_lead_nowhere(folder, described, message):
    change(folder, encoder=described)
    with pytest.raises(ValueError, match=message):
        MoPoE.load(folder, allow_import=["studio"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encoder": "studio.nets:Missing"}, ValueError, "Vector: encoder: cannot import 'studio.nets:Missing'"),
        (
            {"encoder": "Encoder"},
            ValueError,
            "Vector: encoder: import path is 'Encoder', expected 'package.module:Class'",
        ),
        ({"encoder": 3}, TypeError, "Vector: encoder is a int, expected an nn.Module or an import path"),
        ({"encoder_options": {"x": object()}}, TypeError, "expected what JSON can hold"),
        ({"encoder_options": {"x": float("nan")}}, TypeError, "expected what JSON can hold"),
        ({"encoder_options": {1: 2}}, TypeError, "expected a dict of keyword arguments"),
        ({"encoder": None}, TypeError, "Vector: encoder_options is given, expected none without an import path"),
        ({"encoder": nn.Identity()}, TypeError, "Vector: encoder_options is given"),
    ],
)
def test_networks_that_cannot_be(package, options, error, message):
    with pytest.raises(error, match=message):
        vector(**options)


def test_arguments_that_the_class_does_not_take(package):
    with pytest.raises(TypeError, match=r"studio.nets:Encoder, called with 2 and \{'depth': 1\}: .*'depth'"):
        MoPoE({"v": vector(encoder_options={"depth": 1})}, 2)


def test_networks_get_the_size_that_the_model_needs(package):
    model = DMVAE({"v": vector(), "w": Vector(3)}, 2, private_dim=3)
    assert model.encoders["v"].net[-1].out_features == 2 * 5 and model.decoders["v"].net[0].in_features == 5
    model = CVAE({"v": vector(), "w": Vector(3)}, 2, condition="w", context_dim=7)
    assert model.decoders["v"].net[0].in_features == 9
    model = JMVAE({"v": vector(), "w": Vector(3)}, 2)
    assert type(model.joint.encoders["v"]) is type(model.encoders["v"])
    a, b = (MoPoE({"v": modality}, 2).encoders["v"] for modality in [vector()] * 2)
    assert a is not b  # a path is made anew for every model; a module is shared


@pytest.mark.parametrize(
    "make",
    [
        lambda **n: Image((1, 2, 2), **n),
        lambda **n: Text(["a", "b"], 4, **n),
        lambda **n: Counts(4, **n),
        lambda **n: Vector(4, **n),
    ],
)
def test_every_modality_takes_paths(package, make):
    modality = make(encoder="studio.nets:Encoder", decoder="studio.nets:Decoder", decoder_options={"shape": [4]})
    again = Modality.from_config(json.loads(json.dumps(modality.config())), allow_import=True)
    assert again.config() == modality.config()
    for m in (modality, again):
        assert type(m.encoder_for(3)).__name__ == "Encoder" and type(m.decoder_for(3)).__name__ == "Decoder"
    assert make().config().keys() == {*make().config()} - {"encoder", "decoder"}


def test_what_is_allowed():
    assert allows("a.b:C", True) and not allows("a.b:C", False)
    assert allows("a.b:C", "a") and allows("a.b:C", ["a.b"]) and allows("a:C", ("a",))
    assert not any(allows("ab.c:C", packages) for packages in ("a", ["a", "c"], "", [""], ["ab.c:C"], ["."]))
