"""Verification notices what it is there for: a bundle that says, or computes, something else than the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from eager import Eager

from mmvae_fast.modalities import Image, Language, Text, Vector
from mmvae_fast.models import JNF, MVAE
from mmvae_fast.onnx import BundleError, verification
from mmvae_fast.onnx.export import cpu_copy
from mmvae_fast.onnx.systems import take_any_apart
from mmvae_fast.systems import FusionClassifier

V = {"hidden": (5,)}
TEXTS = ["a red bird", "größe", "", "two birds are red", "a bird"]


def words():
    return MVAE({"t": Text(["a", "b", "c"], 3, **V), "v": Vector(2, **V)}, 3)


def classifier():
    return FusionClassifier({"v": Vector(3, **V)}, ["red", "blue"], 3)


def language():
    pytest.importorskip("tokenizers", reason="needs the 'text' extra")
    return MVAE({"c": Language.from_texts(TEXTS, vocabulary_size=270, width=8, heads=2, layers=2)}, 4)


def made(make):
    torch.manual_seed(0)
    return cpu_copy(make())


def of_modality(**changes):
    return lambda m: {"modalities": (replace(m.modalities[0], **changes), *m.modalities[1:])}


def of_tokens(**changes):
    return lambda m: of_modality(tokens=replace(m.modalities[0].tokens, **changes))(m)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (words, of_modality(vocabulary=("b", "a", "c")), "'t', vocabulary: bundle has .*'b', 'a', 'c'"),
        (words, of_modality(scale=2.0), "modality 't', scale: bundle has 2.0, model has 1.0"),
        (words, of_modality(likelihood="laplace"), "modality 't', likelihood: bundle has laplace, model has"),
        (words, of_modality(gaps=True), "modality 't', gaps: bundle has True, model has False"),
        (words, lambda _: {"posterior": "flow"}, "posterior: bundle has flow, model has gaussian"),
        (words, lambda _: {"prior": "none"}, "prior: bundle has none, model has standard normal"),
        (words, lambda _: {"notes": ("nothing",)}, "notes: bundle has"),
        (
            classifier,
            lambda _: {"classes": ("blue", "red")},
            r"classes: bundle has \['blue', 'red'\], model has \['red'",
        ),
        (language, of_tokens(offset=4), "modality 'c', tokens: bundle has"),
        (language, of_tokens(begin=7), "modality 'c', tokens: bundle has"),
    ],
)
def test_what_the_manifest_says_is_compared(make, changes, message):
    model = made(make)
    runtime, taken = Eager(model), take_any_apart(model)
    verification._check_same_model(runtime, model, taken, None)
    runtime.manifest = replace(runtime.manifest, **changes(runtime.manifest))
    with pytest.raises(BundleError, match=message):
        verification._check_same_model(runtime, model, taken, None)


def test_another_tokenizer_is_another_model():
    model, runtime = made(language), Eager(made(language))
    runtime._tokenizers = {"c": Language.from_texts([*TEXTS, "zebras zigzag"] * 3, vocabulary_size=270).tokenizer}
    with pytest.raises(BundleError, match=r"tokenizer_c.json is not the model's tokenizer"):
        verification._check_same_model(runtime, model, take_any_apart(model), None)


def test_how_pictures_were_read_is_compared_where_it_is_known():
    model = made(lambda: MVAE({"i": Image((1, 4, 4), **V)}, 2))
    runtime, taken = Eager(model), take_any_apart(model)
    black, white = ({"i": {"fit": "stretch", "background": x}} for x in (0.0, 1.0))
    runtime.manifest = replace(runtime.manifest, **of_modality(preprocessing=black["i"])(runtime.manifest))
    for read in (None, black):
        verification._check_same_model(runtime, model, taken, read)
    with pytest.raises(BundleError, match="preprocessing: bundle has .*0.0.*, model has .*1.0"):
        verification._check_same_model(runtime, model, taken, white)


def test_the_bundle_does_not_say_which_draws_are_compared():
    """With posterior "flow" in a manifest, wrong draws of rows with some modalities missing went unnoticed."""
    x = {n: np.zeros((4, 2), np.float32) for n in "abc"}
    mask = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
    plain, chains = (made(lambda c=c: c({n: Vector(2, **V) for n in x}, 2)) for c in (MVAE, JNF))
    assert verification._drawn_exactly(plain, x, mask).all()
    assert verification._drawn_exactly(chains, x, mask).tolist() == [False, True, True, True]
