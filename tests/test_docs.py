"""The examples in docs/ run as printed, block after block of a page; its links lead somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from mmvae_fast import functional

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FUNCTIONS = [name for name in functional.__all__ if name.islower()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_page(page):
    text = page.read_text(encoding="utf-8")
    torch.manual_seed(0)
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_a_page(name):
    """With its signature as it is, and an example; the index links to it."""
    text = (DOCS / "functions" / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n") and "```python" in text
    signature = re.search(rf"^{name}\((.*?)\)(?:\n   )? -> ", text, re.MULTILINE | re.DOTALL)
    parameters = [p.split("=")[0].strip(" *") for p in signature[1].split(",")]
    assert [p for p in parameters if p] == list(inspect.signature(getattr(functional, name)).parameters)
    assert f"({name}.md)" in (DOCS / "functions" / "README.md").read_text(encoding="utf-8")
