"""``mmvae-fast evaluate`` of runs that hold a system, and what it shows while it works."""

import json

import pytest

pytest.importorskip("typer", reason="needs the 'cli' extra")
pytest.importorskip("pydantic", reason="needs the 'data' extra")
pytest.importorskip("lightning", reason="needs the 'train' extra")
pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")

from typer.testing import CliRunner

from mmvae_fast.cli import app
from mmvae_fast.cli.progress import stages
from mmvae_fast.data.run import Run
from mmvae_fast.modalities import Modality
from mmvae_fast.systems import GAN, Autoencoder, FusionClassifier


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def holding(digits, edit, monkeypatch):
    """A run, and a way to put another model or system in it that reads the same."""

    def make(build, only_image=False):
        if only_image:
            edit(digits / "config.yaml", "  text: {kind: text, column: caption, hidden: [16], embedding_dim: 4}\n", "")
            edit(digits / "config.yaml", "data: {", "data: {ignore: [caption], ")
        result = call("train", digits / "config.yaml", "--quiet", "--epochs", 1)
        assert result.exit_code == 0, result.output + result.stderr
        run = Run.load(digits / "run")
        run.model = build({n: Modality.from_config(m.config()) for n, m in run.model.modalities.items()})
        monkeypatch.setattr(Run, "load", classmethod(lambda cls, folder: run))
        (digits / "run/history.json").write_text('[{"epoch": 1, "loss": 1.0}]')  # as a system's is
        return digits

    return make


def test_a_classifier(holding):
    folder = holding(lambda modalities: FusionClassifier(modalities, [str(i) for i in range(10)], latent_dim=4))
    result = call("evaluate", folder / "run", "--data", folder / "train.csv", "--json")
    assert result.exit_code == 0, result.output + result.stderr
    found = json.loads(result.stdout)
    assert found["model"] == "FusionClassifier" and found["rows"] == 48 and found["data"].endswith("train.csv")
    assert found["observed"] == {"image": 38, "text": 41}
    assert set(found["classification"]) == {"all that a row has", "half of that", "image", "text", "image+text"}
    again = call(
        "evaluate", folder / "run", "--data", folder / "train.csv", "--json", "--batch-size", 5, "--workers", 1
    )
    assert json.loads(again.stdout)["confusion"] == found["confusion"]
    result = call("evaluate", folder / "run", "--data", folder / "train.csv", "--report", folder / "report")
    assert result.exit_code == 0, result.output + result.stderr
    assert "Classes told, by what was shown" in result.stdout and "confusion.png" in result.stderr
    written = {path.name for path in (folder / "report").iterdir()}
    assert written == {"report.json", "report.md", "confusion.png", "latents.png", "training.png"}
    assert json.loads((folder / "report/report.json").read_text())["confusion"] == found["confusion"]
    result = call("evaluate", folder / "run", "--samples", 5)
    assert result.exit_code == 2 and "FusionClassifier has no density" in result.stderr
    rows = (folder / "train.csv").read_text().splitlines()
    (folder / "unlabelled.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows) + "\n")
    result = call("evaluate", folder / "run", "--data", folder / "unlabelled.csv")
    assert result.exit_code == 0, result.output + result.stderr
    assert "accuracy, confusion, latents: no row has a label" in result.stdout


def test_a_gan(holding):
    folder = holding(lambda modalities: GAN(modalities, 4, classes=10, width=4), only_image=True)
    result = call("evaluate", folder / "run", "--data", folder / "train.csv", "--generated", 30, "--json")
    assert result.exit_code == 0, result.output + result.stderr
    found = json.loads(result.stdout)
    assert found["settings"] == {"generated": 30, "seed": 0}
    assert set(found["quality"]) == {"image, generated", "image, real half"}


def test_a_model_without_a_density(holding):
    folder = holding(lambda modalities: Autoencoder(modalities, 4))
    result = call("evaluate", folder / "run", "--samples", 5)
    assert result.exit_code == 2 and "Autoencoder has no density" in result.stderr
    assert call("evaluate", folder / "run").exit_code == 0


def test_the_bar_takes_stages_and_shows_nothing_where_there_is_no_terminal(capsys):
    with stages() as progress:
        progress("reading", 0, 0)
        progress("latents", 1, 3)
        progress("done", 3, 3)
    assert capsys.readouterr() == ("", "")


def test_rows_that_were_held_out_are_known_only_while_the_manifest_is_what_it_was(digits):
    assert call("train", digits / "config.yaml", "--quiet", "--epochs", 1).exit_code == 0
    assert call("evaluate", digits / "run").exit_code == 0
    lines = (digits / "train.csv").read_text().splitlines(keepends=True)
    (digits / "train.csv").write_text("".join([lines[0], *sorted(lines[1:])]))
    result = call("evaluate", digits / "run")
    assert result.exit_code == 1 and result.stdout == ""
    assert "train.csv was changed since training, so which rows were held out is not known" in result.stderr
    assert "--data" in result.stderr and "Traceback" not in result.stderr
    assert call("evaluate", digits / "run", "--data", digits / "train.csv").exit_code == 0


def test_rows_of_classes_that_the_training_did_not_have_are_named(holding):
    folder = holding(lambda modalities: FusionClassifier(modalities, [str(i) for i in range(10)], latent_dim=4))
    lines = (folder / "train.csv").read_text().splitlines()
    lines = [lines[0], *(f"{line[:-1]}{'seven' if line.endswith('7') else ' ' + line[-1]}" for line in lines[1:])]
    unknown = [i for i, line in enumerate(lines) if line.endswith("seven")]
    (folder / "test.csv").write_text("\n".join(lines) + "\n")
    result = call("evaluate", folder / "run", "--data", folder / "test.csv", "--report", folder / "report")
    assert result.exit_code == 0, result.output + result.stderr
    assert f"test.csv: {len(unknown)} rows have a class that the training data did not" in result.stderr
    assert f"row {unknown[0]}, digit: 'seven' is the class of no training row; there is '0'" in result.stderr
    found = json.loads((folder / "report/report.json").read_text())
    assert "'seven'" in found["skipped"]["rows of unknown classes"]
    assert sum(map(sum, found["confusion"])) == 48 - len(unknown)  # ' 3' is '3'
    assert "rows of unknown classes" in result.stdout.partition("Left out")[2]


def test_a_folder_that_is_no_run(tmp_path):
    result = call("evaluate", tmp_path)
    assert result.exit_code == 1 and f"{tmp_path} is not a folder that mmvae-fast train wrote" in result.stderr
