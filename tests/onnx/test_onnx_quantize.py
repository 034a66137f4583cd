"""Bundles of 8 bits: still bundles, close to the float ones, refused where they are not, and never half written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from mmvae_fast.modalities import Image, Vector
from mmvae_fast.models import MVAE
from mmvae_fast.onnx import BundleError, Runtime, export_onnx, manifest, quantize
from mmvae_fast.onnx.quantize import QuantizationError, quantize_onnx


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Large enough that weights are most of the files."""
    torch.manual_seed(0)
    model = MVAE({"image": Image((1, 16, 16), hidden=(128,)), "v": Vector(9, hidden=(64,))}, 8)
    return export_onnx(model, tmp_path_factory.mktemp("quantize") / "float").folder


@pytest.fixture(scope="module")
def small(bundle):
    return quantize_onnx(bundle, bundle.parent / "int8", limit=0.05)


def operators(path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_is_a_smaller_bundle_that_answers_nearly_the_same(bundle, small):
    plain, quantised = Runtime.load(bundle), Runtime.load(small.folder)
    samples = plain.sample(20, seed=3)
    expected, found = plain.encode(samples).mu, quantised.encode(samples).mu
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.05
    assert small.bytes[1] < 0.45 * small.bytes[0]
    assert sum(f.stat().st_size for f in small.folder.iterdir()) < sum(f.stat().st_size for f in bundle.iterdir())
    np.testing.assert_array_equal(quantised.sample(3, seed=1)["v"].shape, (3, 9))


def test_encoders_and_decoders_only(bundle, small):
    assert set(small.quantized) == {"encoder_image", "decoder_image", "encoder_v", "decoder_v"}
    for part in small.quantized:
        assert "MatMulInteger" in operators(small.folder / f"{part}.onnx")
        onnx.checker.check_model(str(small.folder / f"{part}.onnx"), full_check=True)
    assert (small.folder / "fusion.onnx").read_bytes() == (bundle / "fusion.onnx").read_bytes()


def test_says_what_it_is(bundle, small):
    read = manifest.read(small.folder)
    assert read.versions["quantization"] == "int8"
    assert "quantization" not in manifest.read(bundle).versions
    props = {p.key: p.value for p in onnx.load(small.folder / "encoder_v.onnx").metadata_props}
    assert json.loads(props["mmvae_fast"])["versions"]["quantization"] == "int8"
    text = str(small)
    assert "relative RMS error" in text and "MiB" in text and "batch 32" in text
    assert {d.part for d in small.deviations} == set(small.quantized)
    assert all(0 < d.error < 0.05 for d in small.deviations)


def test_weights_keep_to_seven_bits_unless_told(bundle, small, tmp_path):
    def largest(folder):
        tensors = onnx.load(folder / "encoder_image.onnx").graph.initializer
        return max(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in tensors if t.data_type == 3)

    wide = quantize_onnx(bundle, tmp_path / "wide", preset="int8-vnni", limit=0.05)
    assert largest(small.folder) <= 64 < largest(wide.folder)


def test_refused_above_the_limit_and_nothing_is_written(bundle, tmp_path):
    with pytest.raises(QuantizationError, match=r"output '\w+' of \w+ differs by .* expected at most 0\.01 %"):
        quantize_onnx(bundle, tmp_path / "out", limit=0.0001)
    assert not any(tmp_path.iterdir())


def test_an_older_bundle_stays_when_it_is_refused(bundle, small, tmp_path):
    target = shutil.copytree(small.folder, tmp_path / "out")
    before = {f.name: f.read_bytes() for f in target.iterdir()}
    with pytest.raises(FileExistsError, match="overwrite=True"):
        quantize_onnx(bundle, target, limit=0.05)
    with pytest.raises(QuantizationError):
        quantize_onnx(bundle, target, limit=0.0001, overwrite=True)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == before
    assert quantize_onnx(bundle, target, limit=0.05, overwrite=True).folder == target


def test_compares_on_the_rows_given(bundle, tmp_path):
    rng = np.random.default_rng(0)
    data = {"image": rng.random((40, 1, 16, 16), dtype=np.float32), "v": rng.standard_normal((40, 9)).astype("f4")}
    errors = {d.part: d.error for d in quantize_onnx(bundle, tmp_path / "a", data=data, limit=0.05).deviations}
    outliers = {**data, "v": data["v"] * np.array([1000, *[1] * 8], "f4")}  # one column takes all of the 8 bits
    found = quantize_onnx(bundle, tmp_path / "b", data=outliers, limit=1.0)
    assert errors["encoder_v"] != {d.part: d.error for d in found.deviations}["encoder_v"]
    with pytest.raises(ValueError, match="unknown modality 'imgae'"):
        quantize_onnx(bundle, tmp_path / "c", data={"imgae": data["image"]})


def test_token_ids_are_counted_and_their_logits_limited(mopoe, tmp_path):
    found = quantize_onnx(mopoe.folder, tmp_path / "out", limit=1.0)
    (ids,) = (d for d in found.deviations if d.tokens)
    assert (ids.part, ids.output) == ("decoder_text", "prediction")
    assert "of the tokens differ" in str(ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "int4"}, "preset is 'int4', expected one of 'int8', 'int8-vnni'"),
        ({"limit": 0}, "limit is 0, expected a share"),
        ({"limit": 2.0}, "limit is 2.0, expected a share"),
        ({"limit": "small"}, "limit is 'small', expected a share"),
    ],
)
def test_bad_arguments(bundle, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quantize_onnx(bundle, tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


def test_refuses_to_replace_what_it_must_not(bundle, tmp_path):
    with pytest.raises(ValueError, match="is the bundle itself"):
        quantize_onnx(bundle, bundle, overwrite=True)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.txt"):
        quantize_onnx(bundle, tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_damaged_bundles_are_refused(copied, tmp_path):
    path = copied / "encoder_text.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="SHA-256"):
        quantize_onnx(copied, tmp_path / "out")


def test_nothing_to_quantise(mopoe, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "_NETWORKS", ("fusion",))
    with pytest.raises(BundleError, match="no encoder or decoder has a matrix product"):
        quantize_onnx(mopoe.folder, tmp_path / "out")
