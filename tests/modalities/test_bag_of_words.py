"""BagOfWords: a multinomial over counts, with its coefficient, and weights without."""

import itertools
import json

import pytest
import torch

from mmvae_fast.modalities import BagOfWords, Modality, Vector
from mmvae_fast.models import VAE, MoPoE

WORDS = ["ball", "cube", "red"]


def test_log_likelihood_is_torchs_multinomial():
    modality = BagOfWords(WORDS)
    x = torch.tensor([[2.0, 0, 1], [0, 0, 0], [0, 30, 0], [5, 4, 3]])
    logits = torch.randn(2, 4, 3, dtype=torch.float64)
    multinomials = [torch.distributions.Multinomial(int(n), logits=logits[:, i]) for i, n in enumerate(x.sum(1))]
    expected = torch.stack([q.log_prob(row.double()) for q, row in zip(multinomials, x, strict=True)], 1)
    torch.testing.assert_close(modality.log_likelihood(x, logits), expected)
    assert (modality.log_likelihood(x, logits)[:, 1] == 0).all()  # an empty document is certain
    mask = torch.tensor([True, False, False, True])
    x[2] = torch.nan
    torch.testing.assert_close(modality.log_likelihood(x, logits, mask), torch.where(mask, expected, 0.0))


def test_probabilities_of_all_documents_of_a_length_sum_to_one():
    documents = [c for c in itertools.product(range(5), repeat=3) if sum(c) == 4]
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    log_p = BagOfWords(WORDS).log_likelihood(torch.tensor(documents).float(), logits.expand(len(documents), 3))
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros((), dtype=torch.float64))


def test_weights_have_no_coefficient():
    x, logits = torch.tensor([[0.8, 0.0, 0.6]]), torch.tensor([[1.0, 2.0, -1.0]])
    expected = (x * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(BagOfWords(WORDS, weighting="tfidf").log_likelihood(x, logits), expected)


def test_predictions_are_shares_and_their_words_can_be_named():
    modality = BagOfWords(WORDS)
    shares = modality.predict(torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, -1.0]]))
    torch.testing.assert_close(shares.sum(-1), torch.ones(2))
    assert modality.top(shares, 2) == [["cube", "red"], ["ball", "cube"]]
    assert modality.top(torch.tensor([[0.0, 0.0, 2.0]])) == [["red"]]
    assert modality.top(torch.zeros(1, 3)) == [[]]


def test_config_round_trip():
    modality = BagOfWords(WORDS, weighting="tfidf", hidden=(7,))
    again = Modality.from_config(json.loads(json.dumps(modality.config())))
    assert type(again) is BagOfWords
    assert again.config() == modality.config()
    assert again.words == tuple(WORDS)


@pytest.mark.parametrize(
    "vocabulary, options, error, message",
    [
        ("red", {}, TypeError, "list of words"),
        ([1], {}, TypeError, "list of words"),
        ([], {}, ValueError, "vocabulary is empty"),
        (["a", "b", "a"], {}, ValueError, "vocabulary holds 'a' twice"),
        (WORDS, {"weighting": "binary"}, ValueError, "weighting is 'binary', expected one of"),
        (WORDS, {"likelihood": "poisson"}, ValueError, "likelihood is 'poisson'"),
    ],
)
def test_bad_arguments(vocabulary, options, error, message):
    with pytest.raises(error, match=message):
        BagOfWords(vocabulary, **options)


def test_bad_values():
    good, broken = torch.tensor([[0.0, 2, 1]]), torch.tensor([[0.0, 2.5, 1]])
    BagOfWords(WORDS).check_values("w", good)
    BagOfWords(WORDS, weighting="tfidf").check_values("w", broken)
    with pytest.raises(ValueError, match="modality 'w': holds negative or broken numbers, expected counts"):
        BagOfWords(WORDS).check_values("w", broken)
    with pytest.raises(ValueError, match="expected weights of 0 or more"):
        BagOfWords(WORDS, weighting="tfidf").check_values("w", -good)
    with pytest.raises(ValueError, match="NaN or infinite"):
        BagOfWords(WORDS).check_values("w", good * torch.nan)


def test_a_topic_model_finds_the_topics():
    """Documents of two topics: z tells them apart, and each decodes to its words."""
    g = torch.Generator().manual_seed(0)
    topic = torch.randint(0, 2, (200,), generator=g)
    p = torch.tensor([[0.5, 0.4, 0.05, 0.05], [0.05, 0.05, 0.4, 0.5]])[topic]
    x = torch.stack([torch.bincount(torch.multinomial(row, 12, True, generator=g), minlength=4) for row in p]).float()
    x[0] = 0  # an empty one
    torch.manual_seed(0)
    modality = BagOfWords(["ball", "goal", "vote", "law"], hidden=(16,))
    model = VAE({"words": modality}, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(150):
        optimizer.zero_grad()
        model({"words": x}, seed=step).loss.backward()
        optimizer.step()
    shares = model.reconstruct({"words": x})["words"]
    assert ((shares[1:, 2:].sum(-1) > 0.5) == topic[1:].bool()).float().mean() > 0.95
    assert set(modality.top(shares[1:][topic[1:] == 0].mean(0, keepdim=True), 2)[0]) == {"ball", "goal"}


def test_missing_documents():
    model = MoPoE({"words": BagOfWords(WORDS, hidden=(4,)), "v": Vector(2, hidden=(4,))}, 2)
    batch = {"words": torch.full((2, 3), torch.nan), "v": torch.randn(2, 2)}
    out = model(batch, {"words": torch.tensor([False, False])})
    out.loss.backward()
    assert out.loss.isfinite() and out.log_likelihood["words"] == 0
