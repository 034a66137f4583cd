"""Files that anyone may upload, and bundles that anyone may have written: what they must not be able to do."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="needs the extras 'onnx' and 'runtime'")
pytest.importorskip("onnxscript", reason="needs the extras 'onnx' and 'runtime'")
pytest.importorskip("PIL", reason="needs the 'image' extra")

from mmvae_fast.modalities import Image, Vector
from mmvae_fast.models import MVAE
from mmvae_fast.onnx import InputError, Runtime, export_onnx, values
from mmvae_fast.reading import pictures

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    torch.manual_seed(0)
    model = MVAE({"image": Image((1, 5, 4), hidden=(8,)), "v": Vector(3, hidden=(8,))}, 2)
    return Runtime.load(export_onnx(model, tmp_path_factory.mktemp("untrusted") / "bundle", verify=False).folder)


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for Ghostscript")
def test_no_program_is_run_on_a_picture(runtime, tmp_path, monkeypatch):
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    gs.chmod(gs.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InputError, match="of no known format"):
        values.from_bytes(runtime, "image", EPS, "x.eps")
    with pytest.raises(ValueError, match="not an image of a known format"):
        pictures.load(EPS)
    assert not (tmp_path / "called").exists()


def test_a_limit_of_pixels(runtime):
    picture = values.png(np.zeros((1, 30, 40), np.float32))
    with pytest.raises(InputError, match="a picture of 1200 pixels, expected at most 1000"):
        values.from_bytes(runtime, "image", picture, "x.png", max_pixels=1000)
    assert values.from_bytes(runtime, "image", picture, "x.png").shape == (1, 1, 5, 4)


def test_more_samples_than_memory_holds(runtime):
    with pytest.raises(InputError, match=r"sample: n is 1000000000000, \d+ numbers in all, expected at most"):
        runtime.sample(10**12)


def test_a_picture_of_another_format_is_not_written(runtime, tmp_path):
    with pytest.raises(InputError, match=r"y\.jpg: pictures are written as \.png"):
        values.write(runtime, "image", np.zeros((1, 5, 4), np.float32), tmp_path / "y.jpg")
    assert values.write(runtime, "image", np.zeros((1, 5, 4), np.float32), tmp_path / "v1.2").name == "v1.2.png"
