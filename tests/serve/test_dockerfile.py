"""The image's build steps, run without Docker: a fresh environment in which torch is nowhere serves a bundle."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker/Dockerfile"
STEPS = re.findall(r"^(FROM|COPY|RUN) (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
BUILD = STEPS[: [step for step, _ in STEPS].index("FROM", 1)]


def test_what_is_copied_is_there_and_what_is_installed_is_pinned():
    for step, text in STEPS:
        if step == "COPY" and "--from" not in text:
            assert all((ROOT / source).exists() for source in text.split()[:-1]), text
    lines = [line for line in (ROOT / "docker/requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert not any(line.startswith(("torch", "onnx==")) for line in lines)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    else:
        shutil.copy(source, target)


@pytest.mark.slow
def test_the_build_steps_give_a_server_without_torch(bundle, tmp_path):
    source, venv = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for step, text in BUILD:
        if step == "COPY":
            *names, target = text.split()
            for name in names:
                copy(ROOT / name, source / Path(name).name if target in (".", "./") else source / target)
        elif step == "RUN":
            command = re.sub(r"(?<!\S)/venv", str(venv), text).replace("python -m", f"{sys.executable} -m", 1)
            done = subprocess.run(command, shell=True, cwd=source, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    listed = subprocess.run([venv / "bin/pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "mmvae_fast" in listed and "torch" not in listed
    server = subprocess.Popen(
        [venv / "bin/mmvae-fast", "serve", bundle, "--port", "0"],
        env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = next(found[1] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        check = (
            f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/ready', timeout=2).read().decode())"
        )
        ready = subprocess.run([venv / "bin/python", "-c", check], capture_output=True, text=True)
        assert "ready" in ready.stdout, ready.stderr
    finally:
        server.terminate()
        server.wait(20)
        server.stderr.close()
