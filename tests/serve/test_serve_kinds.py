"""Routes that only some bundles have: texts generated token by token, and classes."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="needs the extras 'onnx', 'serve' and 'text'")
pytest.importorskip("onnxruntime", reason="needs the extras 'onnx', 'serve' and 'text'")
pytest.importorskip("fastapi", reason="needs the extras 'onnx', 'serve' and 'text'")
pytest.importorskip("orjson", reason="needs the extras 'onnx', 'serve' and 'text'")
pytest.importorskip("httpx2", reason="needs the extras 'onnx', 'serve' and 'text'")
pytest.importorskip("tokenizers", reason="needs the extras 'onnx', 'serve' and 'text'")

from starlette.testclient import TestClient

from mmvae_fast.modalities import Language, Vector
from mmvae_fast.models import MVAE
from mmvae_fast.onnx import InferenceTimeout, Runtime, export_onnx
from mmvae_fast.onnx.quantize import quantize_onnx
from mmvae_fast.serve import create_app
from mmvae_fast.systems import FusionClassifier

V = [[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    torch.manual_seed(0)
    text = Language.from_texts(["one two", "three four five"], width=8, heads=1)
    model = MVAE({"text": text, "v": Vector(3, hidden=(8,))}, 4)
    return export_onnx(model, tmp_path_factory.mktemp("kinds") / "language", verify=False).folder


def test_texts_token_by_token(language):
    runtime = Runtime.load(language)
    x = {"v": np.array(V, np.float32)}
    with TestClient(create_app(language)) as client:
        greedy = client.post("/v1/generate", json={"inputs": {"v": V}})
        assert greedy.json() == {"texts": runtime.generate(x)}
        options = {"temperature": 1.5, "top_k": 5, "seed": 3}
        drawn = client.post("/v1/generate", json={"inputs": {"v": V}, **options})
        assert drawn.json() == {"texts": runtime.generate(x, **options)}
        put = client.post("/v1/translate", json={"inputs": {"text": ["one two"]}, "to": "v"}).json()["values"]
        np.testing.assert_allclose(put, runtime.cross_generate({"text": ["one two"]}, "v"), rtol=1e-4, atol=1e-5)
        words = client.post("/v1/translate", json={"inputs": {"v": V}, "to": "text"}).json()["values"]
        assert words == runtime.detokenize(runtime.cross_generate(x, "text"), "text")
        assert client.post("/v1/generate", json={"inputs": {"v": V}, "top_p": 2}).status_code == 422
        assert client.post("/v1/classify", json={"inputs": {"v": V}}).status_code == 404


def test_steps_in_eight_bits(language, tmp_path):
    found = quantize_onnx(language, tmp_path / "small", limit=1.0)
    assert {"decoder_text_step", "encoder_v"} <= set(found.quantized)
    assert max(d.error for d in found.deviations) < 0.15  # the encoder applies a layer twice: its weights are shared
    texts = Runtime.load(tmp_path / "small").generate({"v": np.array(V, np.float32)})
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)


def test_classes(tmp_path):
    torch.manual_seed(0)
    model = FusionClassifier({"v": Vector(3, hidden=(8,)), "w": Vector(2, hidden=(8,))}, ["cat", "dog"], 4)
    folder = export_onnx(model, tmp_path / "bundle", verify=False).folder
    expected = Runtime.load(folder).predict_proba({"v": np.array(V, np.float32)})
    with TestClient(create_app(folder)) as client:
        found = client.post("/v1/classify", json={"inputs": {"v": V}}).json()
        assert "/v1/classify" in client.get("/openapi.json").json()["paths"]
    assert found["classes"] == [["cat", "dog"][i] for i in expected.argmax(-1)]
    shares = [[row["cat"], row["dog"]] for row in found["probabilities"]]
    np.testing.assert_allclose(shares, expected, rtol=1e-5, atol=1e-6)


def test_what_texts_need_is_missed_at_the_start(language, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="tokenizers"):
        create_app(language)


def test_a_long_text_does_not_hold_the_worker_for_long(language, monkeypatch):
    runtime = Runtime.load(language, timeout=0.2)
    run = runtime._sessions.run

    def slow(part, *arguments):
        time.sleep(0.15)
        return run(part, *arguments)

    monkeypatch.setattr(runtime._sessions, "run", slow)
    monkeypatch.setattr("mmvae_fast.onnx.texts.draw", lambda p, *_: np.full(len(p), 3))  # never its end
    with pytest.raises(InferenceTimeout, match=r"stopped at token \d of \d+ after 0\.2 s"):
        runtime.generate(z=np.zeros((1, 4), np.float32), temperature=1.0, seed=0)


def test_a_long_text_holds_up_nobody_else(language):
    with TestClient(create_app(language)) as client:
        body = {"inputs": {"text": ["a " * 2_000_000]}}
        refused = []
        sender = threading.Thread(target=lambda: refused.append(client.post("/v1/encode", json=body)))
        slowest, done = 0.0, False
        sender.start()
        while not done:
            done = not sender.is_alive()
            began = time.perf_counter()
            assert client.post("/v1/encode", json={"inputs": {"text": ["one"]}}).status_code == 200
            slowest = max(slowest, time.perf_counter() - began)
        assert refused[0].status_code == 422 and "4000000 characters" in refused[0].text
        assert slowest < 1.0
