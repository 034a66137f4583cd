"""Readers of text: from a cell to a sample and back to a file a person can read."""

import json
import logging
import pickle

import pytest
import torch

from mmvae_fast.data import Reader
from mmvae_fast.data.bag_of_words import BagOfWordsReader
from mmvae_fast.data.text import LanguageReader, TextReader
from mmvae_fast.modalities import BagOfWords, Language, Text

pytest.importorskip("tokenizers")
pytest.importorskip("nltk")
pytest.importorskip("sklearn")

CELLS = ["the number three", "a photo of the digit three", "Don't panic, it's 42!", "naïve 日本 🎉"]
READERS = {
    "text": lambda: TextReader(hidden=[8], embedding_dim=3),
    "language": lambda: LanguageReader(vocabulary_size=280, width=8, heads=2),
    "bag_of_words": lambda: BagOfWordsReader(hidden=[8]),
    "tfidf": lambda: BagOfWordsReader(weighting="tfidf", stop_words=["a", "of"], tokenizer="wordpunct"),
}


@pytest.fixture(params=READERS)
def reader(request):
    reader = READERS[request.param]()
    reader.fit(CELLS)
    return reader


def test_samples_are_those_of_the_modality(reader):
    modality = reader.modality()
    batch = torch.stack([reader.read(cell) for cell in [*CELLS, "", "unseen words", "x " * 500]])
    modality.check("m", batch)
    modality.check_values("m", batch)
    mu, _ = modality.make_encoder(2)(batch)
    assert mu.shape == (7, 2)


def test_description_round_trip(reader):
    again = Reader.from_config(json.loads(json.dumps(reader.config())))
    assert type(again) is type(reader) and again.config() == reader.config()
    assert again.modality().config() == reader.modality().config()
    for cell in [*CELLS, "", "unseen"]:
        assert torch.equal(again.read(cell), reader.read(cell))
    unfitted = Reader.from_config(type(reader)().config())
    with pytest.raises(ValueError, match="has not learned a vocabulary yet, expected fit before"):
        unfitted.read("a")


def test_readers_go_to_worker_processes(reader):
    expected = reader.read(CELLS[0])  # which has made whatever it makes when it first reads
    assert torch.equal(pickle.loads(pickle.dumps(reader)).read(CELLS[0]), expected)


def test_written_files_can_be_read(reader, tmp_path):
    sample = reader.read(CELLS[1])
    path = reader.write(sample, tmp_path / "sample")
    assert path == tmp_path / "sample.txt"
    assert path.read_text(encoding="utf-8") == reader.show(sample) + "\n"
    if isinstance(reader, BagOfWordsReader):
        assert "digit" in reader.show(sample).split() and "number" not in reader.show(sample).split()
    else:
        assert reader.show(sample) == CELLS[1]


def test_cells_that_are_no_text(reader):
    for cell in (3, ["a"], b"a"):
        with pytest.raises(ValueError, match="reader: got a (int|list|bytes), expected text"):
            reader.read(cell)


def test_the_kinds_of_modality():
    for kind, modality in (("text", Text), ("language", Language), ("bag_of_words", BagOfWords)):
        reader = READERS[kind]()
        assert reader.kind == kind
        reader.fit(CELLS)
        assert type(reader.modality()) is modality


@pytest.mark.parametrize("kind", ["text", "language"])
def test_texts_that_are_too_long(kind, caplog):
    reader = Reader.from_config({**READERS[kind]().config(), "length": 4})
    with caplog.at_level(logging.WARNING):
        reader.fit(["a b", "a b c d e f g h"])
    assert "1 of 2 texts have more than length = 4 tokens" in caplog.text
    caplog.clear()
    assert reader.show(reader.read("a b c d e f g h")).startswith("a b")
    assert not caplog.text  # reported once, not in every worker and epoch
    strict = Reader.from_config({**reader.config(), "too_long": "error"})
    with pytest.raises(ValueError, match="a text of .* tokens, expected at most 4"):
        strict.read("a b c d e f g h")


def test_words_that_were_not_seen():
    text, language = TextReader(), LanguageReader(length=40)
    text.fit(CELLS)
    language.fit(CELLS)
    assert text.show(text.read("the number nine")) == "the number <unk>"
    assert language.show(language.read("the number nine")) == "the number nine"


def test_words_are_counted():
    reader = BagOfWordsReader()
    reader.fit(["Don't panic!", "Do panic, panic."])
    assert reader.words == ["do", "n't", "panic"]
    assert reader.read("PANIC don't, do").tolist() == [2, 1, 1]
    assert reader.read("").tolist() == [0, 0, 0]
    wordpunct = BagOfWordsReader(tokenizer="wordpunct", lowercase=False)
    wordpunct.fit(["Don't panic!"])
    assert wordpunct.words == ["Don", "panic", "t"]


def test_the_vocabulary_is_what_the_options_say():
    cells = ["the cat and the dog", "the dog", "a bird"]

    def words(**options):
        reader = BagOfWordsReader(**options)
        reader.fit(cells)
        return reader.words

    assert words() == ["a", "and", "bird", "cat", "dog", "the"]
    assert words(max_words=2) == ["dog", "the"]
    assert words(min_documents=2) == ["dog", "the"]
    assert words(stop_words="english") == ["bird", "cat", "dog"]
    assert words(stop_words=["the", "a"]) == ["and", "bird", "cat", "dog"]
    with pytest.raises(ValueError, match="no words are left of 3 documents"):
        words(min_documents=4)


def test_tfidf_is_scikit_learns():
    from sklearn.feature_extraction.text import TfidfVectorizer

    reader = BagOfWordsReader(weighting="tfidf")
    reader.fit(CELLS)
    expected = TfidfVectorizer(analyzer=reader._analyzer()).fit(CELLS).transform(CELLS[:2]).toarray()
    got = torch.stack([reader.read(cell) for cell in CELLS[:2]])
    torch.testing.assert_close(got, torch.from_numpy(expected).float())
    again = Reader.from_config(json.loads(json.dumps(reader.config())))
    assert torch.equal(again.read(CELLS[0]), got[0])
    with pytest.raises(ValueError, match="malformed description of a bag_of_words reader: idf has 1 numbers"):
        Reader.from_config({**reader.config(), "fitted": {"words": reader.words, "idf": [1.0]}})


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (TextReader, {"too_long": "maybe"}, "too_long is 'maybe', expected one of"),
        (TextReader, {"length": 0}, "length is 0, expected a positive integer"),
        (TextReader, {"hidden": [0]}, "hidden is"),
        (LanguageReader, {"heads": 3}, "width is 128, expected a multiple of heads, 3"),
        (LanguageReader, {"vocabulary_size": 5}, "vocabulary_size is 5"),
        (BagOfWordsReader, {"max_words": 0}, "max_words is 0"),
        (BagOfWordsReader, {"stop_words": "klingon"}, "stop_words is 'klingon'"),
        (BagOfWordsReader, {"tokenizer": "moses"}, "tokenizer is 'moses', expected one of"),
        (BagOfWordsReader, {"weighting": "binary"}, "weighting is 'binary'"),
    ],
)
def test_bad_options_are_refused_at_once(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
