"""A server as it runs: in a process without torch, with many clients, some of them hostile."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the 'serve' extra")
pytest.importorskip("typer", reason="needs the 'cli' extra")

from server_process import process

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


@pytest.fixture(scope="module")
def port(bundle):
    options = ("--body-timeout", "2", "--max-body", "0.05", "--max-rows", "16", "--workers", "2")
    with process(bundle, *options) as (_, port):
        yield port


def post(port: int, path: str, content: object, timeout: float = 30) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def sent(port: int, data: bytes, wait: float = 5) -> bytes:
    """Raw bytes, and what comes back until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        connection.sendall(data)
        got = b""
        try:
            while part := connection.recv(65536):
                got += part
        except TimeoutError:
            pass
        return got


HEAD = b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_good_requests_among_bad_slow_and_large_ones(port, runtime):
    """16 clients get every answer, and each its own, while others misbehave in every way at once."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((16, 12, 3)).astype(np.float32)
    expected = [runtime.encode({"v": x}).mu for x in points]
    wrong: list = []
    done = threading.Event()

    def good(client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for row in range(12):
            body = json.dumps({"inputs": {"v": [points[client, row].tolist()]}})
            connection.request("POST", "/v1/encode", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            found = json.loads(answer.read())
            if answer.status != 200 or not np.allclose(found["mu"], expected[client][row], rtol=1e-4, atol=1e-5):
                wrong.append((client, row, answer.status, found))
        connection.close()

    def bad() -> None:
        bodies = [b"{", b'{"inputs": {"v": [[1, 2]]}}', b'{"inputs": {"v": [[1, 2, 1e300]]}}', b"x" * 60_000]
        while not done.is_set():
            for body in bodies:
                try:
                    status, _ = post(port, "/v1/encode", body)
                except (ConnectionError, http.client.HTTPException):  # refused while it was still sending
                    continue
                if status not in (400, 413, 422):
                    wrong.append(("bad", status))

    def leaves() -> None:
        """In the middle of a request, again and again."""
        while not done.is_set():
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
            time.sleep(0.01)

    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for connection in slow:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
    others = [threading.Thread(target=work) for work in (bad, bad, leaves)]
    clients = [threading.Thread(target=good, args=(client,)) for client in range(16)]
    for thread in (*others, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    for connection in slow:
        connection.close()
    assert wrong == []


def test_a_body_that_never_ends_is_cut(port):
    """Without a length, in chunks: by size as it comes, and by time."""
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    try:
        answer = sent(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20)
    except ConnectionError:  # closed while this was still sending
        answer = b"413"
    assert b"413" in answer.split(b"\r\n")[0]
    began = time.perf_counter()
    answer = sent(port, HEAD + b"Content-Length: 1000\r\n\r\n{", wait=15)
    assert b" 408 " in answer.split(b"\r\n")[0] and b"expected the whole body" in answer
    assert 1.5 < time.perf_counter() - began < 12


def test_an_oversized_body_is_refused_before_it_is_sent(port):
    answer = sent(port, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"a body of 99999999999 bytes, expected at most 52428 bytes" in answer


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000, b"\r\n\r\n\r\n"])
def test_what_is_no_http(port, junk):
    with suppress(ConnectionError):
        sent(port, junk, wait=1)
    assert post(port, "/v1/sample", {"to": "v"})[0] == 200


def test_nothing_leaks_through_the_metrics(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'route="/v1/encode",status="408"' in text and 'status="413"' in text
    assert 'status="500"' not in text


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_shutdown_answers_what_was_asked(bundle, how):
    with process(bundle) as (server, port):
        answers = []
        request = {"n": 1000, "to": ["image", "v", "text"]}

        def ask() -> None:
            answers.append(post(port, "/v1/sample", request)[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        server.send_signal(how)
        for thread in threads:
            thread.join()
        assert answers == [200, 200, 200]
        assert server.wait(20) in (0, -how)  # asked to stop, it stopped
        assert "Traceback" not in server.stderr.read()


def test_how_it_ends_when_it_cannot_start(bundle, tmp_path):
    import subprocess
    import sys

    def run(*options) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "mmvae_fast", "serve", *map(str, options)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    nowhere = run(tmp_path / "nowhere")
    assert nowhere.returncode == 1 and "no such folder" in nowhere.stderr and "Traceback" not in nowhere.stderr
    usage = run(bundle, "--log-level", "loud")
    assert usage.returncode == 2 and "--log-level loud: expected one of" in usage.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = run(bundle, "--port", taken.getsockname()[1])
    assert busy.returncode == 1 and "address already in use" in busy.stderr


def test_connections_are_limited(bundle):
    with process(bundle, "--max-connections", "4") as (_, port):
        idle = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(4)]
        time.sleep(0.3)
        refused = sent(port, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 503"), refused
        for connection in idle:
            connection.close()
        time.sleep(0.3)
        answered = sent(port, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 200"), answered
