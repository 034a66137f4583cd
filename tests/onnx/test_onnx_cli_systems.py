"""The commands on bundles that are no models: GANs, which start from nothing, CycleGANs and classifiers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("typer", reason="needs the 'cli' extra")
pytest.importorskip("PIL", reason="needs the 'image' extra")

from typer.testing import CliRunner

from mmvae_fast.cli import app
from mmvae_fast.modalities import Image, Vector
from mmvae_fast.onnx import Runtime, export_onnx
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier


def call(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert "Traceback" not in result.output + result.stderr
    return result


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("systems")
    two = {"v": Vector(3, hidden=(5,)), "w": Vector(2, hidden=(5,))}
    systems = {
        "classes": GAN({"i": Image((1, 4, 4))}, 4, classes=3, width=4),
        "embeddings": GAN({"v": Vector(3)}, 4, condition_dim=2, width=4),
        "plain": GAN({"v": Vector(3)}, 4, width=4),
        "cyclegan": CycleGAN(two, code_dim=4, width=4),
        "classifier": FusionClassifier(two, ["red", "blue"], 4),
    }
    for name, system in systems.items():
        export_onnx(system, folder / name, verify=False)
    return folder


def test_a_gan_makes_a_picture_of_a_class_from_a_seed(bundles, tmp_path):
    from PIL import Image as pillow

    made = call("run", bundles / "classes", "--label", "2", "--seed", 1, "--to", "i", "--out", tmp_path / "x.png")
    assert made.exit_code == 0, made.stderr
    expected = Runtime.load(bundles / "classes").sample(1, 1, condition=np.array([2]))["i"][0, 0]
    with pillow.open(tmp_path / "x.png") as image:
        np.testing.assert_allclose(np.asarray(image) / 255, expected, atol=1 / 255)
    assert call("run", bundles / "classes", "--out", tmp_path / "y.png").exit_code == 0  # a class that is drawn


def test_a_gan_prints_what_it_makes_of_an_embedding(bundles, tmp_path):
    expected = Runtime.load(bundles / "embeddings").sample(1, 5, condition=np.array([[0.5, -1]], np.float32))["v"][0]
    np.save(tmp_path / "c.npy", np.array([0.5, -1]))
    for condition in ("0.5,-1", tmp_path / "c.npy"):
        made = call("run", bundles / "embeddings", "--condition", condition, "--seed", 5)
        assert made.exit_code == 0, made.stderr
        np.testing.assert_allclose([float(v) for v in made.output.split(",")], expected, rtol=1e-4)
    assert call("run", bundles / "plain", "--seed", 5).exit_code == 0


@pytest.mark.parametrize(
    ("bundle", "options", "message"),
    [
        ("classes", ["--label", "7"], "unknown class '7'"),
        ("classes", ["--condition", "1"], "takes no embedding"),
        ("classes", ["--from", "i=x.png"], "starts from nothing"),
        ("plain", ["--label", "1"], "has no classes"),
        ("embeddings", [], "--condition is missing, expected 2 numbers"),
        ("embeddings", ["--condition", "1,a"], "expected 2 numbers"),
        ("cyclegan", ["--from", "v=1,2,3", "--to", "w", "--label", "1"], "--label is of a GAN"),
        ("cyclegan", ["--to", "w"], "nothing to start from"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(bundles, bundle, options, message):
    result = call("run", bundles / bundle, *options)
    assert result.exit_code == 2 and message in result.stderr


def test_a_cyclegan_translates_and_a_classifier_classifies(bundles):
    made = call("run", bundles / "cyclegan", "--from", "v=1,2,3", "--to", "w")
    expected = Runtime.load(bundles / "cyclegan").cross_generate({"v": np.array([[1, 2, 3]], np.float32)}, "w")[0]
    np.testing.assert_allclose([float(v) for v in made.output.split(",")], expected, rtol=1e-4)
    assert call("run", bundles / "classifier", "--v", "1,2,3").output.splitlines()[0] in ("red", "blue")


@pytest.mark.parametrize(
    ("bundle", "calls"),
    [
        ("classes", {"sample"}),
        ("embeddings", {"sample"}),
        ("cyclegan", {"translate to v", "translate to w"}),
        ("classifier", {"encode", "classify", "decode v", "reconstruct"}),
    ],
)
def test_bench_times_what_a_system_can_do(bundles, bundle, calls):
    result = call("bench", bundles / bundle, "--batch", 2, "--seconds", "0.01", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.output)
    assert {row["call"] for row in found} >= calls and all(row["median_ms"] > 0 for row in found)


@pytest.mark.parametrize("command", [["run", "--v", "1,2,3", "--to", "w"], ["bench"]])
def test_a_bundle_that_takes_too_long_is_stopped(bundles, command, monkeypatch):
    found = []
    load = Runtime.load
    monkeypatch.setattr(Runtime, "load", lambda *a, **options: found.append(options["timeout"]) or load(*a, **options))
    options = ["--batch", "1", "--seconds", "0.01"] if command[0] == "bench" else []
    assert call(command[0], bundles / "cyclegan", *command[1:], *options, "--timeout", 7).exit_code == 0
    assert call(command[0], bundles / "cyclegan", *command[1:], *options).exit_code == 0
    assert found == [7, 60]
