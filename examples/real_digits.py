"""Real digits four ways: handwriting (MNIST), speech (Free Spoken Digit Dataset), captions and pen movements.

    python examples/real_digits.py FOLDER                      # MoPoE and MMVAE, ten minutes each on one core
    python examples/real_digits.py FOLDER --models MMVAE --missing 0.5 --epochs 30

Trains on 10,000 rows paired by label, judges on 2,000 that hold other images, recordings and trajectories, and prints
coherence: the share of decoded posterior means in which a judge that the model never saw finds the right digit. With
``--missing``, so much of every modality is missing in training, at random.

FOLDER is described in ``_real_data.py``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _real_data import FRAMES, MELS, WORDS, Data, fit_judge, read, read_speech

from mmvae_fast import models
from mmvae_fast.evaluate import cross_coherence
from mmvae_fast.modalities import Audio, Image, Modality, Text, Vector
from mmvae_fast.training import fit

HIDDEN, LATENT_DIM = (400,), 32


def modalities(text: Text) -> dict[str, Modality]:
    return {
        "image": Image((1, 28, 28), hidden=HIDDEN),
        "speech": Audio((MELS, FRAMES), hidden=HIDDEN, scale=0.3),
        "caption": text,
        "pen": Vector(16, hidden=HIDDEN, scale=0.15),
    }


def fit_judges(data: Data, labels: np.ndarray, text: Text) -> dict:
    """Who tells which digit a modality shows, -1 for none: classifiers of real data, and the number word of a text."""
    judges = {}
    for name in ("image", "speech", "pen"):
        judges[name] = fit_judge(data[name], labels)

    def spoken_of(ids: torch.Tensor) -> np.ndarray:
        found = [[WORDS.index(w) for w in sentence.split() if w in WORDS] for sentence in text.detokenize(ids)]
        return np.array([digits[0] if len(digits) == 1 else -1 for digits in found])

    return judges | {"caption": spoken_of}


def coherence(model: models.MultimodalVAE, data: Data, labels: np.ndarray, judges: dict) -> dict[str, float]:
    table = cross_coherence(model, data, judges, labels, subsets=[[name] for name in data])
    return {f"{source}->{target}": share for source, of in table.items() for target, share in of.items()}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="MoPoE,MMVAE", help="names of mmvae_fast.models")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--missing", type=float, default=0.0, help="share of each modality missing in training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    speech = read_speech(options.folder)
    train, labels, text = read(options.folder, "train", options.rows, speech, hidden=HIDDEN)
    test, test_labels, _ = read(options.folder, "test", 2000, speech, text)
    judges = fit_judges(train, labels, text)
    print(
        "judges on held-out data:", {n: round(float(np.mean(j(test[n]) == test_labels)), 3) for n, j in judges.items()}
    )
    means = {}
    for name in options.models.split(","):
        torch.manual_seed(options.seed)
        model = getattr(models, name)(modalities(text), LATENT_DIM, likelihood_weights="dimension")
        mask = torch.rand(len(labels), len(train)) >= options.missing
        began = time.perf_counter()
        fit(model, {**train, "mask": mask}, epochs=options.epochs, batch_size=128, seed=options.seed, progress=False)
        seconds = time.perf_counter() - began
        shares = coherence(model.eval(), test, test_labels, judges)
        means[name] = float(np.mean(list(shares.values())))
        print(f"{name}, {options.epochs} epochs in {seconds:.0f} s, {options.missing:.0%} missing:")
        print("  " + ", ".join(f"{direction} {share:.3f}" for direction, share in shares.items()))
        print(f"  mean from one modality to another: {means[name]:.3f}", flush=True)
    return means


if __name__ == "__main__":
    main()
