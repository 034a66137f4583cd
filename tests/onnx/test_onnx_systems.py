"""Classifier, GAN and CycleGAN served as they answer in torch."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from eager import Eager

from mmvae_fast.modalities import Image, Text, Vector
from mmvae_fast.onnx import BadShape, BadValue, Manifest, MissingInput, Runtime, export_onnx, verification
from mmvae_fast.onnx.export import cpu_copy
from mmvae_fast.onnx.report import Record, Report
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier

V = {"hidden": (5,)}


def two():
    return {"v": Vector(3, **V), "w": Vector(2, **V)}


def classifier(**options):
    return FusionClassifier({"v": Vector(3, **V), "t": Text(6, 2, **V)}, ["red", "blue", "größe"], 4, **options)


SYSTEMS = {
    "classifier": classifier,
    "classifier of private latents": lambda: classifier(model="DMVAE", model_options={"private_dim": 2}),
    "classifier around an autoencoder": lambda: classifier(model="Autoencoder"),
    "classifier alone": lambda: classifier(generative_weight=0.0),
    "GAN": lambda: GAN({"v": Vector(3)}, 4, width=4),
    "GAN of classes": lambda: GAN({"i": Image((1, 4, 4))}, 4, classes=3, width=4),
    "GAN of embeddings": lambda: GAN({"v": Vector(3)}, 4, condition_dim=2, width=4),
    "CycleGAN": lambda: CycleGAN(two(), code_dim=4, width=4),
}


def make(name):
    torch.manual_seed(0)
    return cpu_copy(SYSTEMS[name]())


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_the_parts_put_together_are_the_system(name):
    system, record = make(name), Record(1e-4, 1e-5)
    runtime = Eager(system)
    described = replace(runtime.manifest, files={part.file: "0" * 64 for part in runtime.manifest.parts.values()})
    assert Manifest.from_json(json.loads(described.dumps())) == described
    verification.compare_verbs(runtime, system, record, np.random.default_rng(0))
    report = Report(record.checks(), 1e-4, 1e-5)
    assert report.passed and report.checks, str(report)


def test_classes_by_name():
    system = make("classifier")
    runtime, x = Eager(system), {"v": np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32) * 9}
    found = runtime.classify(x)
    assert found == system.classify({"v": torch.from_numpy(x["v"])})
    assert len(set(found)) > 1
    assert runtime.predict_proba({"v": x["v"][:0]}).shape == (0, 3)


def test_labels_drawn_and_given():
    gan = make("GAN of classes")
    runtime = Eager(gan)
    np.testing.assert_allclose(runtime.sample(7, seed=3)["i"], gan.sample(7, seed=3), rtol=1e-4, atol=1e-5)
    given = np.array([2, 0])
    expected = gan.sample(condition=torch.from_numpy(given), seed=1)
    np.testing.assert_allclose(runtime.sample(2, seed=1, condition=given)["i"], expected, rtol=1e-4, atol=1e-5)
    assert runtime.sample(0)["i"].shape == (0, 1, 4, 4)


@pytest.mark.parametrize("name", ["classifier", "GAN of classes", pytest.param("CycleGAN", marks=pytest.mark.slow)])
def test_traced(name, tmp_path):
    result = export_onnx(make(name), tmp_path / "bundle", sampling="philox" if "GAN" in name else "eps")
    assert result.report.passed
    Runtime.load(result.folder)


@pytest.mark.parametrize(
    ("name", "call", "error", "message"),
    [
        (
            "GAN",
            lambda r: r.encode({"v": np.zeros((1, 3))}),
            BadValue,
            "encode: a GAN has no part for it, it can sample",
        ),
        ("GAN", lambda r: r.decode(np.zeros((1, 4))), BadValue, "decode: a GAN has no part for it"),
        ("GAN", lambda r: r.sample(1, condition=[1]), BadValue, "condition is given, but this GAN has none"),
        ("GAN of classes", lambda r: r.sample(1, condition=[3]), BadValue, "labels 3 to 3, expected 0 to 2"),
        ("GAN of classes", lambda r: r.sample(2, condition=[1]), BadShape, r"condition has shape \[1\], expected"),
        ("GAN of embeddings", lambda r: r.sample(2), MissingInput, r"condition is None, expected embeddings \[n, 2\]"),
        ("CycleGAN", lambda r: r.sample(2), BadValue, "a CycleGAN has no prior to sample from"),
        ("CycleGAN", lambda r: r.cross_generate({"v": np.zeros((1, 3))}, "v"), MissingInput, "expected 'w'"),
        ("CycleGAN", lambda r: r.predict_proba({}), BadValue, "holds a CycleGAN, expected a FusionClassifier"),
    ],
)
def test_what_a_system_cannot_do(name, call, error, message):
    with pytest.raises(error, match=message):
        call(Eager(make(name)))
