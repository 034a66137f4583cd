"""The README's examples run as printed, one after the other, in an empty folder."""

from __future__ import annotations

import re
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


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
