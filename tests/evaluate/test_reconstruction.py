"""Errors of predictions, against counting by hand."""

import pytest
import torch

pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")

from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from mmvae_fast.evaluate import reconstruction
from mmvae_fast.modalities import Image, Text, Vector
from mmvae_fast.models import MVAE

WORDS = ("red", "green")


class Fixed(MVAE):
    """Predicts what it was told to, whatever it is shown."""

    def reconstruct(self, batch, mask=None, to=None, *, seed=None):
        rows = len(next(iter(batch.values())))
        some = slice(self.seen, self.seen + rows)
        self.seen += rows
        return {name: self.answers[name][some] for name in to}


@pytest.fixture
def model():
    parts = {"image": Image((1, 12, 12), hidden=(3,)), "text": Text(WORDS, 3, hidden=(3,)), "v": Vector(2, hidden=(3,))}
    model = Fixed(parts, 2)
    g = torch.Generator().manual_seed(0)
    model.truth = {
        "image": torch.rand(5, 1, 12, 12, generator=g),
        "text": torch.tensor([[2, 0, 0], [3, 2, 0], [2, 3, 0], [2, 0, 0], [3, 3, 3]]),
        "v": torch.randn(5, 2, generator=g),
    }
    model.answers = {
        "image": torch.rand(5, 1, 12, 12, generator=g),
        "text": torch.tensor([[2, 0, 0], [3, 3, 0], [2, 0, 0], [2, 3, 0], [3, 3, 3]]),
        "v": model.truth["v"] + torch.tensor([2.0, -1.0]),
    }
    model.seen = 0
    return model


@pytest.mark.parametrize("batch_size", [2, 100])
def test_by_hand(model, batch_size):
    found = reconstruction(model, model.truth, subsets=[["v"]], batch_size=batch_size)["v"]
    assert found["v"] == {"rows": 5, "mse": pytest.approx(2.5), "mae": pytest.approx(1.5)}
    # places that are not padding in either: 1 of 1, 1 of 2, 1 of 2, 1 of 2, 3 of 3
    assert found["text"] == {"rows": 5, "accuracy": pytest.approx(7 / 10), "exact": pytest.approx(2 / 5)}
    truth, answers = model.truth["image"].double(), model.answers["image"].double()
    assert found["image"]["mse"] == pytest.approx((truth - answers).square().mean().item())
    assert found["image"]["ssim"] == pytest.approx(ssim(answers, truth, data_range=1.0).item())


def test_perfect_predictions_and_images_smaller_than_the_window():
    for size in (8, 3, 2):
        model = Fixed({"image": Image((3, size, size), likelihood="normal", hidden=(3,))}, 2)
        model.seen, model.answers = 0, {"image": torch.randn(4, 3, size, size)}
        found = reconstruction(model, model.answers)["image"]["image"]
        assert found["mse"] == found["mae"] == 0
        assert found.get("ssim") == (None if size == 2 else pytest.approx(1.0))


def test_only_rows_that_have_source_and_target_count(model):
    model.answers = {name: x[[0, 2, 3]] for name, x in model.answers.items()}  # those that have v
    mask = {"v": torch.tensor([1, 0, 1, 1, 0]).bool(), "text": torch.tensor([1, 1, 1, 0, 1]).bool()}
    data = {**model.truth, "v": torch.where(mask["v"][:, None], model.truth["v"], torch.nan), "mask": mask}
    found = reconstruction(model, data, subsets=[["v"]])["v"]
    assert found["text"] == {"rows": 2, "accuracy": pytest.approx(2 / 3), "exact": pytest.approx(1 / 2)}
    assert found["v"]["rows"] == 3 and found["v"]["mae"] == pytest.approx(1.5)


def test_what_no_row_has_is_left_out(model):
    found = reconstruction(model, {"v": model.truth["v"]}, subsets=[["v"], ["text"]])
    assert {source: list(of) for source, of in found.items()} == {"v": ["v"]}
