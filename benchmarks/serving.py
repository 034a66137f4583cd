"""Requests a second of a served bundle, and how long they take: ``python -m benchmarks.serving BUNDLE``.

Starts ``mmvae-fast serve`` in a process of its own, and loads it with 1 and 16 clients, each of which sends its next
request when the last is answered. Client and server share the machine, so on few cores the figures are what both leave
each other. Beside HTTP, the same calls made directly are timed: the difference is what serving costs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.report import table
from mmvae_fast.onnx import Runtime, values

HEADER = ["call", "clients", "requests/s", "p50 ms", "p99 ms", "failed"]


@contextmanager
def server(bundle: Path, workers: int) -> Iterator[int]:
    """The port of a server that runs meanwhile."""
    command = [sys.executable, "-m", "mmvae_fast", "serve", str(bundle), "--port", "0", "--workers", str(workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"running on http://[\d.]+:(\d+)", line):
                break
        else:
            raise SystemExit(f"the server did not start:\n{''.join(said)}")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def load(clients: int, seconds: float, connect: Callable[[], Callable[[], bool]]) -> list[str]:
    """Cells of the table. Each client calls what ``connect`` gives it over and over; a call says if it was answered."""
    times: list[float] = []
    failed: list[bool] = []
    start = threading.Barrier(clients + 1)

    def client() -> None:
        call = connect()
        call()
        start.wait()
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            answered = call()
            times.append(time.perf_counter() - now)
            if not answered:
                failed.append(True)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - began
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
    return [str(clients), f"{len(times) / spent:.0f}", f"{p50:.2f}", f"{p99:.2f}", str(len(failed))]


def over_http(port: int, path: str, body: bytes) -> Callable[[], Callable[[], bool]]:
    def connect() -> Callable[[], bool]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def call() -> bool:
            connection.request("POST", path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status == 200

        return call

    return connect


def main(arguments: list[str] | None = None) -> list[list[str]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=5.0, help="for every line")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    runtime = Runtime.load(options.bundle)
    one = values.example(runtime, 1)
    inputs = {name: x.tolist() for name, x in one.items()}
    target = next(iter(one))
    rows: list[list[str]] = []
    calls = {
        "encode": ({"inputs": inputs}, lambda: runtime.encode(one)),
        "translate": ({"inputs": inputs, "to": target}, lambda: runtime.cross_generate(one, target)),
    }
    with server(options.bundle, options.workers) as port:
        for name, (content, direct) in calls.items():
            body = json.dumps(content).encode()
            for clients in options.clients:
                found = load(clients, options.seconds, over_http(port, f"/v1/{name}", body))
                rows.append([f"{name}, {len(body) / 1e3:.1f} kB of JSON", *found])
            rows.append([f"{name}, no HTTP", *load(1, options.seconds, lambda call=direct: lambda: call() is not None)])
    print(f"{runtime!r}\n{os.cpu_count()} cores, {options.workers} worker(s)")
    print(table(HEADER, rows))
    return rows


if __name__ == "__main__":
    main()
