"""Verification notices what it is there for: a bundle that says, or computes, something else than the model."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from eager import Eager

from mmvae_fast.modalities import Image, Language, Text, Vector
from mmvae_fast.models import JNF, MVAE
from mmvae_fast.onnx import BundleError, ExportVerificationError, text_checks, verification
from mmvae_fast.onnx.export import cpu_copy
from mmvae_fast.onnx.report import Record, Report
from mmvae_fast.onnx.systems import take_any_apart
from mmvae_fast.systems import GAN, FusionClassifier

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


@torch.no_grad()
def found(model, served):
    """What is found where the parts of ``served`` stand for a bundle of ``model``."""
    record, rng, runtime = Record(1e-4, 1e-5), np.random.default_rng(0), Eager(served)
    taken = take_any_apart(model)
    verification._compare_networks(runtime, taken, record, rng)
    text_checks.compare_texts(runtime, taken, getattr(model, "model", model), record, rng)
    verification.compare_verbs(runtime, model, record, rng)
    return Report(record.checks(), 1e-4, 1e-5)


def check_noticed(model, change, parts):
    served = copy.deepcopy(model)
    assert found(model, served).passed
    with torch.no_grad():
        change(served)
    assert {c.part for c in found(model, served).failures} >= parts


def test_every_position_of_a_text():
    model = made(language)
    for t in range(model.modalities["c"].length):
        served = copy.deepcopy(model)
        with torch.no_grad():
            served.decoders["c"].positions[t] += torch.randn(8)
        assert "decoder_c_step" in {c.part for c in found(model, served).failures}, t


def test_every_id_of_a_vocabulary():
    def change(served):
        served.encoders["c"].tokens.weight[261] += torch.randn(8)

    check_noticed(made(language), change, {"encoder_c"})

    def after(served):
        served.decoders["c"].tokens.weight[261] += torch.randn(8)

    check_noticed(made(language), after, {"decoder_c_step"})


def test_texts_are_generated_and_reconstructed():
    model = made(language)
    with torch.no_grad():
        for parameter in model.decoders["c"].parameters():
            parameter.mul_(3)  # a first token that is not the END
    report = found(model, model)
    assert {(c.part, c.output) for c in report.checks} >= {
        (part, "c") for part in ("Runtime.generate", "Runtime.reconstruct", "Runtime.sample")
    }
    served = Eager(copy.deepcopy(model))
    spec = served.modalities["c"]
    served.modalities["c"] = replace(spec, tokens=replace(spec.tokens, begin=9))  # a wrong first token, say
    record = Record(1e-4, 1e-5)
    with torch.no_grad():
        text_checks.compare_texts(served, take_any_apart(model), model, record, np.random.default_rng(0))
    assert [c.part for c in Report(record.checks(), 1e-4, 1e-5).failures] == ["Runtime.generate"]


def test_every_class_of_a_gan():
    model = made(lambda: GAN({"i": Image((1, 4, 4))}, 4, classes=23, width=4))
    embeddings = [n for n, p in model.average.named_parameters() if len(p) == 23]
    assert embeddings

    def change(served):
        for name, parameter in served.average.named_parameters():
            if name in embeddings:
                parameter[17] += torch.randn(parameter.shape[1:])

    check_noticed(model, change, {"generator"})


def test_gaps():
    """A graph that takes NaN for something else than a missing entry: zero, say."""

    def change(served):
        encoder = served.encoders["v"]
        encoder.register_forward_pre_hook(lambda _, given: (given[0].nan_to_num(1.0),))

    model = made(lambda: MVAE({"v": Vector(6, missing=True, **V)}, 3))
    check_noticed(model, change, {"encoder_v", "Runtime.encode"})


def test_many_modalities_are_all_observed_for_a_classifier(monkeypatch):
    names = list("abcdefg")
    model = made(lambda: FusionClassifier({n: Vector(1, **V) for n in names}, ["x", "y"], 2))
    runtime, seen = Eager(model), []
    predict = runtime.predict_proba
    monkeypatch.setattr(runtime, "predict_proba", lambda x, mask: (seen.append(mask[0].tolist()), predict(x, mask))[1])
    with torch.no_grad():
        verification.compare_verbs(runtime, model, Record(1e-4, 1e-5), np.random.default_rng(0))
    assert {tuple(row) for row in seen} >= {(True,) * 7, (False,) * 7, (True,) + (False,) * 6}


def test_the_difference_stands_beside_its_own_element():
    """Of a large value a large difference is within the tolerance; the failure is elsewhere, and is what is shown."""
    record = Record(1e-4, 1e-5)
    record.add("decoder", "x", "B=2", torch.tensor([10000.0, 1.0]), np.array([10000.9, 1.01], np.float32))
    record.add("decoder", "y", "B=2", torch.tensor([1e6, 0.0]), np.array([1e6 + 101, 0.0], np.float32))
    x, y = record.checks()
    assert not x.passed
    assert x.difference == pytest.approx(0.01, rel=1e-3)
    assert "index [1]" in x.detail
    assert y.difference == 101
    report = Report(record.checks(), 1e-4, 1e-5)
    with pytest.raises(ExportVerificationError, match=r"decoder: output 'y' differs from torch by 101"):
        report.raise_if_failed()
    closer = Report((replace(y, difference=500.0, excess=0.001), x), 1e-4, 1e-5)
    with pytest.raises(ExportVerificationError, match=r"output 'x' .* index \[1\]"):
        closer.raise_if_failed()


def test_nothing_compared_is_nothing_passed():
    report = Report((), 1e-4, 1e-5)
    assert not report.passed
    with pytest.raises(ExportVerificationError, match="nothing was compared"):
        report.raise_if_failed()
