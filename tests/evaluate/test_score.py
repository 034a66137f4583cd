"""Figures of one pass: the same however the rows are batched, those of the whole evaluation, texts without padding."""

import pytest
import torch

from mmvae_fast.evaluate import reconstruction, score
from mmvae_fast.modalities import Counts, Text, Vector
from mmvae_fast.models import MMVAE, MoPoE


@pytest.mark.parametrize("model_class", [MoPoE, MMVAE])
def test_figures_do_not_depend_on_the_batches(model_class):
    torch.manual_seed(0)
    words = Text(["a", "b", "c"], 4, hidden=(8,))
    model = model_class({"v": Vector(3, hidden=(8,)), "text": words}, 2).eval()
    data = {"v": torch.randn(23, 3), "text": words.tokenize(["a b", "c", "b b a c"] * 7 + ["a"] * 2)}
    mask = torch.rand(23, 2) < 0.8

    def figures(size):
        parts = [({name: x[i : i + size] for name, x in data.items()}, mask[i : i + size]) for i in range(0, 23, size)]
        return score(model, parts, n_samples=4, seed=5)

    whole, parts = figures(23), figures(4)
    assert whole["rows"] == parts["rows"] == 23
    for name in ("loss", "elbo", "kl", "log_likelihood"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)
    assert parts["per_modality"] == pytest.approx(whole["per_modality"], rel=1e-5)
    for given, row in whole["reconstruction"].items():
        for target, found in row.items():
            assert parts["reconstruction"][given][target]["value"] == pytest.approx(found["value"], rel=1e-5)


def test_padding_is_no_success():
    words = Text(["a", "b"], 10)
    model = MoPoE({"text": words}, 2).eval()
    data = {"text": words.tokenize(["a b", "b a b"])}

    def share(prediction):
        model.reconstruct = lambda batch, mask: {"text": words.tokenize(prediction)}
        found = score(model, [(data, torch.ones(2, 1, dtype=torch.bool))])
        return found["reconstruction"]["text"]["text"]["value"]

    assert share(["a b", "b a b"]) == 1
    assert share(["", ""]) == 0
    assert share(["a", "b a b a"]) == pytest.approx(4 / 6)


def test_errors_and_shares_are_those_of_the_whole_evaluation():
    pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")
    torch.manual_seed(0)
    words = Text(["a", "b", "c"], 4, hidden=(8,))
    parts = {
        "v": Vector(3, hidden=(8,), missing=True),
        "text": words,
        "counts": Counts(4, hidden=(8,), library="observed"),
    }
    model = MoPoE(parts, 2).train()
    data = {
        "v": torch.randn(12, 3),
        "text": words.tokenize(["a b", "c", "b b a c"] * 4),
        "counts": torch.randint(0, 9, (12, 4)).float() + 1,
    }
    data["v"][::3, 0] = torch.nan
    found = score(model, [(data, torch.ones(12, 3, dtype=torch.bool))])["reconstruction"]
    whole = reconstruction(model, data, subsets=[["v"], ["text"], ["counts"], list(parts)])
    whole["all"] = whole.pop("v+text+counts")
    assert set(found) == set(whole)
    for given, row in whole.items():
        for target, figures in row.items():
            expected = figures["accuracy" if target == "text" else "mse"]
            assert found[given][target]["value"] == pytest.approx(expected, rel=1e-5)
            assert found[given][target]["unit"] == ("=" if target == "text" else "")
    assert model.training  # as it came


def test_nothing_to_judge():
    with pytest.raises(ValueError, match="batches is empty"):
        score(MoPoE({"v": Vector(3)}, 2), [])
