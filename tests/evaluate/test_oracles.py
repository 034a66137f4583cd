"""Oracles of every kind learn what they should, and say what they cannot."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs the 'evaluate' extra")

from mmvae_fast.evaluate import fit_oracle
from mmvae_fast.modalities import Audio, Image, Text, Vector

LABELS = torch.arange(150) % 3 + 4  # classes need not begin with 0


def samples(modality, seed):
    g = torch.Generator().manual_seed(seed)
    if not modality.dtype.is_floating_point:
        ids = torch.randint(6, 9, (150, *modality.shape), generator=g)  # words of no class
        ids[torch.arange(150), torch.randint(0, modality.length, (150,), generator=g)] = LABELS - 2  # one of its own
        return ids
    centres = torch.randn(3, *modality.shape, generator=torch.Generator().manual_seed(9))
    return centres[LABELS - 4] + 0.5 * torch.randn(150, *modality.shape, generator=g)


MODALITIES = {
    "image": Image((1, 16, 16), likelihood="normal"),
    "text": Text(9, 5),
    "audio": Audio((13, 12)),
    "vector": Vector(8),
}


@pytest.mark.parametrize("kind", ["svc", "logistic", "network"])
@pytest.mark.parametrize("name", MODALITIES)
def test_tells_the_classes_of_unseen_samples(name, kind):
    modality = MODALITIES[name]
    before = torch.get_rng_state(), np.random.get_state()[1:3]  # noqa: NPY002
    oracle = fit_oracle(modality, samples(modality, 0), LABELS, kind=kind)
    assert torch.equal(before[0], torch.get_rng_state())
    after = np.random.get_state()[1:3]  # noqa: NPY002
    assert np.array_equal(before[1][0], after[0]) and before[1][1] == after[1]
    x = samples(modality, 1)
    assert oracle.kind == kind and oracle.classes.tolist() == [4, 5, 6]
    assert oracle.accuracy(x, LABELS) > 0.9
    assert oracle.accuracy(x, LABELS.roll(1)) < 0.1
    probabilities, features = oracle.probabilities(x), oracle.features(x)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert probabilities.shape == (150, 3) and len(features) == 150 and features.ndim == 2
    assert oracle(x[:0]).shape == (0,)
    again = fit_oracle(modality, samples(modality, 0), LABELS, kind=kind)
    np.testing.assert_allclose(again.probabilities(x), probabilities, rtol=1e-5, atol=1e-6)


def test_kind_follows_the_size_and_the_rarest_class():
    x, modality = samples(MODALITIES["vector"], 0), MODALITIES["vector"]
    assert fit_oracle(modality, x, LABELS).kind == "svc"
    rare = LABELS.clone()
    rare[0] = 9
    assert fit_oracle(modality, x, rare).kind == "network"
    with pytest.raises(ValueError, match="class 9 has 1 rows, expected 3 or more for kind='svc'"):
        fit_oracle(modality, x, rare, kind="svc")


def test_unknown_labels_and_broken_rows_are_left_out():
    x, labels = samples(MODALITIES["vector"], 0), LABELS.clone()
    x[:3], labels[3:6] = torch.nan, -1
    oracle = fit_oracle(MODALITIES["vector"], x, labels)
    assert oracle.classes.tolist() == [4, 5, 6]
    assert oracle.accuracy(samples(MODALITIES["vector"], 1), LABELS) > 0.9


def test_bad_input():
    x, modality = samples(MODALITIES["vector"], 0), MODALITIES["vector"]
    with pytest.raises(ValueError, match=r"classes \[4\], expected two or more"):
        fit_oracle(modality, x, torch.full((150,), 4))
    with pytest.raises(ValueError, match="kind is 'forest'"):
        fit_oracle(modality, x, LABELS, kind="forest")
    with pytest.raises(ValueError, match=r"labels has shape \[3\]"):
        fit_oracle(modality, x, LABELS[:3])
    with pytest.raises(ValueError, match=r"got shape \[150, 8\], expected \[B, 7\]"):
        fit_oracle(Vector(7), x, LABELS)
