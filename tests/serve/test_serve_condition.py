"""Samples of what is conditional: a GAN's classes and embeddings, and a conditional model's row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="needs the extras 'onnx' and 'serve'")
pytest.importorskip("onnxruntime", reason="needs the extras 'onnx' and 'serve'")
pytest.importorskip("fastapi", reason="needs the extras 'onnx' and 'serve'")
pytest.importorskip("orjson", reason="needs the extras 'onnx' and 'serve'")
pytest.importorskip("httpx2", reason="needs the extras 'onnx' and 'serve'")

from starlette.testclient import TestClient

from mmvae_fast.modalities import Vector
from mmvae_fast.models import CVAE
from mmvae_fast.onnx import Runtime, export_onnx
from mmvae_fast.serve import create_app
from mmvae_fast.systems import GAN


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("condition")
    two = {"v": Vector(3, hidden=(5,)), "c": Vector(2, hidden=(5,))}
    for name, model in {
        "classes": GAN({"v": Vector(3)}, 4, classes=3, width=4),
        "embeddings": GAN({"v": Vector(3)}, 4, condition_dim=2, width=4),
        "cvae": CVAE(two, 4, condition="c", context_dim=3),
    }.items():
        export_onnx(model, folder / name, verify=False)
    return folder


@pytest.mark.parametrize(
    ("bundle", "said", "condition"),
    [
        ("classes", [2, 0], np.array([2, 0])),
        ("classes", ["2", "0"], np.array([2, 0])),
        ("embeddings", [[1, 0], [0.5, -1]], np.array([[1, 0], [0.5, -1]], np.float32)),
        ("embeddings", [[1, 0], [0, 1]], np.array([[1, 0], [0, 1]], np.float32)),
        ("cvae", {"c": [[3, -3]]}, {"c": np.array([[3, -3]], np.float32)}),
    ],
)
def test_samples_of_a_condition(bundles, bundle, said, condition):
    runtime = Runtime.load(bundles / bundle)
    expected = runtime.sample(2, 7, "v", condition=condition)["v"].reshape(2, 3)
    other = None if bundle == "embeddings" else runtime.sample(2, 7, "v")["v"]
    with TestClient(create_app(bundles / bundle)) as client:
        answer = client.post("/v1/sample", json={"n": 2, "seed": 7, "to": "v", "condition": said})
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["values"]["v"], expected, rtol=1e-4, atol=1e-5)
    assert other is None or not np.allclose(expected, other)


@pytest.mark.parametrize(
    ("bundle", "said"),
    [
        ("classes", [3, 0]),
        ("classes", ["three", "0"]),
        ("classes", [0]),
        ("classes", {"v": [[1, 2, 3]]}),
        ("classes", [[1], [2, 3]]),
        ("embeddings", [1, 0]),
        ("embeddings", [["a", "b"], ["c", "d"]]),
        ("cvae", {"c": [[1, 2], [3, 4]]}),
        ("cvae", [1, 2]),
        ("cvae", {"nothing": [[1, 2]]}),
    ],
)
def test_conditions_that_do_not_fit_are_422(bundles, bundle, said):
    with TestClient(create_app(bundles / bundle)) as client:
        answer = client.post("/v1/sample", json={"n": 2, "condition": said})
    assert answer.status_code == 422, answer.text
