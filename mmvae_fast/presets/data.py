"""The files of the presets. Handwriting is scikit-learn's ``load_digits``, tones are those of a telephone's keys (see
:mod:`mmvae_fast.demo.data`), sentences come from documentation (see :mod:`mmvae_fast.presets.sentences`)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_fast._lazy import require
from mmvae_fast.demo.data import N_TEST, SAMPLE_RATE, TEMPLATE, WORDS, tone

PHRASES = (
    TEMPLATE,
    "somebody wrote the number {} by hand",
    "here is a small {} in black ink",
    "this key of the telephone is {}",
    "dial {} and listen to the tone",
)
_SEED = 0
_WORDS, _TEST_TEXTS = 600, 100  # a small language, learned in a minute


def write_digits(
    folder: Path,
    rows: int | None = None,
    *,
    columns: Sequence[str] = ("image",),
    phrases: Sequence[str] = PHRASES[:1],
    missing: float = 0.0,
    unlabelled: float = 0.0,
) -> None:
    """``manifest.csv`` and ``test.csv`` of other rows with some of the columns image (``images/*.png``, 8x8), caption
    and tone (``tones/*.wav``), and digit, which names the class.

    Args:
        rows: at most so many in each.
        missing: of the training rows, the share that lacks each of the modalities; but no row lacks all.
        unlabelled: the share of the training rows that have no digit.
    """
    image = require("PIL.Image", extra="image")
    split = require("sklearn.model_selection", extra="demo").train_test_split
    pixels, labels = require("sklearn.datasets", extra="demo").load_digits(return_X_y=True)
    train, test = split(np.arange(len(labels)), test_size=N_TEST, stratify=labels, random_state=_SEED)
    rng = np.random.default_rng(_SEED)
    for name, chosen in (("manifest.csv", train[:rows]), ("test.csv", test[:rows])):
        table = []
        for i in chosen.tolist():
            digit, row = int(labels[i]), {}
            for column in columns:
                if column == "image":
                    row[column] = f"images/{i:04}.png"
                    picture = np.rint(pixels[i].reshape(8, 8) * 255 / 16).astype(np.uint8)
                    image.fromarray(picture).save(_made(folder / row[column]))
                elif column == "tone":
                    row[column] = f"tones/{i:04}.wav"
                    sound = require("soundfile", extra="audio")
                    sound.write(_made(folder / row[column]), tone(digit, rng), SAMPLE_RATE, subtype="PCM_16")
                else:
                    row[column] = phrases[int(rng.integers(len(phrases)))].format(WORDS[digit])
            row["digit"] = WORDS[digit]
            table.append(row)
        if name == "manifest.csv":
            _leave_out(table, columns, missing, unlabelled, rng)
        _write(folder / name, [*columns, "digit"], table)


def write_sentences(folder: Path, rows: int | None = None) -> None:
    """``manifest.csv`` and ``test.csv`` of other sentences: a column, sentence."""
    from mmvae_fast.presets.sentences import sentences

    found = sentences(frequent=_WORDS)
    order = np.random.default_rng(_SEED).permutation(len(found)).tolist()
    test, train = order[:_TEST_TEXTS], order[_TEST_TEXTS:]
    for name, chosen in (("manifest.csv", train[:rows]), ("test.csv", test[:rows])):
        _write(folder / name, ["sentence"], [{"sentence": found[i]} for i in chosen])


def _leave_out(
    table: list[dict[str, Any]], columns: Sequence[str], missing: float, unlabelled: float, rng: np.random.Generator
) -> None:
    """Empty some cells."""
    for row in table:
        gone = [column for column in columns if rng.random() < missing]
        if len(gone) < len(columns):
            row.update(dict.fromkeys(gone, ""))
        if rng.random() < unlabelled:
            row["digit"] = ""


def _write(path: Path, columns: Sequence[str], table: Sequence[dict[str, Any]]) -> None:
    with _made(path).open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, columns, lineterminator="\n")
        lines.writeheader()
        lines.writerows(table)


def _made(path: Path) -> Path:
    """The path, whose folder is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


WRITERS: dict[str, Callable[[Path, int | None], None]] = {
    "vae": write_digits,
    "autoencoder": write_digits,
    "multimodal": partial(write_digits, columns=("image", "caption", "tone")),
    "fusion": partial(write_digits, columns=("image", "caption", "tone"), phrases=PHRASES),
    "classifier": partial(write_digits, columns=("image", "tone"), missing=0.3, unlabelled=0.5),
    "gan": write_digits,
    "cyclegan": partial(write_digits, columns=("image", "tone"), missing=0.2),
    "text": write_sentences,
}
"""By preset, what writes its data: (folder, at most so many rows)."""
