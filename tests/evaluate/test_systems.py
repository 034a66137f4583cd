"""Classifiers, GANs and CycleGANs judged: figures whose size is known, half of everything missing, no labels."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")
pytest.importorskip("sklearn", reason="needs the 'evaluate' extra")
pytest.importorskip("safetensors", reason="needs the 'systems' extra")

from mmvae_fast.evaluate import (
    Rows,
    classification,
    confusion,
    cycle_errors,
    evaluate,
    hide_half,
    probabilities,
    write_report,
)
from mmvae_fast.modalities import Vector
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier, fit

NAMES = ("left", "right")


def corners(rows, seed):
    """Points near one of three corners, twice."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=g)
    return {n: torch.eye(3)[labels] * 3 + 0.4 * torch.randn(rows, 3, generator=g) for n in NAMES}, labels


def vectors(*names):
    return {name: Vector(3, hidden=(16,), scale=0.4) for name in names}


@pytest.fixture(scope="module")
def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = FusionClassifier(vectors(*NAMES), ("red", "green", "blue"), latent_dim=4, lr=1e-2)
    data, labels = corners(300, 0)
    fit(made, {**data, "label": labels}, epochs=6, batch_size=50, progress=False)
    return made.train()


@pytest.fixture(scope="module")
def gan():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = GAN(
            vectors("left"), 4, classes=3, width=8, lr_generator=3e-3, lr_discriminator=3e-3, ema=0.9, betas=(0.5, 0.9)
        )
    data, labels = corners(600, 0)
    fit(made, {"left": data["left"], "label": labels}, epochs=25, batch_size=50, progress=False)
    return made


@pytest.fixture(scope="module")
def cyclegan():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = CycleGAN(
            vectors(*NAMES), code_dim=8, width=8, paired_weight=10.0, lr_generator=3e-3, lr_discriminator=3e-3, ema=0.9
        )
    fit(made, corners(600, 0)[0], epochs=10, batch_size=50, progress=False)
    return made


# --- classification ---------------------------------------------------------------------------------------------------


def test_figures_of_probabilities_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5]])
    labels = [0, 1, 1, 1, -1]
    found = classification(p, labels)
    assert found["rows"] == 4 and found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 * 1 / 3 + 2 * 2 / 5) / 2)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())
    assert found["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)  # each alone in its bin
    assert confusion(p, labels).tolist() == [[1, 0], [1, 2]]
    assert classification(torch.eye(2)[[0, 1]], [0, 1])["calibration_error"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("p", "labels", "said"),
    [
        (torch.full((3, 2), 0.5), [0, 1], r"labels is torch.int64 \[2\], expected whole numbers \[N\] = \[3\]"),
        (torch.full((3, 2), 0.5), [0.0, 1.0, 0.0], "labels is torch.float32"),
        (torch.full((3, 2), 0.5), [0, 1, 2], "labels holds 0 to 2, expected classes from 0 to 1"),
        (torch.full((3, 2), 0.5), [-1, -1, -1], "labels holds no class"),
        (torch.full((3, 2), 0.7), [0, 1, 1], "rows of which sum to 1"),
        (torch.full((3,), 0.5), [0, 1, 1], r"probabilities has shape \[3\]"),
    ],
)
def test_what_is_no_classification(p, labels, said):
    with pytest.raises(ValueError, match=said):
        classification(p, labels)


def test_half_of_each_row_is_hidden():
    mask = torch.ones(4000, 3, dtype=torch.bool)
    mask[:1000, 0] = False
    mask[1000:1500] = torch.tensor([False, True, False])
    mask[1500:1600] = False
    kept = hide_half(mask, seed=1)
    assert not (kept & ~mask).any()
    assert (kept[:1000].sum(1) == 1).all() and 0.45 < kept[:1000, 1].double().mean() < 0.55
    assert torch.equal(kept[1000:1600], mask[1000:1600])  # one of one, and nothing of nothing
    three = kept[1600:].sum(1)
    assert set(three.tolist()) == {1, 2} and 1.45 < three.double().mean() < 1.55
    assert torch.equal(hide_half(mask[:10], seed=1), kept[:10])
    assert not torch.equal(hide_half(mask, seed=2), kept)


def test_a_classifier(classifier):
    data, labels = corners(200, 1)
    data["mask"] = {"left": torch.arange(200) >= 20}
    data["left"][:20] = torch.nan
    labels[-10:] = -1
    told = []
    report = evaluate(classifier, data, labels, progress=lambda *step: told.append(step))
    found = report.as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["model"] == "FusionClassifier" and found["rows"] == 200 and found["labelled"] == 190
    table = found["classification"]
    assert list(table) == ["all that a row has", "half of that", "left", "right", "left+right"]
    assert [row["rows"] for row in table.values()] == [190, 190, 170, 190, 170]
    assert all(row["accuracy"] > 0.9 and row["macro_f1"] > 0.9 and row["log_loss"] < 0.4 for row in table.values())
    assert table["left+right"]["accuracy"] >= table["left"]["accuracy"]
    matrix = np.array(found["confusion"])
    assert matrix.sum() == 190 and matrix.trace() / 190 == pytest.approx(table["all that a row has"]["accuracy"])
    assert matrix.sum(1).tolist() == labels[:-10].bincount().tolist()
    assert sum(row["rows"] for row in found["told"].values()) == 200
    assert set(found["latents"]) == {"left", "right", "left+right"} and found["latents"]["left+right"]["ari"] > 0.8
    assert "skipped" not in found
    assert "red" in report.as_text() and "| all that a row has |" in report.as_markdown()
    assert [done for _, done, _ in told] == list(range(9)) and {total for *_, total in told} == {8}
    assert classifier.training  # as it came
    assert evaluate(classifier, data, labels, batch_size=17).as_dict()["confusion"] == found["confusion"]
    with torch.no_grad():
        expected = classifier.eval()({name: data[name][20:] for name in NAMES}).softmax(-1).double()
    classifier.train()
    torch.testing.assert_close(probabilities(classifier, data, batch_size=64)[20:], expected)


def test_a_classifier_without_labels_or_with_one_class(classifier):
    data, labels = corners(60, 1)
    for none in (None, [-1] * 60):
        found = evaluate(classifier, data, none).figures
        assert "classification" not in found and sum(row["rows"] for row in found["told"].values()) == 60
        assert found["skipped"] == {"accuracy, confusion, latents": "no row has a label"}
    one = evaluate(classifier, {**data, "label": torch.where(labels == 1, 1, -1)})
    assert one.figures["classification"]["left"]["accuracy"] > 0.9
    assert "of 1 classes" in one.figures["skipped"]["latents of left"] and "Left out" in one.as_text()
    alone = FusionClassifier(vectors("left"), 3, latent_dim=2)
    found = evaluate(alone, {"left": data["left"]}, labels).figures
    assert found["skipped"] == {"half of that": "there is one modality"}


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_gan(gan):
    data, labels = corners(400, 1)
    told = []
    report = evaluate(gan, {"left": data["left"]}, labels, generated=150, progress=lambda *step: told.append(step))
    found = report.as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["oracles"]["left"]["accuracy"] > 0.97 and found["oracles"]["left"]["rows"] == 200
    made, real = found["quality"]["left, generated"], found["quality"]["left, real half"]
    assert made["rows"] == real["rows"] == 100 and made["features"] == real["features"] == "svc oracle"
    assert made["intended"] > 0.8 and real["intended"] > 0.95 and 0 <= made["worst_class"] <= made["intended"]
    assert made["classifier_score"] > 2 and real["classifier_score"] > 2.5
    assert made["distance"] > real["distance"] > 0 and real["precision"] > 0.7
    assert "skipped" not in found and "left, generated" in report.as_text()
    assert [done for _, done, _ in told] == [0, 1, 2, 3]
    first = evaluate(gan, {"left": data["left"]}, labels, generated=150, batch_size=13).as_dict()
    assert first["quality"]["left, generated"]["distance"] == pytest.approx(made["distance"], rel=1e-4)
    other = evaluate(gan, {"left": data["left"]}, labels, generated=150, seed=1).as_dict()
    assert other["quality"] != found["quality"]
    judged = evaluate(gan, {"left": data["left"]}, labels, train=({"left": data["left"]}, labels)).figures
    assert judged["quality"]["left, generated"]["rows"] == 200
    mine = evaluate(gan, {"left": data["left"]}, labels, judges={"left": lambda x: x.argmax(1).numpy()}).figures
    assert mine["quality"]["left, real half"]["intended"] > 0.95
    assert "classifier_score" not in mine["quality"]["left, generated"]
    assert mine["quality"]["left, generated"]["features"] == "3 principal components"


def test_a_gan_without_labels_or_condition(gan):
    data, labels = corners(100, 1)
    found = evaluate(gan, {"left": data["left"]}).figures
    assert found["quality"]["left, generated"]["features"] == "3 principal components"
    assert "intended" not in found["quality"]["left, generated"] and "oracles" not in found
    assert found["skipped"] == {"intended class, classifier score": "no row has a label"}
    plain = GAN(vectors("left"), 4, width=8)
    found = evaluate(plain, {"left": data["left"]}, labels).figures
    assert (
        "intended" in found["quality"]["left, real half"] and "classifier_score" in found["quality"]["left, generated"]
    )
    assert "intended" not in found["quality"]["left, generated"] and "intended class" in found["skipped"]
    found = evaluate(plain, {"left": data["left"][:10]}, [0] * 10).figures
    assert "quality" not in found
    assert "fewer than 8 of them, or 16 rows" in found["skipped"]["samples"] and "oracle of left" in found["skipped"]
    embedded = GAN(vectors("left"), 4, width=8, condition_dim=2)
    found = evaluate(embedded, {"left": data["left"]}).figures
    assert "hold no 'condition'" in found["skipped"]["samples"]
    given = {"left": data["left"], "condition": torch.randn(100, 2), "mask": {"left": torch.arange(100) > 9}}
    assert evaluate(embedded, given, labels).figures["quality"]["left, generated"]["rows"] == 22


def test_a_cyclegan(cyclegan):
    data, labels = corners(400, 1)
    data["mask"] = torch.stack([torch.arange(400) >= 100, torch.arange(400) < 300], 1)
    told = []
    report = evaluate(cyclegan, data, labels, progress=lambda *step: told.append(step))
    found = report.as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["cycle"]["left"]["rows"] == 300 and found["cycle"]["left"]["mse"] < 0.5
    back = cyclegan.cycle({"left": data["left"][100:]})["left"]
    assert found["cycle"]["left"]["mse"] == pytest.approx((back - data["left"][100:]).square().mean().item(), rel=1e-4)
    assert found["translation"]["left from right"]["accuracy"] > 0.9
    assert set(found["quality"]) == {"left, from right", "left, real half", "right, from left", "right, real half"}
    assert found["quality"]["left, from right"]["intended"] > 0.85
    assert "skipped" not in found and "There and back again" in report.as_markdown()
    assert [done for _, done, _ in told] == list(range(6))
    found = evaluate(cyclegan, data).figures
    assert found["skipped"] == {"translation accuracy, classifier score": "no row has a label"}
    assert "translation" not in found and found["quality"]["left, real half"]["features"] == "3 principal components"
    found = evaluate(cyclegan, {"left": data["left"][100:]}, labels[100:]).figures
    assert set(found["cycle"]) == {"left"} and "translation" not in found
    assert "samples of left" in found["skipped"]
    assert set(cycle_errors(cyclegan, {"right": data["right"]})) == {"right"}


# --- all of them ------------------------------------------------------------------------------------------------------


class Labelled(Dataset):
    def __init__(self, data, labels):
        self.data, self.labels = data, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        row = {name: x[i] for name, x in self.data.items()}
        return {**row, "label": int(self.labels[i])}


def test_labels_come_with_the_data_of_a_system(classifier, cyclegan):
    data, labels = corners(40, 1)
    for system in (classifier, cyclegan):
        for given in ({**data, "label": labels}, Labelled(data, labels)):
            assert torch.equal(Rows.of(system, given).labels, labels)
    with pytest.raises(ValueError, match="label"):  # a model has no use for it
        evaluate(classifier.model, {**data, "label": labels})


def test_bad_input(classifier, gan, cyclegan):
    data, labels = corners(40, 1)
    for system in (classifier, cyclegan):
        with pytest.raises(ValueError, match=r"labels has shape \[39\], expected \[N\] = \[40\]"):
            evaluate(system, data, labels[1:])
        with pytest.raises(ValueError, match="prior is given"):
            evaluate(system, data, labels, prior=torch.distributions.Normal(0, 1))
    with pytest.raises(ValueError, match="labels holds 3, expected 0 to 2"):
        evaluate(classifier, data, labels + 1)
    with pytest.raises(ValueError, match="labels holds 3, expected 0 to 2, the GAN's classes"):
        evaluate(gan, {"left": data["left"]}, labels + 1)
    with pytest.raises(ValueError, match="judged by the labels alone"):
        evaluate(classifier, data, labels, train=(data, labels))
    with pytest.raises(ValueError, match="judges names the modality 'x'"):
        evaluate(gan, {"left": data["left"]}, labels, judges={"x": lambda x: x})
    with pytest.raises(ValueError, match="generated is 0, expected 1 or more"):
        evaluate(gan, {"left": data["left"]}, generated=0)
    with pytest.raises(ValueError, match="condition has 3 rows, expected 40"):
        evaluate(gan, {"left": data["left"], "condition": torch.zeros(3, 2)})
    with pytest.raises(TypeError, match="model is a Linear, expected a MultimodalVAE, FusionClassifier, GAN or Cycle"):
        evaluate(torch.nn.Linear(1, 1), data)


@pytest.mark.parametrize("kind", ["classifier", "gan", "cyclegan"])
def test_a_folder(kind, request, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the 'plots' extra")
    system = request.getfixturevalue(kind)
    data, labels = corners(60, 1)
    data = {name: data[name] for name in system.modalities}
    history = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5, "val_loss": 0.6}]
    expected = {
        "classifier": {"confusion.png", "latents.png"},
        "gan": {"samples.png"},
        "cyclegan": {"translations_left.png", "translations_right.png"},
    }[kind]
    report = evaluate(system, data, labels)
    written = write_report(tmp_path / "report", report, system, data, labels, history=history)
    assert {path.name for path in written} == expected | {"training.png", "report.json", "report.md"}
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == sorted(p.name for p in written)  # no leftovers
    assert json.loads((tmp_path / "report/report.json").read_text()) == report.as_dict()
    page = (tmp_path / "report/report.md").read_text()
    assert all(f"({name})" in page for name in expected)
    without = write_report(tmp_path / "plain", evaluate(system, data), system, data)
    assert {path.suffix for path in without} >= {".json", ".md"} and "confusion.png" not in {p.name for p in without}
