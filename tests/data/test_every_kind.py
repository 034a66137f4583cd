"""A run of every kind that the digits do not have: generated files, two epochs from a YAML, and back to files."""

import json

import numpy as np
import pytest
import torch

for module in (
    "pyarrow",
    "pydantic",
    "yaml",
    "PIL",
    "sklearn",
    "nltk",
    "tokenizers",
    "soundfile",
    "librosa",
    "lightning",
):
    pytest.importorskip(module)

from mmvae_fast.data.config import read_config  # noqa: E402
from mmvae_fast.data.run import Run, train  # noqa: E402

ROWS = 16
CONFIG = """
data: {train: train.csv, validation: 0.25}
modalities:
  sound: {kind: audio, sample_rate: 4000, seconds: 0.1, n_mels: 8, n_fft: 128, hop_length: 64, hidden: [8]}
  series: {kind: sequence, length: 6, hidden: [4]}
  cells: {kind: counts, columns: [one, two], likelihood: negative_binomial, hidden: [4]}
  document: {kind: bag_of_words, column: text, hidden: [4]}
  caption: {kind: language, column: text, length: 12, vocabulary_size: 270, width: 8, heads: 2, layers: 1}
  texture: {kind: patches, size: 4, n_words: 6, n_patches: 8, hidden: [4]}
model: {name: MVAE, latent_dim: 3}
training: {epochs: 2, batch_size: 8, accelerator: cpu}
out: run
"""


@pytest.fixture
def folder(tmp_path):
    import soundfile
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = ["sound,series,one,two,text,texture"]
    for i in range(ROWS):
        wave = 0.5 * np.sin(2 * np.pi * (300 + 40 * i) * np.arange(600) / 4000)
        soundfile.write(tmp_path / f"{i}.wav", wave, 4000)
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(5 + i % 3, 2)))
        Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(tmp_path / f"{i}.png")
        text = "" if i == 3 else f"the {['red', 'green', 'blue'][i % 3]} one"
        lines.append(f"{i}.wav,{'' if i == 2 else f'{i}.npy'},{rng.poisson(3)},{rng.poisson(9)},{text},{i}.png")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_every_kind_is_trained_continued_and_written(folder):
    config = read_config(folder / "config.yaml")
    train(config, progress=False)
    history = json.loads((folder / "run/history.json").read_text())
    assert len(history) == 2
    names = ["sound", "series", "cells", "document", "caption", "texture"]
    assert all(np.isfinite(record[f"val_ll_{name}"]) for record in history for name in names)

    # what the readers learn is the same again, so the run goes on
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 3})})
    train(longer, progress=False)
    assert len(json.loads((folder / "run/history.json").read_text())) == 3

    run = Run.load(folder / "run")
    assert list(run.readers) == names
    (batch, mask), *_ = run.batches(run.dataset())
    assert mask.shape == (4, 6)
    with torch.no_grad():
        assert torch.isfinite(run.model(batch, mask, seed=0).loss)
        made = run.model.sample(1, seed=0)
    endings = {name: run.readers[name].write(made[name][0], folder / "made" / name).suffix for name in names}
    assert endings == dict.fromkeys(names, ".csv") | {"sound": ".wav", "document": ".txt", "caption": ".txt"}
