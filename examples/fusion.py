"""One VAE of three feature spaces: patches of an image, the words of a caption, cepstra of a recording.

    python examples/fusion.py --data FOLDER --out fusion.png            # about two minutes on one core

Rows are MNIST images and recordings of the Free Spoken Digit Dataset, paired by label, and captions made up here: the
word of the digit among three that say nothing about it; one caption in four lacks it. A MoPoE learns from visual words
pooled by quarter, counts of words, and mel-frequency cepstra.

Prints, on other images and recordings:

* coherence: how often what is decoded from one modality shows the digit of another, for classifiers of real samples
  (rows whose captions name their digit);
* how often a linear classifier reads the digit off the latents: of each modality alone, and of all three (all rows).

The picture has some of these rows, as they are and as decoded from each modality and from all. From pooled patches
there is no way back to pixels, so shown is the training image whose own patches are most like them. FOLDER is described
in ``_real_data.py``.
"""

from __future__ import annotations

import argparse
import csv
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _real_data import DATA, WORDS, read_idx
from torch import Tensor

from mmvae_fast.data.audio import AudioReader
from mmvae_fast.data.bag_of_words import BagOfWordsReader
from mmvae_fast.data.patches import PatchesReader
from mmvae_fast.data.reader import Reader
from mmvae_fast.evaluate import cross_coherence, fit_oracle, linear_probe
from mmvae_fast.features import mfcc_to_log_mel
from mmvae_fast.models import MoPoE
from mmvae_fast.plots import save_figure
from mmvae_fast.plots.cells import draw_cell
from mmvae_fast.plots.style import new_figure, style
from mmvae_fast.training import fit

NEUTRAL = ("a", "the", "this", "here", "photo", "sound", "someone", "wrote", "said", "in", "ink", "today")
SILENT = 0.25  # so many captions do not name their digit
LATENT_DIM = 32


def make_readers() -> dict[str, Reader]:
    return {
        "patches": PatchesReader(features="pooled", n_words=48, stride=2, hidden=[400], scale=0.5),
        "words": BagOfWordsReader(hidden=[200], top=4),
        "speech": AudioReader(
            features="mfcc", sample_rate=8000, seconds=0.75, n_mels=40, n_mfcc=20, n_fft=512, hop_length=256,
            floor_db=-60.0, hidden=[400], scale=0.5,
        ),
    }  # fmt: skip


def captions(labels: np.ndarray, seed: int) -> tuple[list[str], np.ndarray]:
    """A caption a label, and whether it names it."""
    rng = np.random.default_rng(seed)
    named = rng.random(len(labels)) >= SILENT
    texts = []
    for label, names in zip(labels, named, strict=True):
        words = [*rng.choice(NEUTRAL, 3, replace=False), *([WORDS[label]] if names else [])]
        texts.append(" ".join(rng.permutation(words)))
    return texts, named


def read(folder: Path, split: str, rows: int, seed: int) -> tuple[dict[str, list[Any]], np.ndarray, np.ndarray]:
    """Cells by modality (pixels [28, 28], text, bytes of a .wav), labels, and which captions name theirs."""
    with open(folder / "pairs" / f"pairs_{split}.csv", newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))[:rows]
    images = read_idx(folder / "mnist" / f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte.gz")
    labels = np.array([int(row["label"]) for row in pairs])
    texts, named = captions(labels, seed)
    with zipfile.ZipFile(folder / "fsdd" / "fsdd_recordings.zip") as archive:
        names = {Path(name).name: name for name in archive.namelist() if name.endswith(".wav")}
        wanted = {row["fsdd_file"] for row in pairs}
        sounds = {name: archive.read(names[name]) for name in sorted(wanted)}
    cells = {
        "patches": [images[int(row["mnist_index"])] for row in pairs],
        "words": texts,
        "speech": [sounds[row["fsdd_file"]] for row in pairs],
    }
    return cells, labels, named


def tensors(readers: dict[str, Reader], cells: dict[str, list[Any]]) -> dict[str, Tensor]:
    """Every cell read, a recording that comes in many rows once."""
    data = {}
    for name, reader in readers.items():
        known: dict[Any, Tensor] = {}
        keys = [cell if isinstance(cell, (str, bytes)) else i for i, cell in enumerate(cells[name])]
        for key, cell in zip(keys, cells[name], strict=True):
            if key not in known:
                known[key] = reader.read(cell)
        data[name] = torch.stack([known[key] for key in keys])
    return data


def named_digit(readers: dict[str, Reader]) -> Any:
    """Who tells which digit word weighs most among predicted words: classes [B], -1 where none weighs."""
    vocabulary = readers["words"].modality().words
    places = [vocabulary.index(word) for word in WORDS]

    def tell(x: Tensor) -> np.ndarray:
        weights = x[:, places].numpy(force=True)
        return np.where(weights.max(1) > 0, weights.argmax(1), -1)

    return tell


def grid(
    readers: dict[str, Reader], model: MoPoE, data: dict[str, Tensor], images: np.ndarray, shown: list[int],
    known: tuple[Tensor, np.ndarray],
) -> Any:  # fmt: skip
    """Columns are what was shown and decoded of each of some rows; lines are what it was decoded from."""

    def panels(patches: Tensor, words: Tensor, speech: Tensor) -> list[tuple[str, Any]]:
        reader = readers["speech"]
        cepstra = reader.scale.unscaled(speech.numpy(force=True).T).T  # type: ignore[attr-defined]
        picture = mfcc_to_log_mel(cepstra[None], reader.n_mels)[0]  # type: ignore[attr-defined]
        # by angle: a decoded mean is short, and by distance so are the images in the middle of all
        nearest = int(torch.nn.functional.cosine_similarity(known[0], patches[None]).argmax())
        return [("image", known[1][nearest]), ("text", readers["words"].show(words)), ("audio", picture)]

    sources = [[name] for name in data] + [list(data)]
    with style():
        figure = new_figure(figsize=(1.0 * 3 * len(shown) + 1.2, 1.05 * (len(sources) + 1)))
        axes = figure.subplots(len(sources) + 1, 3 * len(shown), squeeze=False)
        for column, row in enumerate(shown):
            lines = [panels(*(x[row] for x in data.values()))]
            lines[0][0] = ("image", images[row])
            for source in sources:
                decoded = model.reconstruct({name: data[name][row : row + 1] for name in source})
                lines.append(panels(*(decoded[name][0] for name in data)))
            for line, cells in enumerate(lines):
                for place, (kind, value) in enumerate(cells):
                    limits = (0.0, 1.0) if kind == "audio" else None
                    draw_cell(axes[line, 3 * column + place], kind, value, limits=limits, box_aspect=1)
        for line, label in zip(axes, ["data", *("\n".join(source) for source in sources)], strict=True):
            line[0].text(-0.2, 0.5, label, ha="right", va="center", fontweight="bold", transform=line[0].transAxes)
    return figure


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fusion.png"), help="picture to write")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    readers = make_readers()
    cells, labels, _ = read(options.data, "train", options.rows, options.seed)
    test_cells, test_labels, named = read(options.data, "test", options.test_rows, options.seed + 1)
    for name, reader in readers.items():
        reader.fit(cells[name][:2000])
    data, test = tensors(readers, cells), tensors(readers, test_cells)
    print(f"{len(labels)} rows read in {time.perf_counter() - began:.0f} s")

    torch.manual_seed(options.seed)
    modalities = {name: reader.modality() for name, reader in readers.items()}
    model = MoPoE(modalities, LATENT_DIM, likelihood_weights="dimension")
    began = time.perf_counter()
    fit(model, data, epochs=options.epochs, batch_size=128, seed=options.seed, progress=False)
    print(f"{options.epochs} epochs in {time.perf_counter() - began:.0f} s")

    model.eval()
    judges: dict[str, Any] = {
        name: fit_oracle(modalities[name], data[name][:4000], labels[:4000], kind="svc")
        for name in ("patches", "speech")
    }
    judges["words"] = named_digit(readers)
    real = {name: float(np.mean(judge(test[name][named]) == test_labels[named])) for name, judge in judges.items()}
    print("classifiers on real samples: " + ", ".join(f"{name} {share:.3f}" for name, share in real.items()))
    coherent = cross_coherence(
        model, {name: x[named] for name, x in test.items()}, judges, test_labels[named], subsets=[[n] for n in data]
    )
    figures = {f"{source}->{target}": share for source, of in coherent.items() for target, share in of.items()}
    print("coherence: " + ", ".join(f"{pair} {share:.3f}" for pair, share in figures.items()))
    probes = {name: [name] for name in data} | {"all three": list(data)}
    for what, names in probes.items():
        z, test_z = (model.encode({name: part[name] for name in names}).mu for part in (data, test))
        figures[what] = linear_probe(z.detach(), labels, test=(test_z.detach(), test_labels)).accuracy
    print("digit read off the latents of: " + ", ".join(f"{what} {figures[what]:.3f}" for what in probes))
    images, shown = np.stack(test_cells["patches"]), [0, 1, 2]
    picture = grid(readers, model, test, images, shown, (data["patches"], np.stack(cells["patches"])))
    print(save_figure(picture, options.out))
    return figures


if __name__ == "__main__":
    main()
