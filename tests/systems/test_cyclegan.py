"""CycleGAN learns a translation; which one, only pairs can say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Audio, BagOfWords, Image, Text, Vector
from mmvae_fast.systems import CycleGAN, System, fit

FAST = {"lr_generator": 1e-3, "lr_discriminator": 2e-3, "ema": 0.95, "width": 8}


def make(modalities, seed=0, **options):
    torch.manual_seed(seed)
    return CycleGAN(modalities, **{**FAST, **options})


def points(rows, seed):
    """Around the eight corners of a cube, b = a turned over and shifted: [rows, 3] both."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 2, (rows, 3), generator=g) * 2.0 - 1 + 0.1 * torch.randn(rows, 3, generator=g)
    return a, -a + 3


def test_it_goes_there_and_back_without_pairs():
    """Rows shuffled apart: translations land where the other set is, and come back to where they were."""
    a, b = points(768, 0)
    data = {"a": a, "b": b[torch.randperm(768, generator=torch.Generator().manual_seed(1))]}
    cycle = make({"a": Vector(3), "b": Vector(3)}, cycle_weight=2.0, identity_weight=0.0, lr_discriminator=4e-3)
    history = fit(cycle, data, epochs=15, progress=False)
    assert {"generator_loss", "discriminator_loss", "adversarial", "cycle"} < set(history[-1])
    assert "paired" not in history[-1] and history[-1]["cycle"] < 0.5 * history[0]["cycle"]
    back = cycle.cycle({"a": a})["a"]
    assert float((back - a).abs().mean()) < 0.3
    translated = cycle.translate({"a": a}, "b")
    assert float((translated.mean(0) - b.mean(0)).norm()) < 0.6


def test_pairs_say_which_is_which():
    a, b = points(512, 0)
    cycle = make({"a": Vector(3), "b": Vector(3)}, paired_weight=10.0, identity_weight=0.0)
    mask = torch.stack([torch.arange(512) % 4 != 1, torch.arange(512) % 4 != 2], 1)  # half of the rows have both
    history = fit(cycle, {"a": a, "b": b, "mask": mask}, epochs=15, progress=False)
    assert history[-1]["paired"] < 0.5 * history[0]["paired"]
    new_a, new_b = points(100, 9)
    assert float((cycle.translate({"a": new_a}, "b") - new_b).abs().mean()) < 0.4
    assert float((cycle.translate({"b": new_b}, "a") - new_a).abs().mean()) < 0.4


def test_missing_rows_are_left_out():
    a, b = points(12, 0)
    mask = torch.ones(12, 2, dtype=torch.bool)
    mask[:3, 0] = mask[9:, 1] = False
    states = []
    for filler in (0.0, torch.nan):
        cycle = make({"a": Vector(3), "b": Vector(3)}, paired_weight=1.0)
        data = {"a": torch.where(mask[:, :1], a, filler), "b": torch.where(mask[:, 1:], b, filler), "mask": mask}
        sums = cycle.step(data, cycle.optimizer(), seed=1)
        assert sums["paired"][1] == 6 and sums["cycle"][1] == 12
        states.append(cycle.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(states[0].values(), states[1].values(), strict=True))
    mask[:, 0] = False
    assert cycle.step({"a": a, "b": b, "mask": mask}, cycle.optimizer(), seed=1) == {}


@pytest.mark.parametrize("kind", ["tensor", "dict"])
def test_each_side_draws_from_the_rows_that_have_it(kind):
    """Two sets one below the other, in batches of one row: never both in one, and yet every step has both."""
    a, b = points(10, 0)
    mask = torch.zeros(10, 2, dtype=torch.bool)
    mask[:8, 0] = mask[8:, 1] = True
    given = mask if kind == "tensor" else {"a": mask[:, 0], "b": mask[:, 1]}
    data = {"a": torch.where(mask[:, :1], a, torch.nan), "b": torch.where(mask[:, 1:], b, torch.nan), "mask": given}
    cycle = make({"a": Vector(3), "b": Vector(3)}, paired_weight=1.0)
    seen, step = [], cycle.step
    cycle.step = lambda batch, *rest: seen.append(batch) or step(batch, *rest)
    (record,) = fit(cycle, data, epochs=1, batch_size=1, progress=False)
    assert len(seen) == 10 and "paired" not in record
    for batch in seen:
        assert [int(batch["mask"][name].sum()) for name in "ab"] == [1, 1]
    drawn = torch.cat([batch["b"][batch["mask"]["b"]] for batch in seen])
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in b[8:].tolist()}
    whole = {"a": a, "b": b, "mask": torch.ones(10, 2, dtype=torch.bool)}
    assert cycle.complete(whole, whole, 0) is whole


def test_the_terms_by_hand():
    """One step with networks that are known: b = 2a there, a = b back."""

    def linear(factor):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, factor)
        return layer

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Parameter(torch.tensor(0.25))

        def forward(self, x):
            return self.score.expand(len(x))

    networks = {"to_b": linear(2.0), "to_a": linear(1.0), "judge_a": Constant(), "judge_b": Constant()}
    cycle = make(
        # a Laplace distribution of scale 1/2: -log p is twice the distance
        {name: Vector(1, likelihood="laplace", scale=0.5) for name in "ab"},
        cycle_weight=4.0,
        paired_weight=3.0,
        networks=networks,
        spectral_norm=False,
    )
    assert cycle.identity_weight == 2.0
    a, b = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [5.0]])
    sums = {name: value.item() / n for name, (value, n) in cycle.step({"a": a, "b": b}, cycle.optimizer(), 0).items()}
    adversarial = 2 * 0.5 * 0.75**2
    round_trip = 2 * ((1 + 3) / 2 + (1 + 5) / 2)  # |2a - a|, |2b - b|
    identity = 2 * ((1 + 5) / 2 + 0)  # |2b - b|, |a - a|
    paired = 2 * ((1 + 1) / 2 + (0 + 2) / 2)  # |2a - b|, |b - a|
    assert sums["adversarial"] == pytest.approx(adversarial) and sums["cycle"] == pytest.approx(round_trip)
    assert sums["identity"] == pytest.approx(identity) and sums["paired"] == pytest.approx(paired)
    assert sums["generator_loss"] == pytest.approx(adversarial + 4 * round_trip + 2 * identity + 3 * paired)
    assert sums["discriminator_loss"] == pytest.approx(2 * 0.5 * (0.75**2 + 0.25**2))


def test_spaces_of_different_shapes(tmp_path):
    modalities = {"image": Image((1, 16, 16)), "sound": Audio((16, 20))}
    cycle = make(modalities, paired_weight=1.0)
    assert cycle.identity_weight == 0
    data = {"image": torch.rand(6, 1, 16, 16), "sound": torch.rand(6, 16, 20)}
    history = fit(cycle, data, epochs=1, batch_size=5, out=tmp_path, progress=False)  # a last batch of one row
    assert "identity" not in history[0]
    again = System.load(tmp_path / "last")
    sound = again.translate({"image": data["image"]}, "sound")
    assert sound.shape == (6, 16, 20) and torch.equal(sound, cycle.translate({"image": data["image"]}, "sound"))
    names = {p.name for p in (tmp_path / "samples").iterdir()}
    stems = ("image", "image_to_sound", "sound", "sound_to_image")
    assert names == {f"epoch-0001-{s}.{e}" for s in stems for e in ("npy", "png")}


def test_bad_input():
    two = {"a": Vector(3), "b": Vector(4)}
    with pytest.raises(ValueError, match="expected exactly two"):
        CycleGAN({"a": Vector(3)})
    with pytest.raises(ValueError, match="discrete"):
        CycleGAN({"a": Vector(3), "b": Text(5, 3)})
    with pytest.raises(ValueError, match=r"CycleGAN: modality 'b' \(BagOfWords\)"):
        CycleGAN({"a": Vector(3), "b": BagOfWords(["x", "y"])})
    for options, message in [
        ({"ema": 2.0}, "ema is 2.0"),
        ({"lr_generator": 0}, "lr_generator is 0"),
        ({"betas": (0.5,)}, "betas is"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(two, **options)
    with pytest.raises(ValueError, match=r"identity_weight is 1.0, but the shapes"):
        CycleGAN(two, identity_weight=1.0)
    with pytest.raises(ValueError, match="history is -1"):
        CycleGAN(two, history=-1)
    cycle = make(two)
    with pytest.raises(ValueError, match="to is 'c'"):
        cycle.translate({"a": torch.zeros(2, 3)}, "c")
    with pytest.raises(ValueError, match="expected 'a' to translate to 'b'"):
        cycle.translate({"b": torch.zeros(2, 4)}, "b")
    with pytest.raises(ValueError, match=r"got shape \[2, 4\], expected \[B, 3\]"):
        cycle.translate({"a": torch.zeros(2, 4)}, "b")
    with pytest.raises(ValueError, match="modality 'b' is in no row"):
        fit(cycle, {"a": torch.zeros(4, 3)}, epochs=1, progress=False)
