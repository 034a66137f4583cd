"""Counts whose predictions are shares are compared as shares, and padding of texts is never right."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason="needs the 'evaluate' extra")
pytest.importorskip("sklearn", reason="needs the 'evaluate' extra")

from mmvae_fast.evaluate import cross_coherence, fit_oracles, frechet, oracle_features, pca_features, reconstruction
from mmvae_fast.modalities import BagOfWords, Counts, Text, Vector
from mmvae_fast.models import MoPoE
from mmvae_fast.plots.cells import values_of

LABELS = torch.arange(300) % 3
SHARES = torch.full((3, 12), 0.02) + 0.19 * torch.eye(3).repeat_interleave(4, 1)


class Show(nn.Module):
    """A posterior that is where the data are."""

    def forward(self, x):
        return x.contiguous(), torch.full_like(x, -8.0)


class Perfect(nn.Module):
    """The logits of the words of a class."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, z):
        return SHARES.log()[z[:, :3].argmax(1)].reshape(-1, *self.shape)


MODALITIES = {
    "bag_of_words": lambda: BagOfWords([f"w{i}" for i in range(12)], decoder=Perfect((12,)), hidden=(4,)),
    "tfidf": lambda: BagOfWords([f"w{i}" for i in range(12)], weighting="tfidf", decoder=Perfect((12,)), hidden=(4,)),
    "counts": lambda: Counts(12, library="observed", decoder=Perfect((1, 12)), hidden=(4,)),
}


def documents(rows, seed):
    """Of 20 to 60 words."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 61, (rows,), generator=g).tolist()
    words = [torch.multinomial(SHARES[i % 3], n, True, generator=g) for i, n in enumerate(lengths)]
    return torch.stack([word.bincount(minlength=12).float() for word in words])


@pytest.mark.parametrize("name", MODALITIES)
def test_a_perfect_model_of_documents_is_found_perfect(name):
    model = MoPoE({"v": Vector(3, encoder=Show()), "doc": MODALITIES[name]()}, 3)
    real = documents(300, 0)
    data = {"v": torch.eye(3)[LABELS], "doc": real}
    for kind in ("svc", "logistic", "network"):
        judges = fit_oracles(model, data, LABELS, kind=kind)
        assert judges["doc"].accuracy(documents(300, 1), LABELS) > 0.95
        assert judges["doc"].accuracy(SHARES[LABELS], LABELS) == 1  # predictions
    assert cross_coherence(model, data, judges, LABELS, subsets=[["v"]])["v"]["doc"] == 1
    error = reconstruction(model, data, subsets=[["v"]])["v"]["doc"]
    assert error["mse"] == pytest.approx((real / real.sum(1, keepdim=True) - SHARES[LABELS]).square().mean().item())
    scaled = real / real.sum(1, keepdim=True)  # the same documents as shares
    for space in (oracle_features(judges["doc"]), pca_features(model.modalities["doc"], real)):
        assert frechet(real, scaled, space).distance < 1.5 * frechet(real, scaled, space).floor
    assert values_of(model.modalities["doc"], real)[0].sum() == pytest.approx(1)


def test_an_empty_document_has_no_shares():
    modality = MODALITIES["bag_of_words"]()
    assert modality.comparable(torch.zeros(2, 12)).tolist() == torch.zeros(2, 12).tolist()
    x = torch.tensor([[3.0, 1.0]])
    assert Counts(2).comparable(x) is x and Vector(2).comparable(x) is x


def test_padding():
    assert Text(("red", "blue"), 3).padding == 0 and Text(5, 3).padding is None and Vector(3).padding is None


def test_padding_of_language_is_not_right():
    pytest.importorskip("tokenizers", reason="needs the 'text' extra")
    from mmvae_fast.modalities import Language

    modality = Language.from_texts(["a", "b", "c d"], 30, width=8, heads=2, layers=1)

    class Empty(MoPoE):
        def reconstruct(self, batch, mask=None, to=None, *, seed=None):
            return {"t": modality.tokenize([""] * len(batch["t"]))}

    found = reconstruction(Empty({"t": modality}, 2), {"t": modality.tokenize(["a", "b", "c d"])})["t"]["t"]
    assert found["accuracy"] == 0 and found["exact"] == 0
