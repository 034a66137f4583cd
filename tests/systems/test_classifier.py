"""The fusion classifier learns from labelled, unlabelled and incomplete rows."""

from __future__ import annotations

import pytest
import torch

from mmvae_fast.modalities import Image
from mmvae_fast.models.seeds import branch
from mmvae_fast.systems import FusionClassifier, System, fit

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN, TEST = slice(0, 1400), slice(1400, None)


def make(modalities, seed=0, **options):
    torch.manual_seed(seed)
    return FusionClassifier(modalities, WORDS, 16, **{"hidden": (64,), **options})


def accuracy(classifier, data, labels, mask=None):
    return (classifier.eval().predict(data, mask) == labels).float().mean().item()


def part(data, rows):
    return {name: x[rows].clone() for name, x in data.items()}


@pytest.fixture(scope="module")
def trained(halves):
    data, labels = halves
    classifier = make({name: Image((1, 4, 8), hidden=(64,)) for name in data}, lr=3e-3)
    train = {**part(data, TRAIN), "label": labels[TRAIN]}
    validation = {**part(data, TEST), "label": labels[TEST]}
    history = fit(classifier, train, validation=validation, epochs=12, progress=False)
    return classifier.eval(), history


def test_it_learns_and_does_without_a_branch(trained, halves):
    classifier, history = trained
    data, labels = part(halves[0], TEST), halves[1][TEST]
    assert history[-1]["val_accuracy"] == pytest.approx(accuracy(classifier, data, labels))
    assert history[-1]["generative"] < history[0]["generative"]
    both = accuracy(classifier, data, labels)
    assert both > 0.87
    for i, name in enumerate(data):
        alone = accuracy(classifier, {name: data[name]}, labels)
        assert 0.6 < alone < both
        mask = torch.zeros(len(labels), 2, dtype=torch.bool)
        mask[:, i] = True
        broken = {n: x if n == name else torch.full_like(x, torch.nan) for n, x in data.items()}
        assert accuracy(classifier, broken, labels, mask) == alone


def test_answers(trained, halves):
    classifier, _ = trained
    data = part(halves[0], slice(1400, 1500))
    p = classifier.predict_proba(data)
    torch.testing.assert_close(p.sum(1), torch.ones(100))
    assert torch.equal(p.argmax(1), classifier.predict(data))
    assert classifier.classify(data) == [WORDS[i] for i in p.argmax(1)]
    assert classifier.encode(data).shape == (100, 16)
    nothing = classifier.predict_proba(data, torch.zeros(100, 2, dtype=torch.bool))
    assert torch.isfinite(nothing).all() and torch.equal(nothing[0], nothing[-1])


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_clusters(trained, halves, method):
    score = pytest.importorskip("sklearn.metrics").adjusted_rand_score
    classifier, _ = trained
    data, labels = part(halves[0], TEST), halves[1][TEST]
    found = classifier.cluster(data, method=method)
    assert score(labels.numpy(), found) > 0.3
    assert (classifier.cluster(data, method=method) == found).all()
    assert set(classifier.cluster(data, n_clusters=3, method=method)) == {0, 1, 2}


def test_unlabelled_rows_teach(halves, half_modalities):
    """With 40 labels, 1360 rows without one still lower the VAE's loss, and the classifier learns from the 40."""
    data, labels = halves
    few = torch.where(torch.arange(1400) < 40, labels[TRAIN], -1)
    classifier = make(half_modalities, lr=3e-3)
    history = fit(classifier, {**part(data, TRAIN), "label": few}, epochs=8, progress=False)
    assert history[-1]["generative"] < 0.9 * history[0]["generative"]
    assert accuracy(classifier, part(data, TEST), labels[TEST]) > 0.3
    nobody = make(half_modalities)
    history = fit(nobody, {**part(data, slice(0, 200)), "label": torch.full((200,), -1)}, epochs=1, progress=False)
    assert set(history[0]) == {"epoch", "loss", "consistency", "confident", "generative"}
    assert fit(nobody, part(data, slice(0, 200)), epochs=1, progress=False) is not None  # no labels at all


def test_unlabelled_rows_teach_each_modality_alone(halves, half_modalities):
    """What the head makes of both halves of unlabelled rows, it learns to make of one."""
    data, labels = halves
    few = torch.where(torch.arange(1400) < 140, labels[TRAIN], -1)
    split = torch.arange(397) % 2 == 0
    found = {}
    for weight in (0.0, 1.0):
        classifier = make(half_modalities, lr=3e-3, consistency_weight=weight)
        history = fit(classifier, {**part(data, TRAIN), "label": few}, epochs=12, progress=False)
        assert ("consistency" in history[0]) == (weight > 0)
        found[weight] = accuracy(classifier, part(data, TEST), labels[TEST], torch.stack([split, ~split], 1))
    assert history[0]["confident"] < history[-1]["confident"] <= 1
    assert found[1.0] > found[0.0] + 0.02


def test_the_consistency_is_what_it_says(halves, half_modalities):
    """-log p(c | part), where c is sure given all, over the rows without a label that lost something; it teaches the
    answer given less, not the one given all."""
    data = part(halves[0], slice(0, 64))
    classifier = make(half_modalities, consistency_weight=0.5, generative_weight=0.0)
    mask = torch.ones(64, 2, dtype=torch.bool)
    mask[:8, 1] = False  # has one alone: nothing can be left out
    classifier.confidence = float(classifier.predict_proba(data, mask).amax(1).median())
    loss, sums = classifier._losses({**data, "mask": mask}, seed=3)
    kept = classifier._dropout(mask, branch(torch.tensor([3]), 1))
    assert kept.any(1).all() and not (kept & ~mask).any()
    lost = (kept != mask).any(1)
    assert 36 < lost.sum() <= 56  # three in four
    teacher, student = classifier.predict_proba(data, mask)[lost], classifier.predict_proba(data, kept)[lost]
    top, c = teacher.max(1)
    sure = top >= classifier.confidence
    assert 0 < sure.sum() < len(sure)
    expected = -(student.gather(1, c[:, None])[:, 0].log() * sure).sum() / len(sure)
    torch.testing.assert_close(loss, 0.5 * expected)
    assert sums["confident"] == (sure.sum(), len(sure))
    # a row that has no part less than all of it teaches nothing
    loss, sums = classifier._losses({**data, "mask": torch.tensor([[True, False]]).expand(64, 2)}, seed=3)
    assert loss == 0 and sums["consistency"][1] == 0
    nothing = torch.zeros(64, 2, dtype=torch.bool)
    assert torch.equal(classifier._dropout(nothing, torch.tensor([3])), nothing)


def test_missing_rows_and_labels_change_nothing(halves, half_modalities):
    """What stands in masked places is not looked at; an unlabelled row's other label neither."""
    data, labels = part(halves[0], slice(0, 64)), halves[1][:64].clone()
    mask = torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) < 0.6
    results = []
    for filler in (0.5, torch.nan):
        torch.manual_seed(0)
        filled = {n: torch.where(mask[:, i, None, None, None], x, filler) for i, (n, x) in enumerate(data.items())}
        classifier = make(half_modalities, modality_dropout=0.3)
        loss, sums = classifier._losses({**filled, "mask": mask, "label": labels}, seed=3)
        loss.backward()
        results.append([loss, *(p.grad for p in classifier.parameters() if p.grad is not None)])
        assert sums["accuracy"][1] == 64
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()


def test_the_loss_is_what_it_says(halves, half_modalities):
    data, labels = part(halves[0], slice(0, 8)), halves[1][:8].clone()
    labels[::2] = -1
    classifier = make(half_modalities, generative_weight=0.5).eval()
    loss, _ = classifier._losses({**data, "label": labels}, seed=4)
    p = classifier.predict_proba(data)
    entropy = -torch.stack([p[i, labels[i]].log() for i in range(1, 8, 2)]).mean()
    generative = classifier.model(data, seed=torch.tensor([4])).loss
    torch.testing.assert_close(loss, entropy + 0.5 / 64 * generative)
    plain = make(half_modalities, generative_weight=0.0).eval()
    loss, sums = plain._losses({**data, "label": labels}, seed=4)
    loss.backward()
    assert "generative" not in sums and all(p.grad is None for p in plain.model.decoders.parameters())
    assert plain.encode(data).shape == (8, 32)


def test_the_reported_loss_is_that_of_the_rows_not_of_the_batches(halves, half_modalities):
    """Ten labelled rows of 64, which fall unevenly into batches: what is reported of them is the same."""
    data, labels = part(halves[0], slice(0, 64)), torch.full((64,), -1)
    labels[:10] = halves[1][:10]
    found = {}
    for batch_size in (4, 16, 64):
        # nothing trains and the autoencoder draws no noise, so that the batches are all that differs
        classifier = make(half_modalities, model="Autoencoder", lr=1e-12, generative_weight=0.5, modality_dropout=0.0)
        held_out = {**data, "label": labels}
        record = fit(
            classifier, held_out, validation=held_out, epochs=1, batch_size=batch_size, progress=False
        )[0]  # fmt: skip
        found[batch_size] = record
        parts = record["val_cross_entropy"] + 0.5 / 64 * record["val_generative"]
        assert record["val_loss"] == pytest.approx(parts)
    for name in ("loss", "val_loss"):
        assert found[4][name] == pytest.approx(found[64][name], rel=1e-5), name
        assert found[16][name] == pytest.approx(found[64][name], rel=1e-5), name


@pytest.mark.parametrize("model", ["MoPoE", "JMVAE", "Autoencoder"])
def test_the_vae_s_own_modality_dropout(model, halves, half_modalities):
    """It hides from the VAE in training what a call of the VAE hides, and nothing in evaluation."""
    data = part(halves[0], slice(0, 64))
    dropping = make(half_modalities, model=model, model_options={"modality_dropout": 0.6}, modality_dropout=0.0)
    seeing = make(half_modalities, model=model, modality_dropout=0.0)
    assert all(torch.equal(a, b) for a, b in zip(dropping.parameters(), seeing.parameters(), strict=True))

    def generative(classifier):
        total, rows = classifier._losses(data, seed=3)[1]["generative"]
        return total / rows

    expected = dropping.model(data, seed=torch.tensor([3])).loss
    torch.testing.assert_close(generative(dropping), expected)
    assert not torch.allclose(generative(dropping), generative(seeing))
    assert torch.equal(generative(dropping.eval()), generative(seeing.eval()))


@pytest.mark.parametrize("model", ["MVAE", "MMVAE", "JMVAE", "Nexus", "MHVAE", "MMVAEPlus", "Autoencoder"])
def test_any_model_of_one_stage(model, halves, half_modalities, tmp_path):
    data = {**part(halves[0], slice(0, 40)), "label": halves[1][:40]}
    classifier = make(half_modalities, model=model)
    fit(classifier, data, epochs=1, batch_size=16, out=tmp_path, progress=False)
    again = System.load(tmp_path / "last")
    inputs = part(halves[0], slice(0, 40))
    assert torch.equal(again.predict_proba(inputs), classifier.eval().predict_proba(inputs))
    assert again.encode({"top": inputs["top"]}).shape[0] == 40


def test_bad_input(halves, half_modalities):
    data, labels = part(halves[0], slice(0, 20)), halves[1][:20]
    for classes in (1, "digits", ["a", "a"], [1, 2]):
        with pytest.raises(ValueError, match="classes is"):
            FusionClassifier(half_modalities, classes)
    with pytest.raises(ValueError, match="model is 'GAN', expected one of"):
        make(half_modalities, model="GAN")
    with pytest.raises(ValueError, match="trains in 2 stages"):
        make(half_modalities, model="TELBO")
    with pytest.raises(ValueError, match="'label' is reserved"):
        FusionClassifier({"label": Image((1, 8, 8))}, 2)
    for wrong in (1.0, -3):
        with pytest.raises(ValueError, match=f"modality_dropout is {wrong}, expected 0 to below 1"):
            make(half_modalities, modality_dropout=wrong)
    with pytest.raises(ValueError, match=r"confidence is 1.5, expected a probability"):
        make(half_modalities, confidence=1.5)
    with pytest.raises(ValueError, match="consistency_weight is -1, expected a finite number"):
        make(half_modalities, consistency_weight=-1)
    classifier = make(half_modalities)
    for wrong in (labels.float(), labels[:10], labels + 5, labels - 2):
        with pytest.raises(ValueError, match=r"data: label (is|holds) .* expected"):
            fit(classifier, {**data, "label": wrong}, epochs=1, progress=False)
    with pytest.raises(ValueError, match="n_clusters is 21, expected 1 to 20"):
        classifier.cluster(data, n_clusters=21)
    with pytest.raises(ValueError, match=r"cluster: seed is -1, expected an integer from 0"):
        classifier.cluster(data, seed=-1)
    with pytest.raises(ValueError, match="lr is 0, expected a finite number above 0"):
        make(half_modalities, lr=0)
    with pytest.raises(ValueError, match="method is 'dbscan'"):
        classifier.cluster(data, method="dbscan")
