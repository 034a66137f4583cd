"""A corpus that is on every machine: plain sentences of the documentation of Python, NumPy and PyTorch."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
SENTENCE = re.compile(r"[A-Z][A-Za-z]*((, |[ '-])[A-Za-z]+)+\.")


def docstrings(folder: Path) -> Iterator[str]:
    """What stands in triple quotes in a package, its tests left out."""
    for path in sorted(folder.rglob("*.py")):
        if not {"test", "tests", "site-packages", "dist-packages"} & set(path.relative_to(folder).parts):
            yield from DOCSTRING.findall(path.read_text(encoding="utf-8", errors="ignore"))


def words(text: str) -> list[str]:
    """Those of a sentence, in lower case."""
    return re.findall(r"[A-Za-z'-]+", text.lower())


def sentences(frequent: int = 1500) -> list[str]:
    """All sentences of 3 to 8 plain words, each once, of so many words that most of them have; sorted. They differ a
    little from version to version of those packages."""
    found: set[str] = set()
    for folder in (sysconfig.get_path("stdlib"), *np.__path__, *torch.__path__):
        for docstring in docstrings(Path(folder)):
            for paragraph in re.split(r"\n\s*\n", docstring):
                parts = re.split(r"(?<=[.])\s+", " ".join(paragraph.split()))
                found.update(part for part in parts if SENTENCE.fullmatch(part) and 3 <= len(part.split()) <= 8)
    count = Counter(word for sentence in found for word in set(words(sentence)))
    known = {word for word, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))[:frequent]}
    return sorted(sentence for sentence in found if known.issuperset(words(sentence)))
