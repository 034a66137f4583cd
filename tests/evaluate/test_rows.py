"""Gathering data and choosing subsets: every way to say what is missing, and what cannot be."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")

from mmvae_fast.evaluate import Rows, choose_subsets, generate, latents, samples
from mmvae_fast.evaluate.rows import judged, targets
from mmvae_fast.modalities import Text, Vector
from mmvae_fast.models import CVAE, MVAE, MMVAEPlus


def make(cls=MVAE, **options):
    torch.manual_seed(0)
    return cls({"a": Vector(3, hidden=(4,)), "b": Text(5, 2, hidden=(4,)), "c": Vector(2, hidden=(4,))}, 2, **options)


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(6, 3, generator=g), torch.randint(0, 5, (6, 2), generator=g)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    return {"a": torch.where(mask[:, :1], a, torch.nan), "b": b, "c": torch.randn(6, 2, generator=g), "mask": mask}


class AsDataset(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data["mask"])

    def __getitem__(self, i):
        observed = self.data["mask"][i].tolist()
        return {name: self.data[name][i] for name, there in zip("abc", observed, strict=True) if there}


def test_tensors_and_datasets_give_the_same_rows(data):
    rows, others = Rows.of(make(), data), Rows.of(make(), AsDataset(data))
    assert torch.equal(rows.mask, data["mask"]) and torch.equal(others.mask, data["mask"])
    for name in "abc":
        there = rows.observed(name)
        assert torch.equal(rows.data[name][there], others.data[name][there])
        assert not rows.data[name][~there].any()  # NaN is gone
    assert rows.having(["a", "b"]).tolist() == [0, 3, 5]
    assert data["a"].isnan().any()  # the caller's own is as it was


def test_labels_are_checked_and_unknown_ones_left_out(data):
    rows = Rows.of(make(), data, np.array([0, -1, 2, 2, 1, -1]))
    known = rows.with_known_label()
    assert known.labels.tolist() == [0, 2, 2, 1]
    assert torch.equal(known.mask, data["mask"][[0, 2, 3, 4]])
    first, second = known.halves(seed=3)
    assert len(first) == len(second) == 2
    assert sorted(first.labels.tolist() + second.labels.tolist()) == [0, 1, 2, 2]
    with pytest.raises(ValueError, match=r"labels has shape \[5\], expected \[N\] = \[6\]"):
        rows.labelled([0] * 5)
    with pytest.raises(TypeError, match="labels is torch.float32, expected whole numbers"):
        rows.labelled([0.5] * 6)
    with pytest.raises(ValueError, match="labels holds -2"):
        rows.labelled([-2] * 6)
    with pytest.raises(ValueError, match="labels is None"):
        Rows.of(make(), data).with_known_label()


def test_bad_data_says_what_it_is(data):
    with pytest.raises(ValueError, match="data: batch names the modality 'd'"):
        Rows.of(make(), {"d": data["a"]})
    with pytest.raises(ValueError, match="data: modality 'a': holds NaN"):
        Rows.of(make(), {"a": data["a"]})


def test_subsets():
    model = make()
    everything = choose_subsets(model)
    assert len(everything) == 7 and everything[0] == ("a",) and everything[-1] == ("a", "b", "c")
    assert choose_subsets(model, [["c", "a"], ("a", "c"), "b"]) == [("a", "c"), ("b",)]
    for bad in ([["d"]], [[]], [], "some"):
        with pytest.raises(ValueError, match="subsets"):
            choose_subsets(model, bad)


def test_what_is_always_given_is_in_every_subset():
    model = make(CVAE, condition=["c"])
    assert targets(model) == ["a", "b"]
    assert choose_subsets(model) == [("a", "c"), ("b", "c"), ("c",), ("a", "b", "c")]


def test_the_mode_of_every_part_comes_back():
    model = make()
    model.encoders["a"].eval()
    before = [part.training for part in model.modules()]
    with judged(model):
        assert not any(part.training for part in model.modules())
        assert not model.encode({"c": torch.zeros(1, 2)}).mu.requires_grad
    assert [part.training for part in model.modules()] == before


def test_latents_are_the_posteriors_point_whatever_the_batch_size(data):
    model = make()
    rows = Rows.of(model, data)
    shown = rows.take(rows.having(["b"]))
    expected = model.encode({"b": shown.data["b"]}).point
    torch.testing.assert_close(latents(model, shown, ["b"], batch_size=3), expected)


def test_generated_samples_do_not_depend_on_the_batch_size(data):
    model = make(MMVAEPlus, private_dim=3)
    rows = Rows.of(model, data)
    shown = rows.take(rows.having(["a"]))
    whole, parts = (generate(model, shown, ["a"], ["a", "c"], seed=1, batch_size=size) for size in (100, 3))
    torch.testing.assert_close(parts, whole)
    whole, parts = (samples(model, 7, seed=1, batch_size=size) for size in (100, 3))
    torch.testing.assert_close(parts, whole)


def test_generated_samples_draw_private_latents_too(data):
    model = make(MMVAEPlus, private_dim=3)
    rows = Rows.of(model, data)
    shown = rows.take(rows.having(["a"]))
    first = generate(model, shown, ["a"], ["a", "c"], seed=1)
    assert first["a"].shape == (4, 3) and first["c"].shape == (4, 2)
    for name in ("a", "c"):
        assert torch.equal(first[name], generate(model, shown, ["a"], ["a", "c"], seed=1)[name])
        assert not torch.equal(first[name], generate(model, shown, ["a"], ["a", "c"], seed=2)[name])
    with torch.no_grad():  # blind to the shared latent: what still differs is the private one
        weight = next(model.decoders["c"].parameters())
        weight[:, :2] = 0
    assert not torch.equal(
        generate(model, shown, ["a"], ["c"], seed=1)["c"], generate(model, shown, ["a"], ["c"], seed=2)["c"]
    )
