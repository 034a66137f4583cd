"""The whole evaluation: what it finds in a trained model, and that it takes every kind of model, rows missing."""

import json
import math

import pytest
import torch
from conftest import MODELS

pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")
pytest.importorskip("sklearn", reason="needs the 'evaluate' extra")

from mmvae_fast.evaluate import Report, Rows, evaluate, write_report
from mmvae_fast.evaluate.report import _compare
from mmvae_fast.modalities import Text, Vector
from mmvae_fast.models import CVAE, MoPoE

WORDS = ("red", "green", "blue")


def coloured(rows, seed):
    """A point near one of three corners, and the word for it."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=g)
    return {
        "point": torch.eye(3)[labels] * 3 + 0.3 * torch.randn(rows, 3, generator=g),
        "word": labels[:, None] + 2,
    }, labels


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("lightning", reason="needs the 'train' extra")
    from mmvae_fast.training import fit

    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"point": Vector(3, hidden=(16,), scale=0.3), "word": Text(WORDS, 1, hidden=(16,))}
        model = MoPoE(parts, 2, likelihood_weights="dimension")
    fit(model, coloured(400, 0)[0], epochs=20, batch_size=50, lr=1e-2, progress=False)
    return model.train()


def test_a_trained_model(trained):
    data, labels = coloured(160, 1)
    data["mask"] = torch.ones(160, 2, dtype=torch.bool)
    data["mask"][:20, 0] = False
    data["point"][:20] = torch.nan
    labels[-10:] = -1
    report = evaluate(trained, data, labels, n_samples=20, generated=200, train=coloured(300, 2))
    found = report.as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["model"] == "MoPoE" and found["observed"] == {"point": 140, "word": 160} and found["labelled"] == 150
    assert found["coherence"]["point"]["word"] > 0.95 and found["coherence"]["word"]["point"] > 0.95
    assert found["oracles"]["point"]["accuracy"] > 0.98 and found["oracles"]["word"]["rows"] == 150
    assert found["log_likelihood"]["joint"]["point"]["rows"] == 140
    assert found["log_likelihood"]["conditional"]["point"]["mean"] > -0.3  # the word follows from the point
    assert (
        found["reconstruction"]["word"]["point"]["mse"] < 0.5
        and found["reconstruction"]["word"]["point"]["rows"] == 140
    )
    assert (
        found["latents"]["word"]["probe_accuracy"] > 0.95 and found["latents"]["point+word"]["cluster_accuracy"] > 0.9
    )
    samples = found["samples"]["point"]
    assert samples["floor"] > 0 and samples["features"] == "svc oracle" and samples["rows"] == 65
    assert 0 <= found["joint_coherence"] <= 1
    assert all(part.training for part in trained.modules())  # as it came


def test_it_is_the_same_again(trained):
    data, labels = coloured(40, 1)
    first, again = (evaluate(trained, data, labels, n_samples=3, generated=30).as_dict() for _ in range(2))
    assert first == again
    other = evaluate(trained, data, labels, n_samples=3, generated=30, seed=1).as_dict()
    assert first["log_likelihood"] != other["log_likelihood"] and first["samples"] != other["samples"]


def test_without_labels_and_files(trained, tmp_path):
    data, _ = coloured(40, 1)
    report = evaluate(trained, data, subsets=[["point"]], n_samples=0, generated=40)
    assert set(report.figures) == {"model", "rows", "observed", "settings", "reconstruction", "samples", "skipped"}
    assert report.figures["skipped"] == {
        "coherence, oracles, latents": "labels is None: nobody said which class a row shows"
    }
    assert report.figures["samples"]["word"]["features"] == "5 principal components"
    text, page = report.as_text(), report.as_markdown()
    assert "word from point" in text and "word from word" not in text
    assert "| word from point | 40 |" in page and page.startswith("# Evaluation\n\nMoPoE on 40 rows")
    assert json.loads(report.save(tmp_path / "report.json").read_text()) == report.as_dict()
    assert report.save(tmp_path / "report.md").read_text() == page
    assert report.save(tmp_path / "report.txt").read_text() == text
    with pytest.raises(ValueError, match=r"ends in '.csv', expected .json, .md or .txt"):
        report.save(tmp_path / "report.csv")


@pytest.mark.parametrize("kind", ["labels", "none", "CVAE"])
def test_a_folder(trained, tmp_path, kind):
    pytest.importorskip("matplotlib", reason="needs the 'plots' extra")
    model, names = trained, {"traversal_point.png", "traversal_word.png"}
    if kind == "CVAE":
        model, names = CVAE(trained.modalities, 2, condition=["word"]), {"traversal_point.png"}
    data, labels = coloured(40, 1)
    data["mask"] = {"point": torch.arange(40) > 4}
    labels = None if kind == "none" else labels
    report = evaluate(model, data, labels, n_samples=2, generated=30)
    history = [{"epoch": 1, "elbo": -3.0, "kl": 1.0, "ll_point": -2.0}]
    (tmp_path / "notes.txt").write_text("mine")
    written = write_report(tmp_path, report, model, data, labels, history=history)
    names |= {"report.json", "report.md", "grid.png", "latents.png", "training.png"}
    assert {path.name for path in written} == names | ({"coherence.png"} if kind != "none" else set())
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written} | {"notes.txt"}
    page = (tmp_path / "report.md").read_text()
    assert page.startswith(report.as_markdown()) and "![grid](grid.png)" in page
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        write_report(tmp_path / "file", report, model, data, labels)


def test_the_order_of_the_rows_says_nothing(trained):
    """Samples are compared with rows of all classes, even if the data are sorted by class."""
    data, labels = coloured(1200, 1)
    order = labels.argsort(stable=True)
    made = coloured(300, 2)[0]["point"]
    rows = Rows.of(trained, data, labels)
    for some in (rows, rows.take(order)):
        found = _compare(trained, some, "point", made, None, 0)
        assert found["precision"] > 0.85 and found["recall"] > 0.85  # of perfect samples
    _, half = rows.take(order).halves(0)
    assert len(half.labels[:50].unique()) == 3


def test_vectors_with_gaps_and_labels():
    labels = torch.arange(60) % 3
    x = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    x[::4, 0] = torch.nan
    model = MoPoE({"point": Vector(3, hidden=(4,), missing=True), "word": Text(WORDS, 1, hidden=(4,))}, 2)
    report = evaluate(model, {"point": x, "word": labels[:, None] + 2}, labels, n_samples=2, generated=20)
    found = report.figures
    assert found["oracles"]["point"]["accuracy"] > 0.9
    assert 0 < found["oracles"]["point"]["rows"] < 30  # the whole ones of half
    assert set(found["coherence"]) == {"point", "word"} and "skipped" not in found
    x[:, 1] = torch.nan  # no row is whole
    found = evaluate(model, {"point": x, "word": labels[:, None] + 2}, labels, n_samples=2, generated=20).figures
    assert set(found["oracles"]) == {"word"} and "expected two or more" in found["skipped"]["oracle of point"]
    assert "point" not in found["samples"] and "samples of point" in found["skipped"]


def test_one_modality_agrees_with_itself_which_is_no_figure():
    labels = torch.arange(60) % 3
    x = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    model = MoPoE({"point": Vector(3, hidden=(4,))}, 2)
    report = evaluate(model, {"point": x}, labels, n_samples=2, generated=20)
    assert "oracles" in report.figures and "joint_coherence" not in report.figures
    assert "Joint coherence" not in report.as_text()


@pytest.mark.parametrize("labels", [[-1] * 20, [-1] * 19 + [0], [0, 1] + [-1] * 18, [1] * 20, [0] * 19 + [1]])
def test_too_few_labels_leave_out_what_needs_them_and_say_so(trained, labels):
    data, _ = coloured(20, 1)
    report = evaluate(trained, data, labels, n_samples=2, generated=20)
    assert report.figures["log_likelihood"]["joint"]["point"]["rows"] == 20
    skipped = report.as_dict()["skipped"]
    assert "latents of point" in skipped
    if labels.count(-1) or len(set(labels)) == 1:
        assert "coherence" in skipped and "coherence" not in report.figures
    for page in (report.as_text(), report.as_markdown()):
        (line,) = (line for line in page.splitlines() if "latents of point" in line)
        assert line.endswith(f": {skipped['latents of point']}")


def test_what_several_are_left_out_for_is_said_once():
    skipped = {"latents of a": "too few", "latents of b": "too few", "latents of a+b": "none", "samples": "too few"}
    text = Report({"model": "MVAE", "rows": 2, "observed": {}, "skipped": skipped}).as_text()
    assert text.partition("Left out\n")[2] == "  latents of a, b: too few\n  latents of a+b: none\n  samples: too few\n"


def test_an_autoencoder_has_neither_density_nor_prior():
    from mmvae_fast.systems import Autoencoder

    data, labels = coloured(60, 1)
    model = Autoencoder({"point": Vector(3, hidden=(4,)), "word": Text(WORDS, 1, hidden=(4,))}, 2)
    found = evaluate(model, data, labels, n_samples=2).figures
    assert set(found["skipped"]) == {"log_likelihood", "samples"}
    assert not {"log_likelihood", "samples", "joint_coherence"} & set(found)
    assert {"reconstruction", "coherence", "latents", "oracles"} <= set(found)


def test_bad_input(trained):
    data, labels = coloured(20, 1)
    with pytest.raises(ValueError, match="n_samples is -1"):
        evaluate(trained, data, n_samples=-1)
    with pytest.raises(ValueError, match="labels is None"):
        evaluate(trained, data, train=(data, labels))
    with pytest.raises(ValueError, match="judges names the modality 'x'"):
        evaluate(trained, data, labels, n_samples=0, judges={"x": lambda x: x})
    with pytest.raises(ValueError, match="train: batch names the modality 'x'"):
        evaluate(trained, data, labels, n_samples=0, train=({"x": data["point"]}, labels))
    with pytest.raises(ValueError, match="n is 0, expected 1 or more samples"):
        evaluate(trained, data, n_samples=0, generated=0)


KINDS = ["MVAE", "MoPoE private", "MMVAE", "MMVAE+ iwae", "CMVAE", "DMVAE", "MHVAE", "Nexus", "JNF 2", "CVAE"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_with_rows_missing(kind):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = MODELS[kind]().double()
    g = torch.Generator().manual_seed(0)
    data = {
        "image": torch.rand(80, 1, 2, 2, generator=g, dtype=torch.float64),
        "text": torch.randint(0, 5, (80, 3), generator=g),
        "audio": torch.randn(80, 2, 3, generator=g, dtype=torch.float64),
        "vector": torch.randn(80, 4, generator=g, dtype=torch.float64),
        "mask": torch.rand(80, 4, generator=g) < 0.8,
    }
    data["audio"][~data["mask"][:, 2]] = torch.nan
    labels = torch.arange(80) % 2
    subsets = [["image"], ["text", "vector"]]
    report = evaluate(model, data, labels, subsets=subsets, n_samples=2, generated=20, batch_size=32)
    figures = report.figures
    assert len(figures["reconstruction"]) == len(figures["coherence"]) == len(figures["latents"]) == 2
    for table in (figures["reconstruction"], figures["log_likelihood"]["joint"], figures["latents"]):
        assert len(table) == 2
    values = [value for of in figures["coherence"].values() for value in of.values()]
    values += [row["mean"] for row in figures["log_likelihood"]["conditional"].values()]
    values += [row["distance"] for row in figures["samples"].values()]
    assert values and all(math.isfinite(value) for value in values)
    assert set(figures["samples"]) == set(model.modalities) - set(model.always_given)
