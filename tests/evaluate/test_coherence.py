"""Coherence of models that are known to be right, half right or blind; a sample is its class."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")

from mmvae_fast.evaluate import agreement, cross_coherence, joint_coherence
from mmvae_fast.modalities import Vector
from mmvae_fast.models import MVAE

LABELS = torch.arange(400) % 4
NAMES = ("a", "b", "c")
JUDGES = {name: lambda x: x[:, 0].round().long().numpy(force=True) for name in NAMES}
DATA = {name: LABELS[:, None].float() for name in NAMES}


class Echo(MVAE):
    """Decodes the class that the first modality it is shown holds, through ``distort``."""

    def __init__(self, distort):
        super().__init__({name: Vector(1, hidden=(2,)) for name in NAMES}, 2)
        self.distort = distort

    def reconstruct(self, batch, mask=None, to=None, *, seed=None):
        source, shown = next(iter(batch.items()))
        return {name: self.distort(shown, source, name) for name in to}

    def sample(self, n=None, *, seed=None, to=None, z=None, prior=None):
        shown = torch.arange(n)[:, None].float() % 4
        return {name: self.distort(shown, "prior", name) for name in NAMES}


def shuffled(x, source, target):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(len(source) + ord(target)))]


def test_a_perfect_model_scores_one_everywhere():
    found = cross_coherence(Echo(lambda x, source, target: x), DATA, JUDGES, LABELS, batch_size=64)
    assert list(found) == ["a", "b", "c", "a+b", "a+c", "b+c"]
    assert found["a"] == {"b": 1.0, "c": 1.0} and found["b+c"] == {"a": 1.0}
    assert joint_coherence(Echo(lambda x, source, target: x), JUDGES, n=300) == 1.0


def test_a_shuffled_model_scores_chance():
    found = cross_coherence(Echo(shuffled), DATA, JUDGES, LABELS, batch_size=400)
    assert all(0.15 < share < 0.35 for of in found.values() for share in of.values())
    assert joint_coherence(Echo(shuffled), JUDGES, n=256) == pytest.approx(1 / 16, abs=0.05)


def test_directions_are_not_confused():
    def half(x, source, target):
        return torch.where(x < 2, x, -1.0) if (source, target) == ("a", "c") else x

    found = cross_coherence(Echo(half), DATA, JUDGES, LABELS, subsets=[["a"], ["c"]])
    assert found == {"a": {"b": 1.0, "c": 0.5}, "c": {"a": 1.0, "b": 1.0}}


def test_rows_need_the_source_and_a_label_and_not_the_target():
    mask = {"a": LABELS != 0, "b": torch.zeros(400, dtype=torch.bool)}
    labels = torch.where(LABELS == 1, -1, LABELS)
    seen = []

    def judge(x):
        seen.append(len(x))
        return JUDGES["b"](x)

    data = {**DATA, "a": torch.where(mask["a"][:, None], DATA["a"], torch.nan), "mask": mask}
    found = cross_coherence(Echo(lambda x, source, target: x), data, {"b": judge}, labels)
    assert found == {"a": {"b": 1.0}, "c": {"b": 1.0}, "a+c": {"b": 1.0}}
    assert seen == [200, 256, 44, 200]


def test_sampled_decodes_draws_of_the_posterior():
    model = MVAE({name: Vector(1, hidden=(2,)) for name in NAMES}, 2)
    decoded = []

    def judge(x):
        decoded.append(x.clone())
        return np.zeros(len(x), int)

    for seed in (1, 1, 2):
        cross_coherence(model, DATA, {"b": judge}, LABELS, subsets=[["a"]], sampled=True, seed=seed)
    assert torch.equal(decoded[0], decoded[1]) and not torch.equal(decoded[0], decoded[2])


def test_agreement_needs_a_class():
    same = dict.fromkeys(NAMES, torch.full((5, 1), -1.0))
    assert agreement(same, JUDGES) == 0.0
    assert agreement(dict.fromkeys(NAMES, torch.ones(5, 1)), JUDGES) == 1.0


def test_bad_input():
    model = Echo(lambda x, source, target: x)
    with pytest.raises(ValueError, match="labels is None"):
        cross_coherence(model, DATA, JUDGES)
    with pytest.raises(ValueError, match="judges names the modality 'd'"):
        cross_coherence(model, DATA, {"d": JUDGES["a"]}, LABELS)
    with pytest.raises(ValueError, match=r"judges has none of the modalities"):
        joint_coherence(model, {})
    with pytest.raises(ValueError, match=r"the judge of modality 'b' gave shape \[1\], expected \[B\]"):
        cross_coherence(model, DATA, {"b": lambda x: np.zeros(1)}, LABELS)
    with pytest.raises(ValueError, match="n is 0, expected 1 or more"):
        joint_coherence(model, JUDGES, n=0)
