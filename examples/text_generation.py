"""A VAE whose decoder is a Transformer language model, on two corpora that need no download.

    python examples/text_generation.py                          # sentences of Python's own documentation: minutes
    python examples/text_generation.py --captions FOLDER        # captions of FOLDER/pairs/pairs_{train,test}.csv

Shows what such a model does with sentences it never saw: reconstructs them from its latent, walks from one to another,
and makes new ones. Of captions, which all name one digit, it prints how many generated ones do.

The sentences are those of 3 to 6 plain words in the docstrings of the standard library of the Python that runs this,
so figures differ a little from version to version.
"""

from __future__ import annotations

import argparse
import ast
import csv
import random
import re
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from mmvae_fast.modalities import Language
from mmvae_fast.models import VAE
from mmvae_fast.systems.text_generation import generate, interpolate, reconstruct
from mmvae_fast.training import fit

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTENCE = re.compile(r"[A-Z][A-Za-z,' -]+\.")
LATENT_DIM = 32


def docstrings(folder: Path) -> Iterator[str]:
    """Of every module, class and function below a folder, tests and installed packages left out."""
    for path in sorted(folder.rglob("*.py")):
        if {"test", "tests", "site-packages", "dist-packages"} & set(path.relative_to(folder).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about odd escapes in old files
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


def sentences() -> list[str]:
    """Plain sentences of Python's documentation, each once."""
    found = set()
    for docstring in docstrings(Path(sysconfig.get_path("stdlib"))):
        for paragraph in re.split(r"\n\s*\n", docstring):
            for sentence in re.split(r"(?<=[.])\s+", " ".join(paragraph.split())):
                if SENTENCE.fullmatch(sentence) and 3 <= len(sentence.split()) <= 6:
                    found.add(sentence)
    return sorted(found)


def captions(folder: Path, split: str) -> list[str]:
    with open(folder / "pairs" / f"pairs_{split}.csv", newline="", encoding="utf-8") as file:
        return [row["caption"] for row in csv.DictReader(file)]


def one_digit(text: str) -> bool:
    return sum(word in DIGITS for word in text.split()) == 1


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, metavar="FOLDER", help="train on captions instead")
    parser.add_argument("--rows", type=int, help="at most so many training texts")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.captions:
        train, test = captions(options.captions, "train")[: options.rows or 4000], captions(options.captions, "test")
        test = test[:1000]
        network, beta, epochs = {"width": 64, "word_dropout": 0.2}, 0.1, options.epochs or 8
    else:
        texts = sentences()
        random.Random(options.seed).shuffle(texts)
        train, test = texts[200:][: options.rows], texts[:200]
        network, beta, epochs = {"width": 128, "word_dropout": 0.5}, 0.03, options.epochs or 40
    language = Language.from_texts(train, vocabulary_size=1000, dropout=0.0, **network)
    test = [text for text in test if len(language.encode(text)) <= language.length]
    print(f"{len(train)} texts of up to {language.length} tokens, {language.vocabulary_size} kinds of them")
    torch.manual_seed(options.seed)
    vae = VAE({"text": language}, LATENT_DIM, beta=beta)
    began = time.perf_counter()
    fit(vae, {"text": language.tokenize(train)}, epochs=epochs, batch_size=64, lr=2e-3, seed=options.seed)
    print(f"{epochs} epochs in {time.perf_counter() - began:.0f} s")
    return show(vae.eval(), test, options)


def show(vae: VAE, test: list[str], options: argparse.Namespace) -> dict[str, float]:
    written = reconstruct(vae, test)
    figures = {
        "exact": sum(a == b for a, b in zip(test, written, strict=True)) / len(test),
        "words": sum(len(set(a.split()) & set(b.split())) for a, b in zip(test, written, strict=True))
        / sum(len(set(a.split())) for a in test),
    }
    print(
        f"of {len(test)} held-out texts {figures['exact']:.2f} come back exactly, of their words {figures['words']:.2f}"
    )
    for text, again in list(zip(test, written, strict=True))[:6]:
        print(f"  {text}\n    -> {again}")
    print("from one to another:")
    for step in interpolate(vae, test[0], test[1], 7):
        print(f"  {step}")
    for way, sampling in {"greedy": {}, "temperature 0.8, top_p 0.95": {"temperature": 0.8, "top_p": 0.95}}.items():
        made = generate(vae, 1000 if options.captions else 200, seed=options.seed, **sampling)
        print(f"generated, {way} ({len(set(made))} different of {len(made)}):")
        for text in made[:6]:
            print(f"  {text}")
        if options.captions:
            figures[way] = sum(map(one_digit, made)) / len(made)
            print(f"  exactly one digit word: {figures[way]:.3f}")
    return figures


if __name__ == "__main__":
    main()
