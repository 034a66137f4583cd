"""Clusters and probes of latents with known answers."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs the 'evaluate' extra")
pytest.importorskip("scipy", reason="needs the 'evaluate' extra")

from mmvae_fast.evaluate import clustering, linear_probe, matched_accuracy

LABELS = torch.arange(120) % 3
NOISE = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
APART = 10 * torch.eye(3, 4)[LABELS] + 0.3 * NOISE


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_separate_classes_are_found_and_noise_is_not(method):
    found = clustering(APART, LABELS, method=method)
    assert found == (pytest.approx(1.0), pytest.approx(1.0), 1.0, 3, 120)
    nothing = clustering(NOISE, LABELS, method=method)
    assert abs(nothing.ari) < 0.1 and nothing.nmi < 0.15 and nothing.accuracy < 0.55


def test_rows_without_a_label_are_left_out():
    labels = torch.where(LABELS == 2, -1, LABELS)
    found = clustering(APART.numpy(), labels)
    assert (found.clusters, found.rows) == (2, 80) and found.ari == pytest.approx(1.0)


def test_matching_is_one_to_one():
    assert matched_accuracy([0, 0, 1, 1], [5, 5, 2, 2]) == 1.0
    assert matched_accuracy([0, 0, 0, 1], [0, 0, 0, 0]) == 0.75
    assert matched_accuracy([0, 0, 0, 0], [1, 1, 1, 2]) == 0.75  # the second cluster has no class
    assert matched_accuracy([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 2]) == pytest.approx(4 / 6)


def test_probe_reads_what_is_linear_and_nothing_else():
    found = linear_probe(APART, LABELS)
    assert found == (1.0, pytest.approx(1 / 3), 120)
    assert linear_probe(NOISE, LABELS).accuracy < 0.5
    angle = torch.linspace(0, 6.28, 120)
    ring = torch.stack([angle.cos(), angle.sin()], 1) * (1 + 3 * (LABELS == 1))[:, None]
    assert linear_probe(ring, (LABELS == 1).long()).accuracy < 0.75  # a ring in a ring


def test_probe_on_a_test_set():
    assert linear_probe(APART[:60], LABELS[:60], test=(APART[60:], LABELS[60:])) == (1.0, pytest.approx(1 / 3), 60)
    assert linear_probe(APART[:60], LABELS[:60], test=(APART[60:], LABELS[60:].roll(1))).accuracy == 0.0


def test_bad_input():
    with pytest.raises(ValueError, match="method is 'dbscan'"):
        clustering(APART, LABELS, method="dbscan")
    with pytest.raises(ValueError, match="n_clusters is 121"):
        clustering(APART, LABELS, n_clusters=121)
    with pytest.raises(ValueError, match=r"labels has shape \[3\]"):
        clustering(APART, LABELS[:3])
    with pytest.raises(ValueError, match="no row has a label"):
        clustering(APART, torch.full((120,), -1))
    with pytest.raises(ValueError, match="finite values"):
        linear_probe(np.full((3, 2), np.nan), [0, 1, 0])
    with pytest.raises(ValueError, match=r"classes \[1\], expected two or more"):
        linear_probe(APART, torch.ones(120, dtype=torch.int64))
    with pytest.raises(ValueError, match="class 7 has one row"):
        linear_probe(APART, torch.cat([LABELS[:-1], torch.tensor([7])]))
