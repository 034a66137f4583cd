"""``mmvae-fast serve`` in a process of its own, where torch cannot be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def process(bundle, *options: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """The process, and its port."""
    code = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; from mmvae_fast.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(bundle), "--port", "0", *options],
        env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        for line in server.stderr:
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise AssertionError(f"it never ran: exit code {server.wait()}")
        yield server, int(found[1])
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
