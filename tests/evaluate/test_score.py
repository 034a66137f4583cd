"""Figures of a model: the same however the rows are batched, and of texts without their padding."""

import pytest
import torch

from mmvae_fast.evaluate import score
from mmvae_fast.modalities import Text, Vector
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
