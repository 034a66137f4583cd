"""Modalities: shapes, likelihoods, predictions, text tokens, and the JSON round trip."""

import json

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import (
    MODALITIES,
    Audio,
    BagOfWords,
    Counts,
    Image,
    Language,
    Modality,
    Sequence,
    Text,
    Vector,
)

WORDS = ["a", "photo", "of", "the", "digit", "three"]

EXAMPLES = {
    "image": Image((3, 4, 5), hidden=(8,)),
    "laplace image": Image((1, 2, 2), likelihood="laplace", scale=0.5, hidden=()),
    "text": Text(WORDS, 7, hidden=(8, 6), embedding_dim=3),
    "ids": Text(11, 4),
    "audio": Audio((6, 9), scale=2.0),
    "vector": Vector(5, likelihood="laplace"),
    "gappy vector": Vector(5, missing=True, hidden=(8,)),
    "lstm": Sequence(6, 3, hidden=(8,)),
    "gru": Sequence(1, 2, cell="gru", hidden=(4, 4), likelihood="laplace"),
    "conv audio": Audio((6, 9), network="conv", width=2, norm="group"),
}


def batch_of(modality: Modality, rows: int) -> torch.Tensor:
    if modality.dtype == torch.int64:
        return torch.randint(0, modality.param_shape[-1], (rows, *modality.shape))
    return torch.rand(rows, *modality.shape)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_networks_have_the_promised_shapes(name, rows):
    modality = EXAMPLES[name]
    mu, logvar = modality.make_encoder(4)(batch_of(modality, rows))
    assert mu.shape == logvar.shape == (rows, 4)
    params = modality.make_decoder(4)(torch.randn(rows, 4))
    assert params.shape == (rows, *modality.param_shape)
    prediction = modality.predict(params)
    assert prediction.shape == (rows, *modality.shape)
    assert prediction.dtype == modality.dtype
    modality.check(name, prediction)


def test_encoder_outputs_are_views_of_one_block():
    mu, logvar = Image((1, 4, 4)).make_encoder(4)(torch.rand(3, 1, 4, 4))
    assert mu._base is not None
    assert mu._base is logvar._base


@pytest.mark.parametrize("name", EXAMPLES)
def test_log_likelihood_is_that_of_torch_distributions(name):
    modality = EXAMPLES[name]
    x = batch_of(modality, 3)
    params = torch.randn(2, 3, *modality.param_shape, dtype=torch.float64)
    families = {
        "normal": lambda: torch.distributions.Normal(params, modality.scale).log_prob(x.double()),
        "laplace": lambda: torch.distributions.Laplace(params, modality.scale).log_prob(x.double()),
        "bernoulli": lambda: torch.distributions.Bernoulli(logits=params, validate_args=False).log_prob(x.double()),
        "categorical": lambda: torch.distributions.Categorical(logits=params).log_prob(x.expand(2, 3, *modality.shape)),
    }
    expected = families[modality.likelihood]().flatten(2).sum(-1)
    torch.testing.assert_close(modality.log_likelihood(x, params), expected)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(modality.log_likelihood(x, params, mask), expected * mask)


def test_predictions_are_in_data_space():
    logits = torch.tensor([[[[0.0, 1.0], [-1.0, 30.0]]]])
    torch.testing.assert_close(Image((1, 2, 2)).predict(logits), logits.sigmoid())
    torch.testing.assert_close(Image((1, 2, 2), likelihood="normal").predict(logits), logits)
    assert Text(3, 2).predict(torch.tensor([[[0.0, 2, 1], [5, 1, 1]]])).tolist() == [[1, 0]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_config_round_trip(name):
    modality = EXAMPLES[name]
    config = json.loads(json.dumps(modality.config()))
    again = Modality.from_config(config)
    assert type(again) is type(modality)
    assert again.config() == modality.config()
    assert (again.shape, again.param_shape, again.size) == (modality.shape, modality.param_shape, modality.size)
    same = [p.shape for p in modality.make_encoder(3).parameters()]
    assert [p.shape for p in again.make_encoder(3).parameters()] == same


def test_custom_networks_are_used_and_asked_for_on_the_way_back():
    encoder, decoder = nn.Identity(), nn.Linear(2, 5)
    modality = Vector(5, encoder=encoder, decoder=decoder)
    assert modality.make_encoder(2) is encoder
    assert modality.make_decoder(2) is decoder
    config = modality.config()
    assert Modality.from_config(config, encoder, decoder).make_decoder(2) is decoder
    with pytest.raises(ValueError, match="saved with a custom encoder, but none was passed"):
        Modality.from_config(config, decoder=decoder)
    with pytest.raises(ValueError, match="saved with the default decoder, but one was passed"):
        Modality.from_config(Vector(5).config(), decoder=decoder)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "smell"},
        {"kind": "image"},
        {**Vector(3).config(), "shape": [3, 3]},
        {**Image((1, 2, 2)).config(), "scale": "x"},
        [],
        {**Vector(3).config(), "kind": ["vector"]},
    ],
)
def test_malformed_descriptions_are_refused(config):
    with pytest.raises(ValueError, match="modality"):
        Modality.from_config(config)


@pytest.fixture
def registry():
    """Classes of a test are forgotten after it."""
    before = dict(MODALITIES)
    yield MODALITIES
    MODALITIES.clear()
    MODALITIES.update(before)


def test_a_subclass_without_a_kind_of_its_own_is_not_saved_as_its_parent(registry):
    class MyImage(Image):
        pass

    assert registry["image"] is Image
    with pytest.raises(TypeError, match=r"MyImage has no kind of its own \(it would be loaded as a 'image' modality\)"):
        MyImage((1, 2, 2)).config()

    class Photo(Image):
        kind = "photo"

    assert type(Modality.from_config(Photo((1, 2, 2)).config())) is Photo


def test_a_kind_names_one_class(registry):
    with pytest.raises(ValueError, match=r"Sound: kind 'audio' is that of mmvae_fast.modalities.audio.Audio already"):

        class Sound(Audio):
            kind = "audio"

    assert registry["audio"] is Audio

    def cell():  # of a notebook
        class Smell(Vector):
            kind = "smell"

        return Smell

    first, second = cell(), cell()
    assert registry["smell"] is second is not first


def test_an_empty_network_is_a_network():
    encoder, decoder, text_encoder = nn.Sequential(), nn.Sequential(), nn.ModuleList()
    modality = Vector(2, encoder=encoder, decoder=decoder)
    assert modality.make_encoder(2) is encoder
    assert modality.make_decoder(2) is decoder
    assert Text(3, 2, encoder=text_encoder).make_encoder(2) is text_encoder


def test_registry_names_every_kind():
    written = {"text": Text, "language": Language, "bag_of_words": BagOfWords}
    known = {"image": Image, "audio": Audio, "vector": Vector, "counts": Counts, "sequence": Sequence, **written}
    assert known.items() <= MODALITIES.items()  # tests register kinds of their own


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Image((28, 28)), ValueError, r"Image: shape is \(28, 28\), expected \(channels, height, width\)"),
        (lambda: Image((1, 0, 28)), ValueError, "expected positive integers"),
        (lambda: Image((1, 2.0, 28)), ValueError, "expected positive integers"),
        (lambda: Image(28), ValueError, "expected positive integers"),
        (lambda: Audio((64,)), ValueError, r"expected \(n_mels, frames\)"),
        (lambda: Vector(-1), ValueError, "expected positive integers"),
        (lambda: Vector(True), ValueError, "expected positive integers"),
        (lambda: Vector(3, hidden=(0,)), ValueError, "hidden"),
        (lambda: Audio((2, 2), likelihood="bernoulli"), ValueError, "likelihood is 'bernoulli', expected one of"),
        (lambda: Text(9, 3, likelihood="normal"), ValueError, "likelihood is 'normal'"),
        (lambda: Vector(3, scale=0.0), ValueError, "scale is 0.0, expected a positive number"),
        (lambda: Vector(3, scale="1"), TypeError, "scale is a str"),
        (lambda: Vector(3, encoder=lambda x: x), TypeError, "encoder is a function, expected an nn.Module"),
        (lambda: Vector(3, missing=1), TypeError, "missing is a int, expected True or False"),
        (lambda: Sequence(5, 0), ValueError, "expected positive integers"),
        (lambda: Sequence(5, 2, cell="rnn"), ValueError, "cell is 'rnn', expected one of"),
        (lambda: Sequence(5, 2, hidden=(4, 5)), ValueError, "expected one size or several equal ones"),
        (lambda: Sequence(5, 2, hidden=()), ValueError, "expected one size or several equal ones"),
        (lambda: Text(["a", "a"], 3), ValueError, "'a' twice"),
        (lambda: Text(["a b"], 3), ValueError, "without whitespace"),
        (lambda: Text("abc", 3), TypeError, "list of words"),
        (lambda: Text(0, 3), ValueError, "vocabulary"),
        (lambda: Text(5, 0), ValueError, "shape"),
    ],
)
def test_impossible_modalities_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("modality", "x", "error", "message"),
    [
        (
            Image((1, 2, 2)),
            torch.rand(3, 2, 2),
            ValueError,
            r"modality 'm': got shape \[3, 2, 2\], expected \[B, 1, 2, 2\]",
        ),
        (Image((1, 2, 2)), torch.rand(3, 1, 2, 3), ValueError, r"got shape \[3, 1, 2, 3\]"),
        (
            Image((1, 2, 2)),
            torch.rand(3, 1, 2, 2).double(),
            TypeError,
            r"got torch.float64, expected torch.float32; convert",
        ),
        (Text(5, 2), torch.rand(3, 2), TypeError, "modality 'm': got torch.float32, expected torch.int64"),
        (Text(5, 2), torch.zeros(3, 2, dtype=torch.int32), TypeError, "got torch.int32"),
        (Vector(2), [[1.0, 2.0]], TypeError, "modality 'm': got a list, expected a tensor"),
        (Vector(2), torch.rand(()), ValueError, r"got shape \[\]"),
    ],
)
def test_wrong_batches_are_refused(modality, x, error, message):
    with pytest.raises(error, match=message):
        modality.check("m", x)


@pytest.mark.parametrize(
    ("modality", "x", "message"),
    [
        (Image((1, 1, 1)), torch.full((2, 1, 1, 1), 255.0), "values from 255 to 255, expected 0 to 1"),
        (Image((1, 1, 1)), torch.full((2, 1, 1, 1), -0.1), "expected 0 to 1"),
        (Vector(1), torch.tensor([[float("nan")]]), "NaN or infinite"),
        (Audio((1, 1)), torch.tensor([[[float("inf")]]]), "NaN or infinite"),
        (Text(5, 1), torch.tensor([[5]]), "token ids from 5 to 5, expected 0 to 4"),
        (Text(5, 1), torch.tensor([[-1]]), "expected 0 to 4"),
    ],
)
def test_values_without_a_likelihood_are_refused(modality, x, message):
    with pytest.raises(ValueError, match=message):
        modality.check_values("m", x)


def test_good_values_pass():
    Image((1, 1, 1)).check_values("m", torch.tensor([[[[0.0]]], [[[1.0]]]]))
    Image((1, 1, 1), likelihood="normal").check_values("m", torch.full((1, 1, 1, 1), 255.0))
    Text(5, 1).check_values("m", torch.tensor([[0], [4]]))
    Text(5, 1).check_values("m", torch.zeros(0, 1, dtype=torch.int64))


def test_tokens():
    text = Text(WORDS, 7)
    assert text.words[:2] == ("<pad>", "<unk>")
    assert text.vocabulary_size == len(WORDS) + 2
    sentences = ["a photo of the digit three", "three", ""]
    ids = text.tokenize(sentences)
    assert ids.dtype == torch.int64
    assert ids.shape == (3, 7)
    assert ids[1].tolist() == [7, 0, 0, 0, 0, 0, 0]
    assert text.detokenize(ids) == sentences
    assert text.detokenize(text.tokenize(["a  photo of eleven"])) == ["a photo of <unk>"]
    assert text.tokenize([]).shape == (0, 7)
    assert Text(list(text.words), 7).words == text.words  # specials are not prepended twice


def test_vocabulary_from_sentences():
    text = Text.from_sentences(["b a", "c a b"])
    assert text.words == ("<pad>", "<unk>", "a", "b", "c")
    assert text.length == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Text(WORDS, 2).tokenize(["a photo of"]), ValueError, "sentence 0 has 3 words, expected at most 2"),
        (lambda: Text(WORDS, 2).tokenize("a photo"), TypeError, "expected a list of sentences"),
        (lambda: Text(WORDS, 2).tokenize(["a", 3]), TypeError, "a list of other things, expected a list of sentences"),
        (lambda: Text(9, 2).tokenize(["a"]), ValueError, "Text.tokenize: the vocabulary is 9 ids without words"),
        (lambda: Text(9, 2).detokenize(torch.zeros(1, 2, dtype=torch.int64)), ValueError, "without words"),
        (lambda: Text(WORDS, 2).detokenize(torch.full((1, 2), 99)), ValueError, "token ids from 99 to 99"),
        (lambda: Text(WORDS, 2).detokenize(torch.zeros(2, dtype=torch.int64)), ValueError, r"got shape \[2\]"),
    ],
)
def test_bad_text_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_truncation_is_on_request():
    text = Text(WORDS, 2)
    assert text.detokenize(text.tokenize(["a photo of"], truncate=True)) == ["a photo"]


def test_a_text_of_no_words_is_refused_instead_of_taken_for_the_longest():
    with pytest.raises(ValueError, match=r"shape is \(0,\)"):
        Text.from_sentences(["one two"], 0)
