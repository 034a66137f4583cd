"""A picture put into words by a Transformer: MNIST images and captions of six templates in one MoPoE.

    python examples/image_to_language.py --data FOLDER             # two minutes on one core

Prints how often the text generated from an image alone names its digit, and no other, and how often the image generated
from a caption alone shows it, for a judge that the model never saw. FOLDER is described in ``_real_data.py``.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from _real_data import DATA, WORDS, fit_judge, read_digits

from mmvae_fast.modalities import Image, Language
from mmvae_fast.models import MoPoE
from mmvae_fast.training import fit

LATENT_DIM = 32


def read(folder: Path, split: str, rows: int) -> tuple[torch.Tensor, list[str], np.ndarray]:
    """Images [N, 1, 28, 28], captions, labels."""
    with open(folder / "pairs" / f"pairs_{split}.csv", newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))[:rows]
    images, _ = read_digits(folder, split)
    chosen = images[[int(row["mnist_index"]) for row in pairs]]
    return chosen, [row["caption"] for row in pairs], np.array([int(row["label"]) for row in pairs])


def named(text: str) -> int:
    """The digit that a text names, -1 if it names none or several."""
    found = [WORDS.index(word) for word in text.split() if word in WORDS]
    return found[0] if len(found) == 1 else -1


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    images, captions, labels = read(options.data, "train", options.rows)
    test_images, test_captions, test_labels = read(options.data, "test", 1000)
    language = Language.from_texts(captions, vocabulary_size=400, width=64, word_dropout=0.4, dropout=0.0)
    judge = fit_judge(images[:4000], labels[:4000])

    torch.manual_seed(options.seed)
    # a caption is a few tokens, an image 784 pixels: unweighted, what is said would hardly count
    weights = {"image": 1.0, "text": 20.0}
    modalities = {"image": Image((1, 28, 28), hidden=(400,)), "text": language}
    model = MoPoE(modalities, LATENT_DIM, likelihood_weights=weights)
    data = {"image": images, "text": language.tokenize(captions)}
    began = time.perf_counter()
    fit(model, data, epochs=options.epochs, batch_size=128, seed=options.seed, progress=False)
    print(f"{options.epochs} epochs in {time.perf_counter() - began:.0f} s")

    model.eval()
    texts = language.detokenize(model.translate({"image": test_images}, to="text"))
    pictures = model.translate({"text": language.tokenize(test_captions)}, to="image")
    digits = np.array([named(text) for text in texts])
    figures = {
        "text names the image's digit": float(np.mean(digits == test_labels)),
        "text names one digit": float(np.mean(digits >= 0)),
        "image shows the caption's digit": float(np.mean(judge(pictures) == test_labels)),
    }
    for what, share in figures.items():
        print(f"{what}: {share:.3f}")
    for text, digit in list(zip(texts, test_labels, strict=True))[:6]:
        print(f"  an image of a {digit}: {text}")
    return figures


if __name__ == "__main__":
    main()
