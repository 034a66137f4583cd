"""The embedded demo set: a digit as a real 8x8 image, as a caption and as its keypad tone. Nothing is downloaded.

Images are scikit-learn's ``load_digits`` (real handwriting). Captions follow one template. Tones are synthetic: the
two DTMF frequencies of a telephone key (ITU-T Q.23) as a waveform of random start, length, amplitude, phase and noise,
turned into a log-mel picture by the path a recording would take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmvae_fast._lazy import require

if TYPE_CHECKING:
    from torch import Tensor

    from mmvae_fast.modalities import Modality

SHOWN_AS = {"image": "image", "text": "caption", "audio": "tone"}  # what people read for a modality
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATE = "a photo of the digit {}"
VOCABULARY = (*TEMPLATE.split()[:-1], *WORDS)

KEY_FREQUENCIES = {  # digit: (row, column) in Hz
    1: (697, 1209), 2: (697, 1336), 3: (697, 1477),
    4: (770, 1209), 5: (770, 1336), 6: (770, 1477),
    7: (852, 1209), 8: (852, 1336), 9: (852, 1477),
    0: (941, 1336),
}  # fmt: skip
SAMPLE_RATE = 8000
TONE_SAMPLES = 4000  # half a second

N_MELS, N_FRAMES = 16, 16
_PICTURE: dict[str, Any] = {
    "n_fft": 512,  # 64 ms windows tell the nearest two keys (73 Hz apart) from each other
    "hop_length": 256,
    "fmin": 500.0,  # Hz; from here to fmax lie all seven frequencies
    "fmax": 1700.0,
    "floor_db": -40.0,
    "ceiling_db": 20.0,
}

N_TEST, N_VALIDATION = 360, 137
_SPLIT_SEED = 0  # the same images are held out whatever the seed of the demo


def caption(digit: int) -> str:
    """The one sentence that describes ``digit``."""
    return TEMPLATE.format(WORDS[digit])


def read_caption(text: str) -> int:
    """The digit a caption names, or -1 unless it is exactly what :func:`caption` writes: a broken sentence is none."""
    word = text.rsplit(" ", 1)[-1]
    return WORDS.index(word) if word in WORDS and text == TEMPLATE.format(word) else -1


def tone(digit: int, rng: np.random.Generator) -> np.ndarray:
    """The keypad tone of ``digit``: a waveform [TONE_SAMPLES] float32 in [-1, 1] at SAMPLE_RATE."""
    length = int(rng.uniform(0.24, 0.40) * SAMPLE_RATE)
    start = int(rng.uniform(0.0, 1.0) * (TONE_SAMPLES - length))
    t = np.arange(length) / SAMPLE_RATE
    key = sum(np.sin(2 * np.pi * (hz * t + rng.uniform())) for hz in KEY_FREQUENCIES[int(digit)])
    fade = np.clip(np.minimum(t, t[::-1]) / 0.005, 0.0, 1.0)  # 5 ms, so that the edges do not click
    wave = rng.normal(0.0, 0.01, TONE_SAMPLES)
    wave[start : start + length] += rng.uniform(0.2, 0.45) * fade * key
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def log_mel(waves: np.ndarray) -> np.ndarray:
    """Waveforms [B, TONE_SAMPLES] as log-mel pictures [B, N_MELS, N_FRAMES] float32 in [0, 1] (-40 to 20 dB)."""
    from mmvae_fast.modalities import audio

    return audio.log_mel(waves, sample_rate=SAMPLE_RATE, n_mels=N_MELS, **_PICTURE)


@dataclass(frozen=True)
class Split:
    """Rows that belong together: ``images`` [B, 1, 8, 8] and ``tones`` [B, N_MELS, N_FRAMES] in [0, 1], ``captions``,
    ``labels`` [B]; ``source`` [B] says which row of ``load_digits`` an image is."""

    images: np.ndarray
    captions: list[str]
    tones: np.ndarray
    labels: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, modalities: dict[str, Modality]) -> dict[str, Tensor]:
        """What a model takes: {"image", "text", "audio"}, captions as token ids."""
        import torch

        return {
            "image": torch.from_numpy(self.images),
            "text": modalities["text"].tokenize(self.captions),  # type: ignore[attr-defined]
            "audio": torch.from_numpy(self.tones),
        }


class DemoSet(NamedTuple):
    """``train`` draws from 1300 images; ``validation`` (137) and ``test`` (360) are images it never holds."""

    train: Split
    validation: Split
    test: Split


def _rows(images: np.ndarray, labels: np.ndarray, source: np.ndarray, rng: np.random.Generator) -> Split:
    digits = labels[source]
    parts = np.array_split(digits, max(1, len(digits) // 500))  # the spectra of thousands of waveforms fill memory
    tones = np.concatenate([log_mel(np.stack([tone(int(d), rng) for d in part])) for part in parts])
    return Split(images[source], [caption(int(d)) for d in digits], tones, digits, source)


def build(seed: int = 0, draws: int = 4000) -> DemoSet:
    """The rows to train on, to choose the best epoch with, and to judge by; a function of the arguments alone.

    Args:
        seed: governs the training draws and all tones; which images are held out never changes.
        draws: training rows, each a training image drawn with replacement and a fresh tone of its digit. Of the
            held-out images each comes once.
    """
    datasets = require("sklearn.datasets", extra="demo")
    split = require("sklearn.model_selection", extra="demo").train_test_split
    pixels, labels = datasets.load_digits(return_X_y=True)
    images, labels = (pixels / 16.0).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int64)
    rest, test = split(np.arange(len(labels)), test_size=N_TEST, stratify=labels, random_state=_SPLIT_SEED)
    train, validation = split(rest, test_size=N_VALIDATION, stratify=labels[rest], random_state=_SPLIT_SEED)
    rngs = [np.random.default_rng([seed, part]) for part in range(3)]
    train = rngs[0].choice(train, draws)
    parts = zip((train, validation, test), rngs, strict=True)
    return DemoSet(*(_rows(images, labels, rows, rng) for rows, rng in parts))


def modalities() -> dict[str, Modality]:
    """How a model sees a row. Tones vary by about ``scale`` around what a digit and its timing tell."""
    from mmvae_fast.modalities import Audio, Image, Text

    return {
        "image": Image((1, 8, 8)),
        "text": Text(VOCABULARY, len(TEMPLATE.split())),
        "audio": Audio((N_MELS, N_FRAMES), scale=0.2),
    }
