"""A small folder of real data: handwritten digits as .png files and captions, some of either missing."""

import csv

import numpy as np
import pytest

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ROWS = 48

CONFIG = """
data: {train: train.csv, validation: 0.25, label: digit}
modalities:
  image: {kind: image, size: [8, 8], channels: 1, hidden: [32], augment: {crop: 1}}
  text: {kind: text, column: caption, hidden: [16], embedding_dim: 4}
model: {name: MoPoE, latent_dim: 4}
training: {epochs: 2, batch_size: 16, lr: 3e-3, accelerator: cpu}
out: run
"""


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def digits(tmp_path):
    """A folder with img/*.png, train.csv (image, caption, digit) and config.yaml."""
    pillow = pytest.importorskip("PIL.Image")
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    (tmp_path / "img").mkdir()
    rows = [("image", "caption", "digit")]
    for i in range(ROWS):
        path = f"img/{i}.png"
        pillow.fromarray((pixels[i].reshape(8, 8) * 255 / 16).astype(np.uint8)).save(tmp_path / path)
        caption = f"the digit {WORDS[labels[i]]}"
        rows.append((path if i % 5 else "", caption if i % 7 else "", labels[i]))
    write_rows(tmp_path / "train.csv", rows)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def edit():
    """Replace text of a file; it must be there."""

    def change(path, before, after):
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    return change
