"""Raw file -> tensor -> model -> file that a person can look at, read or listen to, for one modality after another.

    python examples/round_trips.py --data FOLDER --out round_trips                  # about six minutes on one core
    python examples/round_trips.py --data FOLDER --only image --only table          # some of them

Each of them gets a folder with files, a manifest of them and a configuration; ``mmvae-fast train`` learns a small VAE
from it, and 100 files that it was not trained on go through it and are written again by the reader that read them, as
``mmvae-fast translate`` and ``mmvae-fast sample`` do. What is printed is about these written files, read again:

    image     .png   handwritten digits (MNIST): which digit a classifier of real ones sees
    sound     .wav   spoken digits (Free Spoken Digit Dataset), by Griffin-Lim: which digit one hears
    text      .txt   sentences made up of five parts, all of them others than in training: share that is the same again
    pen       .csv   pen movements (pendigits) as series of 8 points: which digit one sees
    table     .csv   30 measurements of tumour cells (scikit-learn's breast cancer data): share of variance kept
    counts    .csv   whole numbers: ink pixels in each row of a digit: share of variance kept

With --pictures FOLDER, originals and what came back are drawn side by side. FOLDER is described in ``_real_data.py``.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _real_data import DATA, WORDS, read_idx
from PIL import Image
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.svm import SVC

from mmvae_fast._files import write_atomic
from mmvae_fast.cli import app
from mmvae_fast.data.export import write_samples
from mmvae_fast.data.run import Run
from mmvae_fast.plots import save_figure
from mmvae_fast.plots.cells import draw_cell
from mmvae_fast.plots.style import SERIES, new_figure, style

HELD_OUT = 100
Rows = list[dict[str, Any]]  # of a manifest: cells by column, and "label"


def images(data: Path, folder: Path) -> tuple[Rows, Rows]:
    def of(split: str, n: int) -> Rows:
        pixels, labels = (
            read_idx(data / "mnist" / f"{split}-{what}-ubyte.gz") for what in ("images-idx3", "labels-idx1")
        )
        (folder / split).mkdir()
        rows = []
        for i in range(n):
            Image.fromarray(pixels[i]).save(folder / split / f"{i}.png")
            rows.append({"image": f"{split}/{i}.png", "label": int(labels[i])})
        return rows

    return of("train", 6000), of("t10k", HELD_OUT)


def sounds(data: Path, folder: Path) -> tuple[Rows, Rows]:
    with zipfile.ZipFile(data / "fsdd" / "fsdd_recordings.zip") as archive:
        archive.extractall(folder)
    paths = sorted(folder.rglob("*.wav"))
    order = np.random.default_rng(0).permutation(len(paths))[: 1000 + HELD_OUT]
    rows = [
        {"sound": paths[i].relative_to(folder).as_posix(), "label": int(paths[i].name.split("_")[0])} for i in order
    ]
    return rows[:1000], rows[1000:]


def texts(data: Path, folder: Path) -> tuple[Rows, Rows]:
    """Sentences of five parts, 12,000 in all; those held out are not among those to learn from."""
    parts = (
        ("someone wrote", "I see", "here is", "a child drew", "they found"),
        ("a small", "a large", "a thin", "a crooked", "a neat", "another"),
        ("black", "blue", "red", "green"),
        WORDS,
        (
            "on paper",
            "on a wall",
            "in a book",
            "today",
            "by hand",
            "in chalk",
            "on a door",
            "at school",
            "for me",
            "again",
        ),
    )
    rng = np.random.default_rng(0)
    rows: dict[str, int] = {}
    while len(rows) < 3000 + HELD_OUT:
        places = [int(rng.integers(len(part))) for part in parts]
        rows[" ".join(part[i] for part, i in zip(parts, places, strict=True))] = places[3]
    every = [{"text": text, "label": digit} for text, digit in rows.items()]
    return every[:3000], every[3000:]


def movements(data: Path, folder: Path) -> tuple[Rows, Rows]:
    def of(split: str, n: int) -> Rows:
        table = np.loadtxt(data / "pendigits" / f"pendigits_{split}.csv", delimiter=",", dtype=int)[:n]
        (folder / split).mkdir()
        rows = []
        for i, row in enumerate(table):
            points = "".join(f"{x},{y}\n" for x, y in row[:16].reshape(8, 2))
            (folder / split / f"{i}.csv").write_text(f"x,y\n{points}")
            rows.append({"pen": f"{split}/{i}.csv", "label": int(row[16])})
        return rows

    return of("train", 4000), of("test", HELD_OUT)


def table(data: Path, folder: Path) -> tuple[Rows, Rows]:
    found = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in found.feature_names]
    rows = [
        {**dict(zip(names, values.tolist(), strict=True)), "label": int(label)}
        for values, label in zip(found.data, found.target, strict=True)
    ]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    return rows[HELD_OUT:], rows[:HELD_OUT]


def counts(data: Path, folder: Path) -> tuple[Rows, Rows]:
    def of(split: str, n: int) -> Rows:
        pixels, labels = (
            read_idx(data / "mnist" / f"{split}-{what}-ubyte.gz") for what in ("images-idx3", "labels-idx1")
        )
        ink = (pixels[:n] > 127).sum(-1)
        return [
            {**{f"row{i + 1}": int(c) for i, c in enumerate(each)}, "label": int(label)}
            for each, label in zip(ink, labels[:n], strict=True)
        ]

    return of("train", 6000), of("t10k", HELD_OUT)


TRIPS: dict[str, tuple[Callable[[Path, Path], tuple[Rows, Rows]], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "image": (
        images,
        {"kind": "image", "hidden": [400]},
        {"latent_dim": 32},
        {"epochs": 15},
    ),
    "sound": (
        sounds,
        {"kind": "audio", "sample_rate": 8000, "seconds": 0.75, "n_mels": 64, "n_fft": 512, "hop_length": 128,
         "floor_db": -60.0, "network": "conv", "width": 16, "scale": 0.1},
        {"latent_dim": 32},
        {"epochs": 30},
    ),
    "text": (
        texts,
        {"kind": "language", "vocabulary_size": 400, "width": 64, "dropout": 0.0},
        {"latent_dim": 16, "beta": 0.1},
        {"epochs": 30, "lr": 2e-3},
    ),
    "pen": (
        movements,
        {"kind": "sequence", "cell": "gru", "hidden": [96], "scale": 0.2, "names": ["x", "y"]},
        {"latent_dim": 16},
        {"epochs": 20, "lr": 3e-3},
    ),
    "table": (
        table,
        {"kind": "vector", "hidden": [128], "scale": 0.2},
        {"latent_dim": 10},
        {"epochs": 100, "batch_size": 32, "lr": 3e-3},
    ),
    "counts": (
        counts,
        {"kind": "counts", "hidden": [128]},
        {"latent_dim": 16, "beta": 0.1},  # ink varies far less than the Poisson noise that the likelihood expects
        {"epochs": 15},
    ),
}  # fmt: skip


def prepare(name: str, data: Path, folder: Path) -> tuple[Rows, Rows]:
    """Files, manifests and the configuration of one modality."""
    write, modality, model, training = TRIPS[name]
    folder.mkdir(parents=True)
    train, held_out = write(data, folder)
    columns = [column for column in train[0] if column != "label"]
    for split, rows in (("train", train), ("held_out", held_out)):
        content = io.StringIO()
        lines = csv.DictWriter(content, [*columns, "label"], lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)
        write_atomic(folder / f"{split}.csv", content.getvalue())
    where = {"column": columns[0]} if len(columns) == 1 else {"columns": columns, "names": columns}
    content = {
        "data": {"train": "train.csv", "test": "held_out.csv", "label": "label"},
        "modalities": {name: {**modality, **where}},
        "model": {"name": "VAE", **model},
        "training": {"seed": 0, "accelerator": "cpu", **training},
        "out": "run",
    }
    write_atomic(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False))
    return train, held_out


def go_round(name: str, folder: Path) -> tuple[Run, list[Any], list[Any], list[Path]]:
    """Train, and send the held-out files through: the run, what they hold, what the written ones hold, and these."""
    began = time.perf_counter()
    app(["train", str(folder / "config.yaml"), "--quiet"], standalone_mode=False)
    print(f"{name}: trained in {time.perf_counter() - began:.0f} s", flush=True)
    run = Run.load(folder / "run")
    reader, dataset = run.readers[name], run.dataset()
    x = [sample[name] for sample in dataset]
    back = run.model.reconstruct({name: torch.stack(x)})[name]
    write_samples(folder / "back", run.readers, {name: back})
    paths = sorted((folder / "back" / name).iterdir())
    again = [reader.read(as_cell(name, path)) if name != "counts" else numbers(path) for path in paths]
    return run, x, again, paths


def as_cell(name: str, path: Path) -> Any:
    """A written file as a cell of a manifest."""
    if name == "text":
        return path.read_text(encoding="utf-8").rstrip("\n")
    return numbers(path).tolist() if name == "table" else str(path)


def numbers(path: Path) -> torch.Tensor:
    """The numbers of a written table of one row."""
    return torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1))


def judge(name: str, run: Run, train: Rows, held_out: Rows, x: list[Any], again: list[Any]) -> dict[str, float]:
    truth = np.array([row["label"] for row in held_out])
    before, after = (torch.stack(part).double().flatten(1).numpy() for part in (x, again))
    if name == "text":
        return {"texts the same again": float(np.mean((before == after).all(1)))}
    reader, folder = run.readers[name], run.folder.parent
    if name in ("table", "counts"):
        columns = run.config.columns()[name]
        known = np.stack([reader.read([row[column] for column in columns]).numpy() for row in train])
        pca = PCA(run.model.latent_dim).fit(known)
        total = np.square(before - known.mean(0)).sum()
        shares = {
            "share of variance kept": after,
            "by PCA of as many numbers": pca.inverse_transform(pca.transform(before)),
        }
        return {what: float(1 - np.square(found - before).sum() / total) for what, found in shares.items()}
    real = np.stack([reader.read(str(folder / row[name])).flatten().numpy() for row in train[:3000]])
    machine = SVC(C=10.0).fit(real, [row["label"] for row in train[:3000]])
    seen = {"originals": before, "written files read again": after}
    if name == "sound":
        seen["originals written without a model"] = torch.stack(without_model(reader, x)).flatten(1).numpy()
    return {f"digit right, {what}": float(np.mean(machine.predict(part) == truth)) for what, part in seen.items()}


def without_model(reader: Any, x: list[Any]) -> list[Any]:
    """Pictures of sounds that were made of these pictures: what the way back to a file costs."""
    return [reader.read(reader.show(sample)) for sample in x]


def draw(name: str, run: Run, x: list[Any], again: list[Any], path: Path) -> None:
    """Originals above what came back: eight of them, but of sounds, which are wide, four; of tables, both in one."""
    if name == "text":
        return
    n = {"sound": 4, "table": 2, "counts": 3}.get(name, 8)
    reader = run.readers[name]
    with style():
        figure = new_figure(figsize=(6.4, {"sound": 2.4, "table": 1.6, "counts": 1.6}.get(name, 2.0)))
        figure.set_dpi(80)
        if name in ("table", "counts"):
            for axis, before, after in zip(np.atleast_1d(figure.subplots(1, n)), x, again, strict=False):
                axis.plot(before, color=SERIES[0], marker=".", linewidth=0, label="file")
                axis.plot(after, color=SERIES[1], linewidth=1, label="came back")
                axis.tick_params(labelsize=7)
            axis.legend(fontsize=7)
            axis.set_xlabel("column", fontsize=7)
        else:
            shown = {"file": x, "came\nback": again}
            if name == "sound":
                shown = {"file": x, "without\na model": without_model(reader, x[:n]), "came\nback": again}
            for line, (what, samples) in zip(figure.subplots(len(shown), n), shown.items(), strict=True):
                for axis, sample in zip(line, samples, strict=False):
                    if name == "pen":
                        points = reader.show(sample)
                        draw_cell(axis, "image", None)
                        axis.texts[0].remove()
                        axis.plot(*points.T, color=SERIES[0], marker=".", markersize=3, linewidth=1)
                        axis.set(xlim=(-10, 110), ylim=(-10, 110), aspect="equal")
                    else:
                        draw_cell(axis, "audio" if name == "sound" else "image", sample.numpy(), limits=(0, 1))
                line[0].text(-0.15, 0.5, what, ha="right", va="center", transform=line[0].transAxes)
        save_figure(figure, path)
    picture = Image.open(path).convert("RGB").quantize(48)  # a few tens of kilobytes
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    write_atomic(path, content.getvalue())


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("round_trips"), help="a new folder for everything")
    parser.add_argument("--only", action="append", choices=sorted(TRIPS), help="one of them; may come again")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    found = {}
    for name in options.only or TRIPS:
        folder = options.out / name
        train, held_out = prepare(name, options.data, folder)
        run, x, again, paths = go_round(name, folder)
        found[name] = judge(name, run, train, held_out, x, again)
        print("  " + ", ".join(f"{what}: {share:.3f}" for what, share in found[name].items()))
        print(f"  {folder / 'held_out.csv'} -> {paths[0].parent}", flush=True)
        if name == "text":
            for row, path in list(zip(held_out, paths, strict=True))[:5]:
                print(f"  {row['text']} -> {path.read_text(encoding='utf-8').rstrip()}")
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            draw(name, run, x, again, options.pictures / f"round_trip_{name}.png")
    return found


if __name__ == "__main__":
    main()
