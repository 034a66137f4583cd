"""What one client may not do to the others: stop the server's clock, take its memory, or go uncounted."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("orjson", reason="needs the 'serve' extra")
pytest.importorskip("httpx2", reason="starlette's TestClient needs it")

from starlette.testclient import TestClient

from mmvae_fast.onnx import Runtime, values
from mmvae_fast.serve import Limits, create_app
from mmvae_fast.serve.batching import Reader
from mmvae_fast.serve.errors import Busy, TookTooLong

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(bundle):
    with TestClient(create_app(bundle, Limits(pixels=1000)), raise_server_exceptions=False) as client:
        yield client


def message(answer) -> str:
    return answer.json()["error"]["message"]


def test_a_million_unknown_fields_are_one_error(client):
    body = b'{"inputs":{"v":[[1,2,3]]},' + b",".join(b'"k%d":0' % i for i in range(300_000)) + b"}"
    began = time.perf_counter()
    answer = client.post("/v1/encode", content=body, headers=JSON)
    assert (answer.status_code, message(answer)) == (413, "a JSON object of 300001 fields, expected at most 128")
    assert time.perf_counter() - began < 1.5
    began = time.perf_counter()
    answer = client.post("/v1/sample", content=b'{"to":[' + b",".join([b"1"] * 1_000_000) + b"]}", headers=JSON)
    assert answer.status_code == 422 and "a list of 1000000 names, expected at most 128" in message(answer)
    assert time.perf_counter() - began < 1.5


def test_pictures_have_a_limit_of_pixels(client):
    answer = client.post("/v1/encode", files={"image": ("x", values.png(np.zeros((1, 40, 30), np.float32)))})
    assert answer.status_code == 422 and "1200 pixels, expected at most 1000" in message(answer)


def test_requests_are_read_few_at_a_time_counted_and_in_time():
    async def check() -> None:
        together, most, free = 0, 0, threading.Event()

        def slow() -> None:
            nonlocal together, most
            together += 1
            most = max(most, together)
            free.wait(5)
            together -= 1

        async with Reader(Limits(queue=3, seconds=0.2)) as reader:
            tasks = [asyncio.create_task(reader.run(slow)) for _ in range(3)]
            await asyncio.sleep(0.05)
            assert len(reader) == 3
            with pytest.raises(Busy):
                await reader.run(slow)
            assert [type(e) for e in await asyncio.gather(*tasks, return_exceptions=True)] == [TookTooLong] * 3
            free.set()
            assert await reader.run(lambda: 7) == 7 and most == 1
        with pytest.raises(Busy):
            await reader.run(slow)

    asyncio.run(check())


def test_an_unexpected_error_is_counted_as_500(bundle, monkeypatch):
    runtime = Runtime.load(bundle)
    with TestClient(create_app(runtime), raise_server_exceptions=False) as client:
        monkeypatch.setattr(runtime, "encode", lambda *_: 1 / 0)
        assert client.post("/v1/encode", json={"inputs": {"v": [[1, 2, 3]]}}).status_code == 500
        assert 'route="/v1/encode",status="500"} 1.0' in client.get("/metrics").text


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("shape", "data"),
    [(f"(0, {2**70})", b""), ("(" + "1, " * 70 + ")", b"\0" * 4), ("(True,)", b"\0" * 4), (f"({2**62}, 0)", b"")],
)
def test_headers_that_no_array_has(client, shape, data):
    answer = client.post("/v1/encode", files={"v": ("x.npy", npy(shape, data))})
    assert answer.status_code == 422, answer.text
    assert "modality 'v'" in message(answer)


def test_routes_without_inputs_refuse_them(client):
    for path, body in (("sample", {"n": 1}), ("decode", {"z": [[0.0] * 4]})):
        for extra in ({"inputs": {"v": [[1, 2, 3]]}}, {"v": [[1, 2, 3]]}):
            answer = client.post(f"/v1/{path}", json={**body, **extra})
            assert answer.status_code == 422 and message(answer).startswith(f"inputs: /v1/{path} takes none"), path


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("encode", {"inputs": {"v": [["1", "2", "3"]]}}, "holds str, expected numbers"),
        ("encode", {"inputs": {"v": [[True, 1, 2]]}}, "holds bool, expected numbers"),
        ("encode", {"inputs": {"text": [[True, 1, 0]]}}, "holds bool, expected numbers"),
        ("encode", {"inputs": {"image": "abc"}}, "'image' is a str, expected a list of samples"),
        ("decode", {"z": [["1", 2, 3, 4]]}, "holds str, expected numbers"),
        ("sample", {"n": "2"}, "n: Input should be a valid integer"),
        ("sample", {"n": True}, "n: Input should be a valid integer"),
    ],
)
def test_json_numbers_are_numbers(client, path, body, expected):
    answer = client.post(f"/v1/{path}", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422 and expected in message(answer), answer.text


def test_a_form_has_numbers_as_text(client):
    assert client.post("/v1/sample", files={"n": (None, "2"), "to": (None, "v")}).status_code == 200


def test_a_form_names_several_targets(client):
    fields = [("v", (None, "1,2,3")), ("to", (None, "v")), ("to", (None, "text"))]
    answer = client.post("/v1/reconstruct", files=fields)
    assert answer.status_code == 200 and set(answer.json()["values"]) == {"v", "text"}


def test_errors_name_no_classes_of_python(bundle, monkeypatch):
    runtime = Runtime.load(bundle)
    with TestClient(create_app(runtime), raise_server_exceptions=False) as client:
        for error, kind in ((ImportError("x"), "NotInstalled"), (ZeroDivisionError("x"), "ServerError")):
            monkeypatch.setattr(runtime, "encode", lambda *_, error=error: (_ for _ in ()).throw(error))
            answer = client.post("/v1/encode", json={"inputs": {"v": [[1, 2, 3]]}})
            assert answer.json()["error"]["type"] == kind
