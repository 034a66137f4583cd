"""Every preset: its data are real files, its configuration is valid and trains, and what is there is never replaced."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

for module in ("pyarrow", "pydantic", "yaml", "PIL", "sklearn", "lightning", "safetensors", "typer", "librosa"):
    pytest.importorskip(module)
for module in ("soundfile", "tokenizers", "nltk", "cv2"):
    pytest.importorskip(module)

from typer.testing import CliRunner  # noqa: E402

from mmvae_fast import presets  # noqa: E402
from mmvae_fast.cli import app  # noqa: E402
from mmvae_fast.data.config import read_config  # noqa: E402
from mmvae_fast.data.run import Run, train  # noqa: E402
from mmvae_fast.demo.data import WORDS  # noqa: E402


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def tell(result):
    return f"{result.exit_code} {result.stdout} {result.stderr} {result.exception!r}"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def short_corpus(request, monkeypatch):
    """To look for sentences in all docstrings takes seconds."""
    if "slow" not in request.keywords:
        few = [
            f"{verb} the {what}." for verb in ("Return", "Close", "Open", "Read") for what in ("file", "name", "key")
        ]
        monkeypatch.setattr("mmvae_fast.presets.sentences.sentences", lambda frequent: few * 20)


def test_they_are_listed_with_a_line_each():
    result = call("presets")
    assert result.exit_code == 0, tell(result)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(presets.NAMES)
    assert all(len(line) > 40 and line.endswith(".") for line in lines)
    shipped = {path.stem for path in Path(presets.__file__).parent.glob("*.yaml")}
    assert shipped == set(presets.NAMES)


@pytest.mark.parametrize("name", presets.NAMES)
def test_each_trains(name, tmp_path):
    folder = tmp_path / name
    config = read_config(presets.write(name, folder, rows=40))
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "data"]
    assert config.out == folder and config.data.train == folder / "data/manifest.csv"
    for manifest in (config.data.train, config.data.test):
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 40
        files = [row[c] for row in rows for c in ("image", "tone") if row.get(c)]
        assert all((manifest.parent / file).is_file() for file in files)
    result = call("train", folder / "config.yaml", "--epochs", 1, "--quiet")
    assert result.exit_code == 0, tell(result)
    run = Run.load(folder)
    assert type(run.model).__name__ == config.model.name
    (batch, mask), *_ = run.batches(run.dataset())
    assert mask.shape == (40, len(run.readers)) and set(batch) == set(run.readers)
    assert (folder / "samples").is_dir() == (name in ("gan", "cyclegan"))


def test_training_and_test_rows_are_different_files_and_the_same_every_time(tmp_path):
    first, again = (presets.write("classifier", tmp_path / name, rows=150).parent for name in ("a", "b"))
    assert {p.relative_to(first): x for p, x in contents(first).items()} == {
        p.relative_to(again): x for p, x in contents(again).items()
    }
    rows = {}
    for name in ("manifest", "test"):
        with (first / f"data/{name}.csv").open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert not {row["image"] for row in rows["manifest"]} - {""} & {row["image"] for row in rows["test"]}
    assert all(row["image"] and row["tone"] and row["digit"] for row in rows["test"])
    assert all(row["image"] or row["tone"] for row in rows["manifest"])
    lacking = {column: np.mean([not row[column] for row in rows["manifest"]]) for column in rows["manifest"][0]}
    assert 0.1 < lacking["image"] < 0.4 and 0.1 < lacking["tone"] < 0.4 and 0.35 < lacking["digit"] < 0.65
    assert {row["digit"] for row in rows["test"]} == set(WORDS)


def test_the_command_writes_trains_and_continues(tmp_path, monkeypatch):
    write = presets.write
    monkeypatch.setattr(presets, "write", lambda name, folder: write(name, folder, rows=40))
    monkeypatch.chdir(tmp_path)
    result = call("train", "--preset", "gan", "--epochs", 2, "--quiet")
    assert result.exit_code == 0, tell(result)
    folder = Path("runs/gan")
    assert Path(result.stdout.strip()) == folder.absolute()
    assert f"{folder / 'config.yaml'}: edit it" in result.stderr
    there = contents(folder)
    result = call("train", "--preset", "gan", "--epochs", 3, "--quiet")
    assert result.exit_code == 0, tell(result)
    assert len(json.loads((folder / "history.json").read_text())) == 3
    assert all(path.read_bytes() == there[path] for path in there if "data" in path.parts)

    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("width: 16", "width: 8"))
    there = contents(folder)
    result = call("train", "--preset", "gan", "--epochs", 4, "--quiet")
    assert result.exit_code == 1
    assert f"train it with `mmvae-fast train {config}`" in result.stderr
    result = call("train", config, "--epochs", 4, "--quiet")
    assert result.exit_code == 1
    assert "model.width was 16, now 8" in result.stderr
    assert contents(folder) == there
    result = call("train", config, "--epochs", 1, "--quiet", "--start-over")
    assert result.exit_code == 0, tell(result)


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = call("train", "--preset", "vae", "--out", tmp_path)
    assert result.exit_code == 1 and "holds no config.yaml" in result.stderr, tell(result)
    result = call("train", "--preset", "vae", "--out", tmp_path / "mine.txt")
    assert result.exit_code == 1 and "mine.txt" in result.stderr, tell(result)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_folder_one_stands_in_is_filled(tmp_path, monkeypatch):
    write = presets.write
    monkeypatch.setattr(presets, "write", lambda name, folder: write(name, folder, rows=40))
    (tmp_path / "here").mkdir()
    before = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")
    result = call("train", "--preset", "vae", "--out", ".", "--epochs", 1, "--quiet")
    assert result.exit_code == 0, tell(result)
    assert {"config.yaml", "data", "best"} <= {path.name for path in Path.cwd().iterdir()}
    assert (tmp_path / "here").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_failure_while_filling_leaves_the_folder_empty(tmp_path, monkeypatch):
    rename = os.rename

    def failing(source, target):
        if Path(source).name == "config.yaml":
            raise OSError("no space")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        presets.write("vae", tmp_path, rows=20)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_data_whose_writing_was_stopped(tmp_path, monkeypatch):
    import soundfile

    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(soundfile, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        presets.write("multimodal", tmp_path / "run", rows=5)
    assert not list(tmp_path.iterdir())


def test_wrong_use():
    for args, said in (
        (("--preset", "gann"), "'gann': no such preset; did you mean 'gan'?"),
        ((), "expected either a configuration, or --preset NAME"),
        (("config.yaml", "--preset", "gan"), "expected either a configuration, or --preset NAME"),
    ):
        result = call("train", *args)
        assert (result.exit_code, said in result.stderr) == (2, True), tell(result)
    with pytest.raises(ValueError, match="no preset 'gann'; did you mean 'gan'"):
        presets.text("gann")


# --- they learn -------------------------------------------------------------------------------------------------------


def learned(name, tmp_path, rows=None, **training):
    """The run of a preset, its test rows (batch, mask, classes), and the training rows."""
    config = read_config(presets.write(name, tmp_path / name, rows=rows))
    run = train(config.model_copy(update={"training": config.training.model_copy(update=training)}), progress=False)
    parts = []
    for dataset in (run.dataset(), run.dataset(config.data.train)):
        ((batch, mask),) = run.batches(dataset, batch_size=len(dataset))
        parts.append((batch, mask, run.label_ids(dataset)))
    return run, *parts


def judge(run, part, name):
    """Which classes samples of a modality show, [B], as a classifier of the training ones has it."""
    batch, mask, classes = part
    there = mask[:, list(run.readers).index(name)] & (classes >= 0)
    svm = pytest.importorskip("sklearn.svm").SVC(C=10).fit(batch[name][there].flatten(1), classes[there])
    return lambda x: torch.from_numpy(svm.predict(x.flatten(1)))


def share(found, expected):
    return (found == expected).float().mean().item()


def test_the_classifier_learns(tmp_path):
    run, (batch, mask, classes), _ = learned("classifier", tmp_path, rows=400, epochs=12)
    assert share(run.model.predict(batch, mask), classes) > 0.9  # of 200 labels, some of a row without one of the two
    assert share(run.model.predict({"image": batch["image"]}), classes) > 0.6


@pytest.mark.slow
def test_the_whole_classifier_needs_neither_of_the_two(tmp_path):
    run, (batch, mask, classes), _ = learned("classifier", tmp_path)
    assert share(run.model.predict(batch, mask), classes) > 0.98
    assert share(run.model.predict({"image": batch["image"]}), classes) > 0.9
    assert share(run.model.predict({"tone": batch["tone"]}), classes) > 0.95


@pytest.mark.slow
def test_the_gan_makes_the_digit_that_is_asked_for(tmp_path):
    run, test, train_ = learned("gan", tmp_path)
    asked = torch.arange(10).repeat_interleave(50)
    made = run.model.sample(condition=asked, seed=1)
    assert share(judge(run, train_, "image")(made), asked) > 0.9
    real = test[0]["image"]
    spread = [x[c == d].std(0).mean() for x, c in ((made, asked), (real, test[2])) for d in range(10)]
    assert sum(spread[:10]) > 0.6 * sum(spread[10:])  # not one picture a digit


@pytest.mark.slow
def test_the_cyclegan_keeps_the_digit(tmp_path):
    run, (batch, _, classes), train_ = learned("cyclegan", tmp_path)
    for source, to in (("image", "tone"), ("tone", "image")):
        made = run.model.translate({source: batch[source]}, to)
        assert share(judge(run, train_, to)(made), classes) > 0.9


@pytest.mark.slow
def test_the_multimodal_vae_translates(tmp_path):
    run, (batch, _, classes), train_ = learned("multimodal", tmp_path)
    texts = run.model.modalities["caption"].detokenize(run.model.translate({"image": batch["image"]}, "caption"))
    named = torch.tensor(
        [run.classes.index(word) if (word := text.split()[-1]) in run.classes else -1 for text in texts]
    )
    assert share(named, classes) > 0.9
    assert share(judge(run, train_, "image")(run.model.translate({"tone": batch["tone"]}, "image")), classes) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "autoencoder"])
def test_reconstructions_are_better_than_those_of_as_many_principal_components(name, tmp_path):
    run, (batch, _, _), (train_, _, _) = learned(name, tmp_path)
    x = batch["image"].flatten(1)
    pca = pytest.importorskip("sklearn.decomposition").PCA(16).fit(train_["image"].flatten(1))
    linear = torch.from_numpy(pca.inverse_transform(pca.transform(x))).float()
    ours = run.model.reconstruct(batch)["image"].flatten(1)
    assert (ours - x).square().mean() < (linear - x).square().mean()


@pytest.mark.slow
def test_the_text_vae_learns_a_language(tmp_path):
    """What it generates are words of the corpus; of a training sentence most words come back."""
    from mmvae_fast.presets.sentences import words
    from mmvae_fast.systems.text_generation import generate, reconstruct

    run, *_ = learned("text", tmp_path)
    with run.config.data.train.open(newline="") as file:
        texts = [row["sentence"] for row in csv.DictReader(file)]
    known = {word for text in texts for word in words(text)}
    made = [words(text) for text in generate(run.model, 200, seed=0, temperature=0.8, top_p=0.95)]
    assert np.mean([word in known for text in made for word in text]) > 0.95
    assert len({tuple(text) for text in made}) > 150
    again = reconstruct(run.model, texts[:200])
    kept = [len(set(words(a)) & set(words(b))) for a, b in zip(texts, again, strict=False)]
    assert sum(kept) > 0.6 * sum(len(set(words(text))) for text in texts[:200])
