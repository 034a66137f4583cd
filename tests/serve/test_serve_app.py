"""What the routes answer, and how everything wrong with a request is refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("orjson", reason="needs the 'serve' extra")
pytest.importorskip("httpx2", reason="starlette's TestClient needs it")

from starlette.testclient import TestClient

from mmvae_fast.onnx import BundleError, Runtime
from mmvae_fast.serve import Limits, create_app

SMALL = Limits(body_bytes=20_000, rows=8, output_values=400, body_seconds=5, seconds=5)


@pytest.fixture(scope="module")
def client(bundle):
    with TestClient(create_app(bundle, SMALL), raise_server_exceptions=False) as client:
        yield client


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


V = [[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]]


def test_encode_is_what_the_runtime_says(client, runtime):
    answer = client.post("/v1/encode", json={"inputs": {"v": V, "text": ["a b", "größe"]}})
    assert answer.status_code == 200
    q = runtime.encode({"v": np.array(V, np.float32), "text": runtime.tokenize(["a b", "größe"])})
    for name in ("mu", "logvar", "kl"):
        np.testing.assert_allclose(answer.json()[name], getattr(q, name), rtol=1e-5, atol=1e-6)


def test_null_is_a_missing_sample(client, runtime):
    answer = client.post("/v1/encode", json={"inputs": {"v": [V[0], None], "text": [None, "a"]}}).json()
    first = runtime.encode({"v": np.array(V[:1], np.float32)}).mu[0]
    second = runtime.encode({"text": runtime.tokenize(["a"])}).mu[0]
    np.testing.assert_allclose(answer["mu"], [first, second], rtol=1e-5, atol=1e-6)
    prior = client.post("/v1/encode", json={"inputs": {"v": [None]}}).json()
    assert prior["mu"] == [[0.0] * 4] and prior["kl"] == [0.0]


def test_translate_gives_words_numbers_or_a_picture(client, runtime, picture):
    from PIL import Image

    answer = client.post("/v1/translate", files={"image": ("x.png", picture)}, data={"to": "text"})
    x = np.asarray(Image.open(io.BytesIO(picture)), np.float32)[None, None] / np.float32(255)
    assert answer.json() == {"to": "text", "values": runtime.detokenize(runtime.cross_generate({"image": x}, "text"))}
    numbers = client.post("/v1/translate", files={"text": (None, "a b"), "to": (None, "v")}).json()["values"]
    expected = runtime.cross_generate({"text": runtime.tokenize(["a b"])}, "v")
    np.testing.assert_allclose(numbers, expected, rtol=1e-5, atol=1e-6)
    made = client.post("/v1/translate", json={"inputs": {"text": ["a b"]}, "to": "image", "format": "png"})
    assert made.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(made.content)).size == (4, 5)


def test_a_form_takes_files_of_many_rows(client, runtime):
    files = {"v": ("v.npy", npy(np.array(V))), "text": ("t.npy", npy(runtime.tokenize(["a", "b"])))}
    answer = client.post("/v1/encode", files=files)
    expected = runtime.encode({"v": np.array(V, np.float32), "text": runtime.tokenize(["a", "b"])})
    np.testing.assert_allclose(answer.json()["mu"], expected.mu, rtol=1e-5, atol=1e-6)


def test_reconstruct_decode_and_sample(client, runtime):
    made = client.post("/v1/reconstruct", json={"inputs": {"v": V}, "to": ["v", "text"]}).json()["values"]
    expected = runtime.reconstruct({"v": np.array(V, np.float32)}, to=["v", "text"])
    np.testing.assert_allclose(made["v"], expected["v"], rtol=1e-5, atol=1e-6)
    assert made["text"] == runtime.detokenize(expected["text"])
    everything = client.post("/v1/reconstruct", json={"inputs": {"v": V}}).json()["values"]
    assert set(everything) == {"image", "text", "v"} and np.shape(everything["image"]) == (2, 1, 5, 4)
    z = runtime.encode({"v": np.array(V, np.float32)}).mu
    decoded = client.post("/v1/decode", json={"z": z.tolist(), "to": "v"}).json()["values"]
    np.testing.assert_allclose(decoded["v"], expected["v"], rtol=1e-5, atol=1e-6)
    sampled = client.post("/v1/sample", json={"n": 3, "seed": 7, "to": "v"}).json()["values"]
    np.testing.assert_allclose(sampled["v"], runtime.sample(3, seed=7, to="v")["v"], rtol=1e-5, atol=1e-6)
    assert client.post("/v1/sample", json={}).status_code == 200


def test_says_what_it_serves(client, bundle):
    assert client.get("/v1/info").json() == json.loads((bundle / "manifest.json").read_text())
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    paths = client.get("/openapi.json").json()["paths"]
    translate = paths["/v1/translate"]["post"]
    assert {"application/json", "multipart/form-data"} == set(translate["requestBody"]["content"])
    assert "413" in translate["responses"]
    assert client.get("/docs").status_code == 200


def test_not_ready_before_it_started_and_after_it_stopped(bundle):
    client = TestClient(create_app(bundle))  # not entered: nothing has started
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    assert client.post("/v1/encode", json={"inputs": {"v": V}}).status_code == 503
    with client:
        assert client.get("/ready").status_code == 200
    assert client.get("/ready").status_code == 503


def test_a_bundle_that_cannot_run_stops_the_start(bundle, tmp_path):
    import shutil

    folder = shutil.copytree(bundle, tmp_path / "bundle")
    app = create_app(folder)
    (folder / "decoder_v.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"decoder_v\.onnx"), TestClient(app):
        pass


def test_metrics_count_by_route_and_status(bundle):
    with TestClient(create_app(bundle)) as client:
        for _ in range(3):
            client.post("/v1/encode", json={"inputs": {"v": V}})
        client.post("/v1/encode", json={"inputs": {"x": V}})
        for path in ("/made/up", "/another"):
            client.get(path)
        text = client.get("/metrics").text
    assert 'mmvae_fast_requests_total{route="/v1/encode",status="200"} 3.0' in text
    assert 'mmvae_fast_requests_total{route="/v1/encode",status="422"} 1.0' in text
    assert 'mmvae_fast_requests_total{route="none",status="404"} 2.0' in text
    assert "mmvae_fast_batch_rows_sum 6.0" in text
    assert "mmvae_fast_waiting 0.0" in text
    assert 'mmvae_fast_request_seconds_count{route="/v1/encode"} 4.0' in text


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("encode", b"{", 400, "not valid JSON"),
        ("encode", b"\xff", 400, "not valid JSON"),
        ("encode", b"[" * 10_000, 400, "not valid JSON"),
        ("encode", b"[1]", 400, "a JSON list, expected an object"),
        ("encode", b"{}", 422, "inputs: got nothing, expected an object with at least one of image, text, v"),
        ("encode", b'{"inputs": [1]}', 422, "inputs: got a list"),
        ("encode", b'{"inputs": {"imgae": [1]}}', 422, "unknown modality 'imgae' (did you mean 'image'?)"),
        ("encode", b'{"inputs": {"v": 1}}', 422, "'v' is a int, expected a list of samples"),
        ("encode", b'{"inputs": {"v": []}}', 422, "'v' has shape [0, 3], expected ['B', 3] with B above 0"),
        ("encode", b'{"inputs": {"v": [[1, 2]]}}', 422, "'v' has shape [1, 2], expected ['B', 3]"),
        ("encode", b'{"inputs": {"v": [[1, 2], [1]]}}', 422, "is no array of numbers"),
        ("encode", b'{"inputs": {"v": [[1, 2, {}]]}}', 422, "is no array of numbers"),
        ("encode", b'{"inputs": {"v": [[1, 2, "x"]]}}', 422, "is no array of numbers"),
        ("encode", b'{"inputs": {"v": [[1, 2, 1e300]]}}', 422, "holds inf at [0, 2]"),
        ("encode", b'{"inputs": {"v": [[1, 2, null]]}}', 422, "holds nan at [0, 2]"),
        ("encode", b'{"inputs": {"v": ["a"]}}', 422, "holds texts, expected 3 numbers"),
        ("encode", b'{"inputs": {"text": ["a a a a"]}}', 422, "4 words, expected at most 3"),
        ("encode", b'{"inputs": {"text": [[1.5, 0, 0]]}}', 422, "other things than whole numbers"),
        ("encode", b'{"inputs": {"text": [[0, 0, 99]]}}', 422, "holds token 99 at [0, 2], expected 0 to 4"),
        ("encode", b'{"inputs": {"v": [[1, 2, 3]], "text": ["a", "b"]}}', 422, "different numbers of rows"),
        ("encode", b'{"inputs": {"v": [[1, 2, 3]]}, "sedd": 1}', 422, "sedd: Extra inputs are not permitted"),
        ("translate", b'{"inputs": {"v": [[1, 2, 3]]}}', 422, "to: Field required"),
        ("translate", b'{"inputs": {"v": [[1, 2, 3]]}, "to": "txet"}', 422, "did you mean 'text'"),
        (
            "translate",
            b'{"inputs": {"v": [[1, 2, 3]]}, "to": "v", "format": "png"}',
            422,
            "expected one row of an image",
        ),
        ("translate", b'{"inputs": {"v": [[1, 2, 3]]}, "to": "v", "format": "gif"}', 422, "format: Input should be"),
        ("reconstruct", b'{"inputs": {"v": [[1, 2, 3]]}, "to": [1]}', 422, "to."),
        ("decode", b'{"z": [[1, 2, 3]]}', 422, "z has shape [1, 3], expected [..., 4]"),
        ("decode", b'{"z": [1, 2, 3, 4]}', 422, "z has shape [4], expected [B, 4]"),
        ("decode", b'{"z": [["x"]]}', 422, "z is no array of numbers"),
        ("decode", b'{"z": [[1, 2, 3, null]]}', 422, "z holds NaN"),
        ("decode", b'{"z": []}', 422, "z: List should have at least 1 item"),
        ("sample", b'{"n": 0}', 422, "n: Input should be greater than or equal to 1"),
        ("sample", b'{"seed": 1.5}', 422, "seed: Input should be a valid integer"),
        ("sample", b'{"n": 9}', 413, "9 rows, expected at most 8"),
        ("encode", b'{"inputs": {"v": [' + b",".join([b"[1,2,3]"] * 9) + b"]}}", 413, "9 rows, expected at most 8"),
        ("encode", b'{"inputs": {"v": "' + b"a" * 30_000 + b'"}}', 413, "expected at most 20000 bytes"),
    ],
)
def test_what_is_wrong_is_named(client, path, body, status, message):
    answer = client.post(f"/v1/{path}", content=body, headers=JSON)
    error = answer.json()["error"]
    assert (answer.status_code, message in error["message"]) == (status, True), error
    assert error["type"]


def test_answers_have_a_limit(bundle):
    with TestClient(create_app(bundle, Limits(output_values=100))) as client:
        answer = client.post("/v1/sample", json={"n": 6})
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "an answer of 156 numbers, expected at most 100"
        assert client.post("/v1/sample", json={"n": 6, "to": "v"}).status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_other_content_types(client, kind):
    answer = client.post("/v1/encode", content=b"{}", headers={"content-type": kind} if kind else {})
    assert answer.status_code == 415
    assert "expected application/json or multipart/form-data" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n" * 200),
    ],
)
def test_malformed_forms(client, kind, body):
    answer = client.post("/v1/encode", content=body, headers={"content-type": kind})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("image", b"no picture", "no known format"),
        ("image", npy(np.zeros((2, 2))), "has shape [2, 2], expected ['B', 1, 5, 4]"),
        ("v", npy(np.zeros(3))[:-4], "20 bytes of data, expected 24"),
        ("v", b"1,2", "'v' has shape [1, 2]"),
    ],
)
def test_bad_files(client, name, data, message):
    answer = client.post("/v1/encode", files={name: ("file", data)})
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]


def test_a_name_twice_in_a_form(client):
    answer = client.post("/v1/encode", files=[("v", ("a", b"1,2,3")), ("v", ("b", b"1,2,3"))])
    assert answer.status_code == 400
    assert "'v' twice" in answer.json()["error"]["message"]


def test_other_paths_and_methods(client):
    assert client.get("/nowhere").json() == {"error": {"type": "HTTPException", "message": "Not Found"}}
    assert client.get("/v1/encode").status_code == 405


def test_a_broken_model_tells_the_log_only(bundle, monkeypatch, caplog):
    runtime = Runtime.load(bundle)
    with TestClient(create_app(runtime), raise_server_exceptions=False) as client:
        for error in (BundleError("/secret/path: broken"), RuntimeError("/secret/path")):
            monkeypatch.setattr(runtime, "encode", lambda *_, error=error: (_ for _ in ()).throw(error))
            answer = client.post("/v1/encode", json={"inputs": {"v": V}})
            assert answer.status_code == 500
            assert "secret" not in answer.text and "log" in answer.json()["error"]["message"]
        assert "/secret/path: broken" in caplog.text
        assert client.get("/health").status_code == 200
