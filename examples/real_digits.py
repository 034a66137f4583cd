"""Real digits four ways: handwriting (MNIST), speech (Free Spoken Digit Dataset), captions and pen movements.

    python examples/real_digits.py FOLDER                      # MoPoE and MMVAE, ten minutes each on one core
    python examples/real_digits.py FOLDER --models MMVAE --missing 0.5 --epochs 30

Trains on 10,000 rows paired by label, judges on 2,000 that hold other images, recordings and trajectories, and prints
coherence: the share of decoded posterior means in which a judge that the model never saw finds the right digit. With
``--missing``, so much of every modality is missing in training, at random.

FOLDER holds ``mnist/*-ubyte.gz``, ``fsdd/fsdd_recordings.zip``, ``pendigits/pendigits_{train,test}.csv`` and
``pairs/pairs_{train,test}.csv`` with the columns mnist_index, label, fsdd_file, pendigits_row, caption.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import time
import wave
import zipfile
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC

from mmvae_fast import models
from mmvae_fast.evaluate import cross_coherence
from mmvae_fast.modalities import Audio, Image, Modality, Text, Vector
from mmvae_fast.modalities.audio import log_mel
from mmvae_fast.training import fit

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLES, FRAMES, MELS = 8000, 32, 32  # a second at 8 kHz: longer recordings are cut off
HIDDEN, LATENT_DIM = (400,), 32
Data = dict[str, torch.Tensor]


def read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_speech(folder: Path) -> dict[str, np.ndarray]:
    """Log-mel pictures [MELS, FRAMES] by file name."""
    names, waves = [], []
    with zipfile.ZipFile(folder / "fsdd" / "fsdd_recordings.zip") as archive:
        for name in archive.namelist():
            if not name.endswith(".wav"):
                continue
            with wave.open(io.BytesIO(archive.read(name))) as sound:
                samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)[:SAMPLES] / 32768.0
            names.append(Path(name).name)
            waves.append(np.pad(samples / max(np.abs(samples).max(), 1e-6), (0, SAMPLES - len(samples))))
    pictures = log_mel(np.stack(waves), sample_rate=8000, n_mels=MELS, n_fft=512, hop_length=SAMPLES // (FRAMES - 1))
    return dict(zip(names, pictures[:, :, :FRAMES], strict=True))


def read(folder: Path, split: str, rows: int, speech: dict[str, np.ndarray], text: Text | None) -> tuple:
    """(data by modality, labels, text modality); the vocabulary is that of the training captions."""
    with open(folder / "pairs" / f"pairs_{split}.csv", newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))[:rows]
    # Last word first: of six ways to say it, the digit stands at the end, and a decoder predicts place by place.
    captions = [" ".join(reversed(row["caption"].split())) for row in pairs]
    text = text or Text.from_sentences(captions, hidden=HIDDEN)
    images = read_idx(folder / "mnist" / f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte.gz")
    pen = np.loadtxt(folder / "pendigits" / f"pendigits_{split}.csv", delimiter=",", skiprows=_header(folder, split))
    data = {
        "image": torch.from_numpy(images[[int(r["mnist_index"]) for r in pairs]] / 255.0).float().unsqueeze(1),
        "speech": torch.from_numpy(np.stack([speech[r["fsdd_file"]] for r in pairs])).float(),
        "caption": text.tokenize(captions),
        "pen": torch.from_numpy(pen[[int(r["pendigits_row"]) for r in pairs], :16] / 100.0).float(),
    }
    return data, np.array([int(r["label"]) for r in pairs]), text


def _header(folder: Path, split: str) -> int:
    with open(folder / "pendigits" / f"pendigits_{split}.csv", encoding="utf-8") as file:
        return 0 if file.readline().split(",")[0].strip().isdigit() else 1


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
        svm = SVC(C=10).fit(data[name].flatten(1).numpy(), labels)
        judges[name] = lambda x, svm=svm: svm.predict(x.flatten(1).numpy())

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
    train, labels, text = read(options.folder, "train", options.rows, speech, None)
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
