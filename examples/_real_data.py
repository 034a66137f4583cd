"""What the examples on real digits read: handwriting (MNIST), speech (Free Spoken Digit Dataset), captions and pen
movements.

The folder holds ``mnist/*-ubyte.gz``, ``fsdd/fsdd_recordings.zip``, ``pendigits/pendigits_{train,test}.csv`` and
``pairs/pairs_{train,test}.csv`` with the columns mnist_index, label, fsdd_file, pendigits_row, caption.
"""

from __future__ import annotations

import csv
import gzip
import io
import wave
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC

from mmvae_fast.modalities import Text
from mmvae_fast.modalities.audio import log_mel

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"  # where --data looks unless told
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLES, FRAMES, MELS = 8000, 32, 32  # a second at 8 kHz: longer recordings are cut off
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


def read_digits(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All of MNIST's "train" or "test" images [N, 1, 28, 28] in [0, 1], and their labels int64 [N]."""
    prefix = folder / "mnist" / ("train" if split == "train" else "t10k")
    images, labels = (read_idx(Path(f"{prefix}-{what}-ubyte.gz")) for what in ("images-idx3", "labels-idx1"))
    return torch.from_numpy(images / 255.0).float().unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def fit_judge(x: torch.Tensor, labels: np.ndarray) -> Callable[[torch.Tensor], np.ndarray]:
    """Who tells which digit samples show: a classifier of real ones."""
    svm = SVC(C=10).fit(x.flatten(1).numpy(), labels)
    return lambda x: svm.predict(x.flatten(1).numpy())


def read(
    folder: Path,
    split: str,
    rows: int,
    speech: dict[str, np.ndarray],
    text: Text | None = None,
    hidden: Sequence[int] = (400,),
) -> tuple[Data, np.ndarray, Text]:
    """(data by modality, labels, text modality); the vocabulary is that of the training captions."""
    with open(folder / "pairs" / f"pairs_{split}.csv", newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))[:rows]
    # Last word first: of six ways to say it, the digit stands at the end, and a decoder predicts place by place.
    captions = [" ".join(reversed(row["caption"].split())) for row in pairs]
    text = text or Text.from_sentences(captions, hidden=hidden)
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
