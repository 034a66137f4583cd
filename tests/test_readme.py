"""The README's examples run as printed, one after the other, in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_examples(tmp_path, monkeypatch, capsys):
    for package in ("sklearn", "lightning", "onnxscript", "onnxruntime", "safetensors"):
        pytest.importorskip(package)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)

    assert names["q"].z.shape == (32, 64)
    assert names["text_encoder"].weight.grad.isfinite().all()
    assert names["pixels"].shape == (1, 1, 8, 8)
    assert len(names["guess"]) == 4
    assert names["result"].report.passed
    assert names["posterior"].mu.shape == (4, 16)
    assert names["samples"]["image"].shape == (8, 1, 8, 8)
    expected = names["model"].sample(8, seed=1)["image"].numpy()
    assert abs(names["samples"]["image"] - expected).max() < 1e-4
    assert "torch.Size([32, 64])" in capsys.readouterr().out


@pytest.mark.slow
def test_deployment(tmp_path, monkeypatch, capfd):
    """The section's commands, as printed, in an empty folder; but the server, which does not end (tests/serve)."""
    for package in ("sklearn", "lightning", "onnxscript", "onnxruntime", "typer", "yaml", "soundfile", "librosa"):
        pytest.importorskip(package)
    section = README.read_text(encoding="utf-8").partition("## Export and serve")[2]
    lines = re.search(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL).group(1).splitlines()
    commands = [line.partition("#")[0].split() for line in lines]
    assert [command[1] for command in commands] == [
        "train", "export", "inspect", "run", "quantize", "bench", "serve",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for command in commands[:-1]:
        subprocess.run([sys.executable, "-m", "mmvae_fast", *command[1:]], check=True)
        if command[1] == "run":
            assert "a photo of the digit" in capfd.readouterr().out
    assert (tmp_path / "small" / "manifest.json").is_file()


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\| @|@[a-z]+\d* \|", README.read_text(encoding="utf-8"))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
