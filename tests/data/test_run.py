"""From a folder of files to a trained model and back to files: in Python and by the command line."""

import csv
import json

import numpy as np
import pytest
import torch

for module in ("pyarrow", "pydantic", "yaml", "PIL", "sklearn", "lightning", "safetensors", "typer"):
    pytest.importorskip(module)

from typer.testing import CliRunner  # noqa: E402

from mmvae_fast._files import write_atomic  # noqa: E402
from mmvae_fast.cli import INTERRUPTED, app  # noqa: E402
from mmvae_fast.data import CellError  # noqa: E402
from mmvae_fast.data.config import read_config  # noqa: E402
from mmvae_fast.data.run import Run, split_rows, train  # noqa: E402
from mmvae_fast.models import MultimodalVAE  # noqa: E402


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def tell(result):
    return f"{result.exit_code} {result.stdout} {result.stderr} {result.exception!r}"


@pytest.fixture
def run(digits):
    train(read_config(digits / "config.yaml"), progress=False)
    return digits / "run"


def test_train_evaluate_translate_sample_embed(digits, edit):
    result = call("train", digits / "config.yaml", "--quiet")
    assert result.exit_code == 0, tell(result)
    run = digits / "run"
    assert result.stdout.strip() == str(run)
    assert sorted(p.name for p in run.iterdir()) == ["best", "history.json", "last", "readers.json", "run.yaml"]
    assert [record["epoch"] for record in json.loads((run / "history.json").read_text())] == [1, 2]

    # the same command does what is missing, and nothing if that is nothing
    result = call("train", digits / "config.yaml", "--quiet", "--epochs", "3")
    assert result.exit_code == 0, tell(result)
    assert len(json.loads((run / "history.json").read_text())) == 3

    result = call("evaluate", run, "--json", "--samples", "5")
    assert result.exit_code == 0, tell(result)
    found = json.loads(result.stdout)
    assert found["rows"] == 12  # a quarter of 48, never trained on
    assert found["loss"] == pytest.approx(-found["elbo"])
    assert found["log_likelihood"] == pytest.approx(found["elbo"], abs=5)  # both bound log p(x), with other posteriors
    assert list(found["per_modality"]) == ["image", "text"]
    assert set(found["reconstruction"]) == {"image", "text", "all"}
    assert 0 < found["reconstruction"]["text"]["image"]["value"] < 0.5
    assert 0 <= found["reconstruction"]["image"]["text"]["value"] <= 1
    result = call("evaluate", run, "--data", digits / "train.csv")
    assert result.exit_code == 0, tell(result)
    assert "48 rows" in result.stdout
    pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")
    pytest.importorskip("matplotlib", reason="needs the 'plots' extra")
    result = call("evaluate", run, "--data", digits / "train.csv", "--samples", 2, "--report", digits / "report")
    assert result.exit_code == 0, tell(result)
    report = json.loads((digits / "report/report.json").read_text())
    assert report["rows"] == 48 and set(report["log_likelihood"]["joint"]) == {"image", "text", "image+text"}
    assert {"coherence.png", "grid.png", "training.png", "report.md"} <= {p.name for p in (digits / "report").iterdir()}
    result = call("evaluate", run, "--report", digits / "train.csv")
    assert result.exit_code == 1 and "is a file, expected a folder" in result.stderr

    result = call("translate", run, "--from", f"image={digits}/img/3.png", "--to", "text")
    assert result.exit_code == 0, tell(result)
    assert set(result.stdout.split()) <= {"<unk>", "the", "digit", *WORDS}
    assert result.stdout.endswith("\n")
    result = call("translate", run, "--from", "text=the digit two", "--to", "image", "--out", digits / "two.png")
    assert result.exit_code == 0, tell(result)
    from PIL import Image

    with Image.open(digits / "two.png") as image:
        assert image.size == (8, 8)
    result = call("translate", run, "--from", "text=the digit two", "--to", "image", "--out", digits / "two.v2")
    assert result.stdout.strip() == str(digits / "two.v2.png")
    assert (digits / "two.v2.png").is_file()

    result = call("sample", run, "-n", 3, "--out", digits / "samples")
    assert result.exit_code == 0, tell(result)
    with (digits / "samples/samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"image/{i:04}.png" for i in range(3)]
    assert all((digits / "samples" / row["image"]).is_file() for row in rows)
    assert (digits / "samples/text/0002.txt").read_text().strip() == rows[2]["text"]
    assert call("sample", run, "-n", 2, "--out", digits / "samples").exit_code == 0
    assert not (digits / "samples/text/0002.txt").exists()

    assert call("embed", run, digits / "train.csv", "--out", digits / "all.npy").exit_code == 0
    assert np.load(digits / "all.npy").shape == (48, 4)  # named, so all of it, the training rows too

    (digits / "text.csv").write_text("caption,other\nthe digit two,1\n,2\n")
    for name in ("z.npy", "z.csv", "z.parquet"):
        result = call("embed", run, digits / "text.csv", "--out", digits / name)
        assert result.exit_code == 0, tell(result)
    import pyarrow.parquet

    z = np.load(digits / "z.npy")
    assert z.shape == (2, 4)
    assert (z[1] == 0).all()  # nothing observed: the prior's mean
    table = pyarrow.parquet.read_table(digits / "z.parquet")
    assert table.column_names == ["z_0", "z_1", "z_2", "z_3"]
    np.testing.assert_array_equal(np.stack([table[d].to_numpy() for d in table.column_names], 1), z)
    np.testing.assert_allclose(np.loadtxt(digits / "z.csv", delimiter=",", skiprows=1), z, rtol=1e-6)


def stop_after(epochs):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.current_epoch == epochs:
                raise KeyboardInterrupt

    return Stop()


def test_interrupted_and_continued_equals_uninterrupted(digits, edit):
    edit(digits / "config.yaml", "epochs: 2", "epochs: 3")
    config = read_config(digits / "config.yaml")
    whole = train(config, progress=False)
    config = config.model_copy(update={"out": digits / "stopped"})
    with pytest.raises(KeyboardInterrupt, match="the same call continues from there"):
        train(config, progress=False, callbacks=(stop_after(1),))
    assert len(json.loads((digits / "stopped/history.json").read_text())) == 1
    continued = train(config, progress=False)
    assert (digits / "stopped/history.json").read_text() == (digits / "run/history.json").read_text()
    for a, b in zip(whole.model.parameters(), continued.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ctrl_c_says_what_is_kept_and_exits_with_130(digits, monkeypatch):
    from mmvae_fast.data import run

    def interrupted(*args, **options):
        raise KeyboardInterrupt("training stopped in epoch 2: run/last holds the epoch before")

    monkeypatch.setattr(run, "fit", interrupted)
    result = call("train", digits / "config.yaml")
    assert result.exit_code == INTERRUPTED
    assert result.stderr == "Training stopped in epoch 2: run/last holds the epoch before\n"


def test_sigterm_says_what_is_kept_and_exits_with_143(digits, monkeypatch):
    """As a shell reports a process that SIGTERM ended, whether a system trained or a model, with Lightning."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from mmvae_fast.data import run
    from mmvae_fast.training.stopping import Terminated

    for stop in (Terminated, SIGTERMException):

        def terminated(*args, stop=stop, **options):
            raise stop("training stopped in epoch 2: run/last holds the epoch before")

        monkeypatch.setattr(run, "fit", terminated)
        result = call("train", digits / "config.yaml")
        assert result.exit_code == 143, tell(result)
        assert result.stderr == "Training stopped in epoch 2: run/last holds the epoch before\n"


def test_a_run_goes_on_with_its_own_data_only(run, edit):
    digits = run.parent
    edit(digits / "train.csv", "the digit one", "one")
    result = call("train", digits / "config.yaml", "--quiet")
    assert result.exit_code == 1
    assert "the manifest was changed since" in result.stderr
    result = call("train", digits / "config.yaml", "--quiet", "--start-over")
    assert result.exit_code == 0, tell(result)
    assert "one" in Run.load(run).model.modalities["text"].words


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("size: [8, 8]", "size: [10, 8]", "modalities.image.size was [8, 8], now [10, 8]"),
        ("batch_size: 16", "batch_size: 8", "training.batch_size was 16, now 8"),
        ("accelerator: cpu", "accelerator: cpu, seed: 3", "training.seed was 0, now 3"),
        ("augment: {crop: 1}", "augment: {crop: 2}", "modalities.image.augment.crop was 1, now 2"),
        ("name: MoPoE", "name: MVAE", "model.name was 'MoPoE', now 'MVAE'"),
        ("accelerator: cpu", "accelerator: none_such", ""),  # refused by Lightning
    ],
)
def test_a_refused_training_leaves_the_run_as_it_was(run, edit, before, after, said):
    def content():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    digits, there = run.parent, content()
    edit(digits / "config.yaml", before, after)
    edit(digits / "config.yaml", "epochs: 2", "epochs: 3")
    result = call("train", digits / "config.yaml", "--quiet")
    assert result.exit_code == 1, tell(result)
    assert said in result.stderr
    assert content() == there
    assert isinstance(Run.load(run).model, MultimodalVAE)


def test_a_run_goes_on_where_defaults_are_written_out(run, edit):
    """And the other way round; a value that is none is still refused."""
    digits = run.parent
    edit(digits / "config.yaml", "kind: text,", "kind: text, too_long: cut, scale: 1.0,")
    edit(digits / "config.yaml", "channels: 1, hidden: [32]", "column: image, channels: 1, hidden: [32], width: 32")
    edit(digits / "config.yaml", "latent_dim: 4", "latent_dim: 4, beta: 1, likelihood_weights: none")
    edit(digits / "config.yaml", "epochs: 2", "epochs: 3, warmup_epochs: null")
    result = call("train", digits / "config.yaml", "--quiet")
    assert result.exit_code == 0, tell(result)
    (digits / "config.yaml").write_text((digits / "config.yaml").read_text().replace(", beta: 1,", ","))
    result = call("train", digits / "config.yaml", "--quiet", "--epochs", "4")
    assert result.exit_code == 0, tell(result)
    edit(digits / "config.yaml", "latent_dim: 4,", "latent_dim: 4, beta: 2,")
    result = call("train", digits / "config.yaml", "--quiet", "--epochs", "5")
    assert result.exit_code == 1 and "model.beta was 1.0, now 2" in result.stderr, tell(result)


def test_a_run_stays_of_use_until_one_that_starts_over_has_an_epoch(run, edit):
    digits, history = run.parent, (run / "history.json").read_text()
    words = Run.load(run).model.modalities["text"].words
    table = (digits / "train.csv").read_bytes()
    edit(digits / "train.csv", "the digit one", "one")
    config = read_config(digits / "config.yaml")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="still holds the run before"):
            train(config, resume=False, progress=False, callbacks=(stop_after(0),))
        opened = Run.load(run)
        assert opened.model.modalities["text"].words == words
        assert opened.readers["text"].modality().config() == opened.model.modalities["text"].config()
    with pytest.raises(ValueError, match="the manifest was changed since"):
        train(config, progress=False)
    (digits / "train.csv").write_bytes(table)
    with pytest.raises(ValueError, match="holds a run that resume=False set out to replace"):
        train(config, progress=False)
    (run / "started-over.txt").unlink()
    assert train(config, progress=False).model.modalities["text"].words == words
    assert (run / "history.json").read_text() == history
    edit(digits / "train.csv", "the digit one", "one")
    assert "one" in train(config, resume=False, progress=False).model.modalities["text"].words
    assert not (run / "last/readers.json").exists()


def test_a_run_goes_on_where_its_folders_have_moved(run, edit):
    digits = run.parent
    moved = digits.rename(digits.parent / "moved")
    edit(moved / "config.yaml", "label: digit", "label: digit, test: train.csv")
    result = call("train", moved / "config.yaml", "--quiet", "--epochs", "3")
    assert result.exit_code == 0, tell(result)
    assert read_config(moved / "run/run.yaml").data.train == moved / "train.csv"
    assert len(json.loads((moved / "run/history.json").read_text())) == 3


def test_resume_insists_on_a_run(digits):
    result = call("train", digits / "config.yaml", "--resume")
    assert result.exit_code == 1
    assert "there is no checkpoint" in result.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_stop_or_count_as_missing(digits, edit, workers):
    (digits / "img/3.png").write_bytes((digits / "img/3.png").read_bytes()[:60])
    result = call("train", digits / "config.yaml", "--quiet", "--workers", workers)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1  # no traceback of a worker's
    assert "train.csv, row 4, column 'image'" in result.stderr
    assert "3.png" in result.stderr
    edit(digits / "config.yaml", "label: digit", "label: digit, on_error: missing")
    result = call("train", digits / "config.yaml", "--quiet", "--workers", workers, "--epochs", "1")
    assert result.exit_code == 0, tell(result)
    assert "train.csv: 1 cell cannot be read\n  row 4, image: " in result.stderr
    assert "counted as missing" in result.stderr


def test_a_damaged_file_has_no_traceback_of_a_worker_process(run):
    digits = run.parent
    (digits / "img/3.png").write_bytes(b"broken")
    for args in (
        ("embed", run, digits / "train.csv", "--out", digits / "z.npy"),
        ("evaluate", run, "--data", digits / "train.csv"),
    ):
        result = call(*args, "--workers", 1)
        assert result.exit_code == 1, tell(result)
        assert "train.csv, row 4, column 'image': " in result.stderr
        assert "Traceback" not in result.stderr


def test_a_damaged_file_in_python_names_its_row(digits):
    (digits / "img/3.png").write_bytes(b"broken")
    with pytest.raises(CellError, match="row 4, column 'image': .*3.png: not an image"):
        train(read_config(digits / "config.yaml"), progress=False)


@pytest.mark.parametrize(
    ("file", "before", "after", "code", "said"),
    [
        ("config.yaml", "epochs: 2", "epoch: 2", 2, "training.epoch: no such key; did you mean 'epochs'?"),
        ("config.yaml", "name: MoPoE", "name: MoPo", 2, "did you mean 'MoPoE'"),
        ("config.yaml", "train.csv", "trian.csv", 1, "trian.csv: no such file"),
        ("config.yaml", "column: caption", "column: captoin", 1, "did you mean 'caption'"),
        ("config.yaml", ", label: digit", "", 1, "column 'digit' of no modality"),
        ("config.yaml", "label: digit", "label: digits", 1, "no column 'digits' for the label"),
        ("train.csv", "img/3.png", "img/3.jpg", 1, "row 4, image: "),
        ("train.csv", "image,caption,digit", "image,image,digit", 1, "the column 'image' is there 2 times"),
        ("train.csv", "img/3.png,", "img/3.png,,,", 1, "row 4: 5 cells, expected 3"),
    ],
)
def test_wrong_input_is_known_before_training(digits, edit, file, before, after, code, said):
    edit(digits / file, before, after)
    result = call("train", digits / "config.yaml")
    assert (result.exit_code, said in result.stderr) == (code, True), tell(result)
    assert "Traceback" not in result.stderr
    assert not (digits / "run").exists()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("kind: text, column", "kind: text, length: {}, column", "modalities.text: "),
        ("name: MoPoE", "name: MHVAE, subsets: []", "model: "),
        ("accelerator: cpu", "accelerator: gpu", "accelerator is 'gpu': "),
        (
            "image: {kind: image, size: [8, 8], channels: 1, hidden: [32], augment: {crop: 1}}",
            "image: {kind: patches, seed: x}",
            "seed is 'x', expected an integer",
        ),
    ],
)
def test_wrong_values_have_no_traceback(digits, edit, before, after, said):
    if "gpu" in after and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("there is one")
    edit(digits / "config.yaml", before, after)
    result = call("train", digits / "config.yaml", "--quiet")
    assert isinstance(result.exception, SystemExit) and result.exit_code in (1, 2), tell(result)
    assert said in result.stderr, tell(result)


@pytest.mark.parametrize("bug", [TypeError, RuntimeError, KeyError])
def test_a_bug_keeps_its_traceback(digits, monkeypatch, bug):
    from mmvae_fast.data import run

    def broken(*_, **__):
        raise bug("of ours")

    monkeypatch.setattr(run, "train", broken)
    assert isinstance(call("train", digits / "config.yaml").exception, bug)


def test_folders_of_others_are_left_alone(digits):
    (digits / "run").mkdir()
    (digits / "run/run.yaml").write_text("mine")
    result = call("train", digits / "config.yaml")
    assert result.exit_code == 1
    assert "was not written by mmvae-fast train" in result.stderr
    assert (digits / "run/run.yaml").read_text() == "mine"


def test_wrong_use_of_a_run(run, tmp_path):
    digits = run.parent
    for args, code, said in (
        (("translate", run, "--from", "image", "--to", "text"), 2, "expected MODALITY=VALUE"),
        (("translate", run, "--from", "imge=x.png", "--to", "text"), 2, "did you mean 'image'"),
        (("translate", run, "--from", "text=two", "--to", "txt"), 2, "did you mean 'text'"),
        (("translate", run, "--from", "text=two", "--from", "text=one", "--to", "image"), 2, "twice"),
        (("translate", run, "--from", "text=two", "--to", "image"), 2, "say with --out which file"),
        (("translate", run, "--from", "image=none.png", "--to", "text"), 1, "--from image: none.png: no such file"),
        (("sample", run, "--to", "audio", "--out", tmp_path / "s"), 2, "no modality 'audio'"),
        (("sample", run, "--out", digits / "img"), 1, "is not a folder of samples"),
        (("embed", run, digits / "train.csv", "--out", tmp_path / "z.txt"), 2, ".parquet, .csv, .npy"),
        (("embed", run, digits / "none.csv", "--out", tmp_path / "z.csv"), 1, "no such file"),
        (("evaluate", digits / "img"), 1, "is not a folder that mmvae-fast train wrote"),
        (("evaluate", digits / "nothing"), 1, "no such folder"),
    ):
        result = call(*args)
        assert (result.exit_code, said in result.stderr) == (code, True), tell(result)
        assert "Traceback" not in result.stderr
    assert len(list((digits / "img").iterdir())) == 48


def test_a_loaded_run_reads_as_it_did_in_training(run):
    opened = Run.load(run)
    assert opened.classes == [str(digit) for digit in range(10)]
    data = opened.dataset()
    assert opened.label_ids(data).shape == (12,)
    assert not set(data.rows) & set(split_rows(48, 0.25, 0)[0])
    (batch, mask), *_ = opened.batches(data)
    assert {name: tuple(x.shape) for name, x in batch.items()} == {"image": (12, 1, 8, 8), "text": (12, 3)}
    assert mask.shape == (12, 2)
    assert not mask.all()
    assert torch.isfinite(opened.model(batch, mask, seed=0).loss)


def test_readers_of_another_run_are_refused(run):
    text = (run / "readers.json").read_text()
    write_atomic(run / "readers.json", text.replace('"eight"', '"ate"'))
    with pytest.raises(ValueError, match="are of different runs"):
        Run.load(run)
    write_atomic(run / "readers.json", "{")
    with pytest.raises(ValueError, match="readers.json: damaged"):
        Run.load(run)
    assert isinstance(MultimodalVAE.load(run / "best"), MultimodalVAE)


def test_rows_are_split_by_the_seed():
    rows, held_out = split_rows(100, 0.2, 0)
    assert sorted(rows + held_out) == list(range(100))
    assert len(held_out) == 20
    assert (rows, held_out) == split_rows(100, 0.2, 0)
    assert held_out != split_rows(100, 0.2, 1)[1]
    assert [len(part) for part in split_rows(2, 0.01, 0)] == [1, 1]
    with pytest.raises(ValueError, match="1 row, expected two or more"):
        split_rows(1, 0.5, 0)
