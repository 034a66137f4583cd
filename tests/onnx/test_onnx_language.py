"""Text token by token, without torch: the tokens, the texts and the draws of the model."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the 'text' extra")

from eager import Eager

from mmvae_fast.modalities import Language, Vector
from mmvae_fast.models import DMVAE, MVTCAE
from mmvae_fast.onnx import BadShape, BadValue, Runtime, UnknownModality, export_onnx
from mmvae_fast.onnx.export import cpu_copy

TEXTS = ["a red bird", "größe", "", "two birds are red", "a bird"]


def make(cls=MVTCAE, **options):
    torch.manual_seed(0)
    text = Language.from_texts(TEXTS, vocabulary_size=270, width=8, heads=2, layers=2)
    model = cls({"caption": text, "v": Vector(3, hidden=())}, 4, **options)
    with torch.no_grad():
        for parameter in model.decoders["caption"].parameters():
            parameter.mul_(3)  # texts that differ by z
    return cpu_copy(model)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    model = make()
    result = export_onnx(model, tmp_path_factory.mktemp("bundles") / "language")
    return model, result, Runtime.load(result.folder)


def check_texts(model, runtime, **options):
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32))
    text = model.modalities["caption"]
    theirs = text.generate(model.decoders["caption"], model._latent_for("caption", z), **options)
    assert runtime.generate(z=z.numpy(), **options) == text.detokenize(theirs)
    assert len(set(map(tuple, theirs.tolist()))) > 1, "texts that do not differ show nothing"


def test_files_and_report(bundle):
    _, result, _ = bundle
    names = {path.name for path in result.files}
    assert {"decoder_caption_begin.onnx", "decoder_caption_step.onnx", "tokenizer_caption.json"} <= names
    assert "decoder_caption.onnx" not in names
    assert result.report.passed
    assert {c.part for c in result.report.checks} >= {"decoder_caption_begin", "decoder_caption_step"}


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.3, "seed": 5}, {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "seed": 2**63}]
)
def test_the_same_texts_as_the_model(bundle, options):
    model, _, runtime = bundle
    check_texts(model, runtime, **options)


def test_texts_of_inputs_and_back(bundle):
    model, _, runtime = bundle
    x = np.random.default_rng(1).standard_normal((3, 3), dtype=np.float32)
    ids = model.translate({"v": torch.from_numpy(x)}, "caption")
    np.testing.assert_array_equal(runtime.cross_generate({"v": x}, "caption"), ids.numpy())
    assert runtime.generate({"v": x}) == model.modalities["caption"].detokenize(ids)
    again = pickle.loads(pickle.dumps(runtime))
    assert again.generate({"v": x}) == runtime.generate({"v": x})
    assert again.info["loaded_parts"] == runtime.info["loaded_parts"] or len(again.info["loaded_parts"]) < 6


def test_tokens(bundle):
    model, _, runtime = bundle
    ids = runtime.tokenize(TEXTS)
    np.testing.assert_array_equal(ids, model.modalities["caption"].tokenize(TEXTS).numpy())
    assert runtime.detokenize(ids) == TEXTS
    mu = runtime.encode({"caption": ids}).mu
    np.testing.assert_allclose(mu, model.encode({"caption": torch.from_numpy(ids)}).mu.detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadShape, match=r"text 0 has \d+ tokens, its end included, expected at most \d+"):
        runtime.tokenize(["x" * 500])
    assert runtime.tokenize(["x" * 500], truncate=True).shape == (1, runtime.modalities["caption"].shape[0])


def test_private_latents_too():
    model = make(DMVAE, private_dim={"caption": 2, "v": 0})
    check_texts(model, Eager(model), temperature=1.0, seed=3)


def test_nothing_to_generate(bundle):
    _, _, runtime = bundle
    assert runtime.generate(z=np.zeros((0, 4), np.float32)) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1}, BadValue, "temperature is -1, expected a number, 0 or more"),
        ({"top_k": 0}, BadValue, "top_k is 0, expected 1 or more"),
        ({"top_p": 1.5}, BadValue, "top_p is 1.5, expected a probability"),
        ({"to": "v"}, UnknownModality, "to: unknown modality generated token by token 'v'"),
        ({"z": None}, ValueError, "pass either inputs, or z"),
    ],
)
def test_bad_options(bundle, options, error, message):
    with pytest.raises(error, match=message):
        bundle[2].generate(**{"z": np.zeros((1, 4), np.float32), **options})


def test_parameters_of_all_tokens_at_once(bundle):
    with pytest.raises(BadValue, match="of one token after the other"):
        bundle[2].decode(np.zeros((1, 4), np.float32), "caption", params=True)


def test_a_decoder_without_steps(tmp_path):
    class Slow(torch.nn.Module):
        def forward(self, z, x):
            return torch.zeros(*x.shape, 270)

    text = Language.from_texts(TEXTS, vocabulary_size=270, width=8, heads=2, decoder=Slow())
    with pytest.raises(ValueError, match="modality 'caption': a Slow that decodes a Language has no begin and step"):
        export_onnx(MVTCAE({"caption": text}, 2), tmp_path / "bundle")
