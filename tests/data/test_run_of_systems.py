"""Systems from a YAML file: trained, continued and used by the command line as models are; and all that is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

for module in ("pyarrow", "pydantic", "yaml", "PIL", "sklearn", "lightning", "safetensors", "typer"):
    pytest.importorskip(module)

from typer.testing import CliRunner  # noqa: E402

from mmvae_fast.cli import INTERRUPTED, app  # noqa: E402
from mmvae_fast.data import ConfigError, ManifestError  # noqa: E402
from mmvae_fast.data.config import check_config, read_config, write_config  # noqa: E402
from mmvae_fast.data.run import Run, train  # noqa: E402
from mmvae_fast.models import MultimodalVAE  # noqa: E402
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier  # noqa: E402

IMAGE = "  image: {kind: image, size: [8, 8], channels: 1, hidden: [32]}\n"
TEXT = "  text: {kind: text, column: caption, hidden: [16], embedding_dim: 4}\n"
SMALL = {
    "Autoencoder": ("latent_dim: 4", IMAGE + TEXT),
    "FusionClassifier": ("latent_dim: 4, hidden: [16]", IMAGE + TEXT),
    "GAN": ("latent_dim: 4, width: 4", IMAGE),
    "CycleGAN": ("width: 4, code_dim: 4", IMAGE + "  size: {kind: vector, columns: [width, height], hidden: [8]}\n"),
}


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def tell(result):
    return f"{result.exit_code} {result.stdout} {result.stderr} {result.exception!r}"


def refused(code, said, *args):
    result = call(*args)
    assert (result.exit_code, said in result.stderr) == (code, True), tell(result)
    assert "Traceback" not in result.stderr


@pytest.fixture
def configure(digits):
    """Write config.yaml for a system; numbers for the manifest's two columns width and height come from the digit."""
    with (digits / "train.csv").open(newline="") as file:
        table = list(csv.reader(file))
    table = [[*table[0], "width", "height"], *([*row, row[2], "" if not row[2] else 2] for row in table[1:])]
    with (digits / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)

    def write(name, *, data="validation: 0.25, label: digit", options="", training="", out="run"):
        model, modalities = SMALL[name]
        (digits / "config.yaml").write_text(
            f"data: {{train: train.csv, {data}, ignore: all}}\nmodalities:\n{modalities}"
            f"model: {{name: {name}, {model}{options}}}\n"
            f"training: {{epochs: 2, batch_size: 16{training}}}\nout: {out}\n"
        )
        return digits / "config.yaml"

    return write


@pytest.fixture
def trained(configure):
    def make(name, **options):
        config = configure(name, **options)
        result = call("train", config, "--quiet")
        assert result.exit_code == 0, tell(result)
        return config.parent / "run"

    return make


def rewrite(path, change):
    """Change the rows of a CSV, dicts by column, in place."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, rows[0])
        lines.writeheader()
        lines.writerows(rows)


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("GAN", {"options": ", widht: 8"}, "model.widht: no such key; did you mean 'width'?"),
        ("GAN", {"options": ", classes: 3"}, "model.classes: a GAN has those of the column that data.label names"),
        ("GAN", {"options": ", condition_dim: 3"}, "model.condition_dim: no such key"),
        ("GAN", {"options": ", networks: {}"}, "model.networks: no such key"),
        ("CycleGAN", {"options": ", latent_dim: 8"}, "model.latent_dim: a CycleGAN has none"),
        ("FusionClassifier", {"data": "validation: 0.25"}, "data.label: is missing"),
        (
            "FusionClassifier",
            {"training": ", warmup_epochs: 3"},
            "training.warmup_epochs: a FusionClassifier has no use",
        ),
        (
            "FusionClassifier",
            {"training": ", lr: 1e-3"},
            "training.lr: a FusionClassifier has no use for it; see model.lr",
        ),
        ("GAN", {"training": ", lr: 1e-3"}, "see model.lr_discriminator, model.lr_generator"),
        ("GAN", {"training": ", first_stage_epochs: 1"}, "expected some of epochs, batch_size, seed"),
        ("Autoencoder", {"options": ", beta: 2"}, "model.beta: no such key"),
    ],
)
def test_what_a_system_does_not_have_is_refused(configure, name, change, said):
    with pytest.raises(ConfigError) as error:
        read_config(configure(name, **change)).model_class()
    assert said in str(error.value)


def test_names_are_those_of_models_and_systems(configure, edit):
    config = configure("CycleGAN")
    assert read_config(config).model_class() is CycleGAN
    edit(config, "name: CycleGAN", "name: CyclGAN")
    with pytest.raises(ConfigError, match="model.name: 'CyclGAN' is no model; did you mean 'CycleGAN'"):
        read_config(config).model_class()


@pytest.mark.parametrize("name", SMALL)
def test_written_and_read_again_it_is_accepted(configure, tmp_path, name):
    """A run.yaml holds defaults written out, but none that the system would refuse."""
    import yaml

    config = read_config(configure(name))
    again = check_config(yaml.safe_load(write_config(config)), tmp_path)
    assert again.model_class() is config.model_class()
    assert again.as_json() == config.as_json()


def test_values_that_a_system_refuses(configure):
    refused(2, "model: penalty is 'r2'", "train", configure("GAN", options=", penalty: r2"))
    refused(2, "training.accelerator: got 'abacus'", "train", configure("GAN", training=", accelerator: abacus"))
    config = configure("CycleGAN")
    config.write_text(config.read_text().replace(SMALL["CycleGAN"][1], IMAGE))
    refused(2, "model: CycleGAN: got the modalities ['image'], expected exactly two", "train", config)
    assert not (config.parent / "run").exists()


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_gan_refuses_rows_without_a_label_by_their_number(configure):
    config = configure("GAN")

    def forget(rows):
        rows[3]["digit"] = rows[7]["digit"] = ""

    rewrite(config.parent / "train.csv", forget)
    refused(1, "2 cells cannot be read\n  row 4, digit: is empty", "train", config)
    refused(1, "row 8, digit: is empty, but each row of a conditional GAN needs its class", "train", config)
    assert not (config.parent / "run").exists()


def test_a_classifier_learns_from_rows_without_a_label(trained, configure):
    config = configure("FusionClassifier")
    rewrite(config.parent / "train.csv", lambda rows: [row.update(digit="") for row in rows[::2]])
    run = Run.load(trained("FusionClassifier"))
    labels = run.label_ids(run.dataset(config.parent / "train.csv"))
    assert (labels[::2] == -1).all() and (labels[1::2] >= 0).all()
    assert list(run.model.classes) == run.classes


def test_classes_that_cannot_be(configure):
    config = configure("FusionClassifier", data="validation: other.csv, label: digit")
    other = config.parent / "other.csv"
    shutil.copy(config.parent / "train.csv", other)

    def rename(rows):
        rows[4]["digit"] = "11"

    rewrite(other, rename)
    refused(1, "row 5, digit: '11' is the class of no training row; did you mean '1'?", "train", config)
    rewrite(config.parent / "train.csv", lambda rows: [row.update(digit="1") for row in rows])
    with pytest.raises(ManifestError, match=r"holds the classes \['1'\], expected two or more"):
        train(read_config(config), progress=False)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FusionClassifier", "GAN", "CycleGAN"])
def test_stopped_and_continued_equals_uninterrupted(configure, monkeypatch, name):
    whole = train(read_config(configure(name)), progress=False)
    config = configure(name, out="stopped")
    cls, steps = type(whole.model), []
    step = cls.step

    def stopping(self, *args):
        steps.append(1)
        if len(steps) == 4:  # of 3 an epoch
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(cls, "step", stopping)
    result = call("train", config, "--quiet")
    assert result.exit_code == INTERRUPTED, tell(result)
    assert "the same call continues from there" in result.stderr
    result = call("train", config, "--quiet")
    assert result.exit_code == 0, tell(result)
    continued = Run.load(config.parent / "stopped")
    assert (config.parent / "stopped/history.json").read_text() == (config.parent / "run/history.json").read_text()
    for a, b in zip(whole.model.state_dict().values(), continued.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["FusionClassifier", "GAN", "CycleGAN"])
def test_a_run_of_another_configuration_is_refused_and_left_as_it_was(trained, configure, name):
    run = trained(name)
    there = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    config = configure(name, training=", seed: 3")
    refused(1, "training.seed was 0, now 3", "train", config, "--epochs", 3)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == there
    result = call(
        "train", configure(name, data="validation: 0.25, label: digit, cache: true"), "--epochs", 3, "--quiet"
    )
    assert result.exit_code == 0, tell(result)
    assert len(json.loads((run / "history.json").read_text())) == 3


def test_files_are_read_once_if_they_are_kept(configure, monkeypatch):
    from mmvae_fast.data.image import ImageReader

    read, seen = ImageReader.read, []

    def counting(self, cell):
        seen.append(cell)
        return read(self, cell)

    monkeypatch.setattr(ImageReader, "read", counting)
    kept = train(read_config(configure("GAN", data="validation: 0.25, label: digit, cache: true")), progress=False)
    assert len(seen) == len(set(seen)) > 0
    seen.clear()
    again = train(read_config(configure("GAN", out="again")), progress=False)
    assert len(seen) == 2 * len(set(seen))
    for a, b in zip(kept.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


# --- use --------------------------------------------------------------------------------------------------------------


def test_classifier(trained):
    run = trained("FusionClassifier")
    folder = run.parent
    assert sorted(p.name for p in run.iterdir()) == ["best", "history.json", "last", "readers.json", "run.yaml"]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(json.loads((run / "history.json").read_text())[0])
    opened = Run.load(run)
    assert isinstance(opened.model, FusionClassifier) and opened.vae is opened.model.model

    result = call(
        "classify", run, folder / "train.csv", "--out", folder / "p.csv", "--id", "caption", "--batch-size", 7
    )
    assert result.exit_code == 0, tell(result)
    with (folder / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ((batch, mask),) = opened.batches(opened.dataset(folder / "train.csv"))
    p = opened.model.predict_proba(batch, mask)
    assert list(rows[0]) == ["row", "caption", "class", *(f"p_{digit}" for digit in range(10))]
    assert [int(row["row"]) for row in rows] == list(range(1, 49))
    assert [row["class"] for row in rows] == opened.model.classify(batch, mask)
    found = [[float(row[f"p_{digit}"]) for digit in range(10)] for row in rows]
    np.testing.assert_allclose(found, p.numpy(), atol=1e-6)
    assert rows[0]["caption"] == "" and rows[1]["caption"] == "the digit one"
    assert "train.csv: 2 rows (1, 36) have nothing that the model takes" in result.stderr

    result = call("classify", run, "--from", f"image={folder}/img/3.png")
    assert result.exit_code == 0, tell(result)
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    image = {"image": opened.readers["image"].read(folder / "img/3.png")[None]}
    assert lines[0][0] == opened.model.classify(image)[0]
    assert sum(float(value) for _, value in lines) == pytest.approx(1, abs=1e-3)

    assert call("embed", run, folder / "train.csv", "--out", folder / "z.npy").exit_code == 0
    np.testing.assert_allclose(np.load(folder / "z.npy"), opened.model.encode(batch, mask).numpy(), atol=1e-5)
    result = call("translate", run, "--from", f"image={folder}/img/3.png", "--to", "text")
    assert result.exit_code == 0 and result.stdout.strip(), tell(result)
    refused(2, "holds a FusionClassifier, which has no sample; it has evaluate, classify", "sample", run, "--out", "x")


def test_wrong_use_of_classify(trained):
    run = trained("FusionClassifier", options=", generative_weight: 0")
    data = run.parent / "train.csv"
    for args, said in (
        ((), "expected either a manifest or --from"),
        ((data,), "--out: is missing"),
        ((data, "--out", "p.npy"), "expected a name that ends in .csv, .parquet"),
        ((data, "--out", "p.csv", "--id", "captoin"), "--id: "),
        ((data, "--out", "p.csv", "--id", "class"), "neither row nor class"),
        (("--from", "imge=x"), "did you mean 'image'"),
    ):
        refused(2, said, "classify", run, *args)
    refused(
        2, "which has no translate; it has evaluate, classify, embed", "translate", run, "--from", "a=b", "--to", "a"
    )


def test_gan(trained):
    run = trained("GAN")
    folder, opened = run.parent, Run.load(run)
    assert isinstance(opened.model, GAN) and opened.vae is None
    assert {f"epoch-000{i}-image.{end}" for i in (1, 2) for end in ("npy", "png")} == {
        p.name for p in (run / "samples").iterdir()
    }
    result = call("sample", run, "--label", "4", "--label", "1", "-n", 2, "--out", folder / "s")
    assert result.exit_code == 0, tell(result)
    with (folder / "s/samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["label"]) for row in rows] == [
        (f"image/000{i}.png", label) for i, label in enumerate("4411")
    ]
    from PIL import Image

    expected = opened.model.sample(condition=torch.tensor([4, 4, 1, 1]), seed=0)
    for row, x in zip(rows, expected, strict=True):
        with Image.open(folder / "s" / row["image"]) as image:
            np.testing.assert_allclose(np.asarray(image) / 255, x[0].numpy(), atol=1 / 255)
    result = call("sample", run, "-n", 12, "--out", folder / "s")
    with (folder / "s/samples.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == [str(i % 10) for i in range(12)]
    refused(2, "--label '11': no such class; did you mean '1'?", "sample", run, "--label", "11", "--out", folder / "s")
    refused(2, "--temperature is for modalities of kind language", "sample", run, "--temperature", 1, "--out", "x")
    refused(2, "a GAN, which has no embed; it has evaluate, sample", "embed", run, "x.csv", "--out", "z.npy")


def test_a_gan_without_labels(trained):
    run = trained("GAN", data="validation: 0.25")
    assert Run.load(run).model.classes is None
    result = call("sample", run, "-n", 3, "--out", run.parent / "s")
    assert result.exit_code == 0, tell(result)
    assert (run.parent / "s/samples.csv").read_text().splitlines()[0] == "image"
    refused(2, "so it has no classes", "sample", run, "--label", "4", "--out", run.parent / "s")


def test_cyclegan(trained):
    run = trained("CycleGAN")
    assert {"epoch-0002-image.png", "epoch-0002-image_to_size.npy"} <= {p.name for p in (run / "samples").iterdir()}
    result = call("translate", run, "--from", f"image={run.parent}/img/3.png", "--to", "size")
    assert result.exit_code == 0, tell(result)
    assert len(result.stdout.strip().split(",")) == 2
    result = call("translate", run, "--from", "size=3,2", "--to", "image", "--out", run.parent / "three")
    assert result.exit_code == 0 and (run.parent / "three.png").is_file(), tell(result)
    refused(2, "--from names size, expected image", "translate", run, "--from", "size=3,2", "--to", "size")
    refused(2, "--from size: 1 value, expected 2 with commas", "translate", run, "--from", "size=3", "--to", "image")
    refused(2, "--from size: ", "translate", run, "--from", "size=3,abc", "--to", "image")
    refused(2, "--seed: a CycleGAN", "translate", run, "--from", "size=3,2", "--to", "image", "--seed", 1)
    refused(2, "has no classify; it has evaluate, translate", "classify", run, "--from", "size=3,2")


def test_autoencoder(trained):
    run = trained("Autoencoder")
    folder = run.parent
    assert isinstance(Run.load(run).model, MultimodalVAE)
    result = call("embed", run, folder / "train.csv", "--out", folder / "z.npy")
    assert result.exit_code == 0 and "2 rows (1, 36) have nothing that the model takes" in result.stderr, tell(result)
    assert np.load(folder / "z.npy").shape == (48, 4)
    assert call("translate", run, "--from", "text=the digit two", "--to", "image", "--out", folder / "x").exit_code == 0
    refused(2, "an Autoencoder, which has no sample; it has evaluate, translate", "sample", run, "--out", folder / "s")

    ends = folder / "img/3.png", folder / "img/4.png"
    result = call("interpolate", run, *ends, "--of", "image", "--steps", 5, "--out", folder / "way")
    assert result.exit_code == 0, tell(result)
    assert len(list((folder / "way/image").iterdir())) == 5
    result = call("interpolate", run, *ends, "--of", "image", "--to", "text", "--steps", 3)
    assert len(result.stdout.splitlines()) == 3, tell(result)
    refused(2, "--of: is missing, expected one of image, text", "interpolate", run, *ends)
    refused(2, "say with --out which folder", "interpolate", run, *ends, "--of", "image")
    refused(1, "none.png: none.png: no such file", "interpolate", run, ends[0], "none.png", "--of", "image")


def test_texts_are_drawn_or_the_likeliest(digits):
    pytest.importorskip("tokenizers")
    (digits / "config.yaml").write_text(
        "data: {train: train.csv, ignore: all}\n"
        "modalities: {text: {kind: language, column: caption, width: 16, heads: 2, layers: 1, vocabulary_size: 300}}\n"
        "model: {name: VAE, latent_dim: 4}\ntraining: {epochs: 2, batch_size: 16, accelerator: cpu}\nout: run\n"
    )
    run = digits / "run"
    assert call("train", digits / "config.yaml", "--quiet").exit_code == 0

    def sampled(*options):
        result = call("sample", run, "-n", 6, "--out", digits / "s", *options)
        assert result.exit_code == 0, tell(result)
        return (digits / "s/samples.csv").read_text()

    likeliest = sampled()
    assert sampled("--top-k", 1) == likeliest  # a draw from one token
    drawn = sampled("--temperature", 1.5)
    assert drawn != likeliest
    assert sampled("--temperature", 1.5) == drawn
    assert sampled("--temperature", 1.5, "--seed", 1) != drawn
    assert sampled("--top-p", 0.9) != likeliest
    refused(2, "--top-p 1.5: expected a probability", "sample", run, "--top-p", 1.5, "--out", digits / "s")

    given = ("--from", "text=the digit two", "--to", "text")
    assert call("translate", run, *given).stdout != call("translate", run, *given, "--temperature", 2).stdout
    ends = "the digit two", "the digit six"
    result = call("interpolate", run, *ends, "--steps", 4)
    assert result.exit_code == 0, tell(result)
    from mmvae_fast.systems.text_generation import interpolate

    assert result.stdout.splitlines() == interpolate(Run.load(run).model, *ends, 4)
