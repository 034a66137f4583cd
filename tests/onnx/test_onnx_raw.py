"""Texts and pictures as they are, read as in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from eager import Eager

from mmvae_fast.data.image import ImageReader
from mmvae_fast.modalities import Image, Text, Vector
from mmvae_fast.models import MVTCAE
from mmvae_fast.onnx import BadDtype, BadValue, export_onnx
from mmvae_fast.onnx.export import cpu_copy

pillow = pytest.importorskip("PIL.Image", reason="needs the 'image' extra")


def make(likelihood="bernoulli"):
    torch.manual_seed(0)
    image = Image((3, 6, 8), likelihood=likelihood, hidden=())
    return cpu_copy(MVTCAE({"image": image, "text": Text(["red", "bird"], 3, hidden=()), "v": Vector(2)}, 4))


def served(model, **preprocessing):
    """With pictures read in some way."""
    runtime = Eager(model)
    spec = replace(runtime.modalities["image"], preprocessing=preprocessing or None)
    runtime.modalities = {**runtime.modalities, "image": spec}
    return runtime


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 30, 3)).astype(np.uint8)
    path = tmp_path / "bird.png"
    pillow.fromarray(pixels).save(path)
    return path, pixels


@pytest.mark.parametrize("how", [{}, {"fit": "crop", "background": 0.0}, {"fit": "pad", "background": 0.2}])
def test_pictures_are_read_as_in_training(picture, how):
    path, pixels = picture
    runtime = served(make("normal" if how else "bernoulli"), **how)
    x = ImageReader(size=(6, 8), channels=3, **how).read(path).numpy()[None]
    expected = runtime.encode({"image": x}).mu
    given = [path, str(path), [path], path.read_bytes()]
    for one in given + [pixels[None]] * bool(how):
        np.testing.assert_allclose(runtime.encode({"image": one}).mu, expected, atol=1e-6)


def test_texts():
    runtime = served(make())
    expected = runtime.encode({"text": runtime.tokenize(["red bird", "bird"])}).mu
    np.testing.assert_array_equal(runtime.encode({"text": ["red bird", "bird"]}).mu, expected)
    np.testing.assert_allclose(runtime.encode({"text": "red bird"}).mu, expected[:1], atol=1e-6)


def test_what_is_not_read(picture, tmp_path):
    path, pixels = picture
    with pytest.raises(BadValue, match="does not say how pictures become its values, whose likelihood is 'normal'"):
        served(make("normal")).encode({"image": path})
    with pytest.raises(BadDtype, match="'image' has dtype uint8"):
        served(make()).encode({"image": pixels[None]})
    with pytest.raises(BadDtype, match="'v' is str, expected an array of numbers"):
        served(make()).encode({"v": "1,2"})
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadValue, match=r"'image', row 1: .*bad\.png: not an image"):
        served(make()).encode({"image": [path, tmp_path / "bad.png"]})


@pytest.mark.parametrize(
    "preprocessing", [{"v": {}}, {"image": {"fit": "squeeze"}}, {"image": {"background": 2}}, {"x": {}}]
)
def test_bad_preprocessing(preprocessing, tmp_path):
    with pytest.raises(ValueError, match="preprocessing .*expected"):
        export_onnx(make(), tmp_path / "bundle", preprocessing=preprocessing)
