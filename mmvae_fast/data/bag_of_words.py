"""Reader of documents as counts of their words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvae_fast._files import with_ending, write_atomic
from mmvae_fast._lazy import require
from mmvae_fast.data.reader import Reader
from mmvae_fast.modalities import BagOfWords
from mmvae_fast.reading import documents
from mmvae_fast.reading.documents import TOKENIZERS


class BagOfWordsReader(Reader):
    """A document -> counts of its words, or tf-idf weights, float32 [V]; for
    :class:`~mmvae_fast.modalities.BagOfWords`.

    Words are NLTK's tokens that have a letter or a digit, in lower case; scikit-learn counts them. Words that are not
    in the vocabulary are left out. Neither library downloads anything here.

    Args:
        max_words: largest size of the vocabulary: the most frequent words of the training documents.
        min_documents: words of fewer training documents are left out.
        stop_words: not to count: "english" for scikit-learn's list, or your own.
        weighting: "counts", or "tfidf" (smoothed, each document of Euclidean length 1).
        tokenizer: "treebank" (don't -> do, n't) or "wordpunct" (don't -> don, t).
        lowercase: False keeps capitals apart.
        top: how many words of a predicted document :meth:`show` names.
        options: of the modality.
    """

    kind = "bag_of_words"

    def __init__(
        self,
        *,
        max_words: int = 2000,
        min_documents: int = 1,
        stop_words: str | Sequence[str] | None = None,
        weighting: str = "counts",
        tokenizer: str = "treebank",
        lowercase: bool = True,
        top: int = 10,
        **options: Any,
    ) -> None:
        for what, value in (("max_words", max_words), ("min_documents", min_documents), ("top", top)):
            if type(value) is not int or value < 1:
                raise ValueError(f"bag_of_words reader: {what} is {value!r}, expected a positive integer")
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"bag_of_words reader: tokenizer is {tokenizer!r}, expected one of {TOKENIZERS}")
        if isinstance(stop_words, str) and stop_words != "english":
            raise ValueError(f"bag_of_words reader: stop_words is {stop_words!r}, expected 'english' or a list")
        if not isinstance(lowercase, bool):
            raise TypeError(f"bag_of_words reader: lowercase is {lowercase!r}, expected True or False")
        BagOfWords(["word"], weighting=weighting, **options)  # what the modality refuses is refused now
        self.max_words, self.min_documents, self.top = max_words, min_documents, top
        self.weighting, self.tokenizer, self.lowercase, self.options = weighting, tokenizer, lowercase, options
        self.stop_words = stop_words if isinstance(stop_words, str) else sorted(stop_words or ())
        self.words: list[str] | None = None
        self.idf: list[float] | None = None
        self._vectorizer: Any = None

    def fit(self, cells: Iterable[Any]) -> None:
        text = require("sklearn.feature_extraction.text", extra="text")
        documents = [_document(cell) for cell in cells]
        counter = text.CountVectorizer(
            analyzer=self._analyzer(), max_features=self.max_words, min_df=self.min_documents
        )
        try:
            counts = counter.fit_transform(documents)
        except ValueError as error:  # it found no words
            raise ValueError(
                f"bag_of_words reader: no words are left of {len(documents)} documents (min_documents is "
                f"{self.min_documents}, stop_words {len(self._stops())}): {error}"
            ) from error
        self.words = counter.get_feature_names_out().tolist()
        if self.weighting == "tfidf":
            self.idf = text.TfidfTransformer().fit(counts).idf_.tolist()
        self._vectorizer = None

    def read(self, cell: Any) -> Tensor:
        """float32 [V] of a document; all 0 where no word of the vocabulary is in it."""
        if self._vectorizer is None:
            self._vectorizer = self._make_vectorizer()
        return torch.from_numpy(self._vectorizer.transform([_document(cell)]).toarray()[0]).float()

    def _make_vectorizer(self) -> Any:
        return documents.vectorizer(self._fitted(), self.weighting, self.idf, self._analyzer())

    def _analyzer(self) -> Any:
        return documents.analyzer(self.tokenizer, self.lowercase, self._stops())

    def _stops(self) -> frozenset[str]:
        return documents.stops(self.stop_words)

    def _fitted(self) -> list[str]:
        if self.words is None:
            raise ValueError("bag_of_words reader: has not learned a vocabulary yet, expected fit before")
        return self.words

    def show(self, sample: Tensor) -> str:
        """The words that weigh most, most first."""
        return " ".join(self.modality().top(sample.unsqueeze(0), self.top)[0])

    def write(self, sample: Tensor, path: Path) -> Path:
        path = with_ending(path, ".txt")
        write_atomic(path, self.show(sample) + "\n")
        return path

    def modality(self) -> BagOfWords:
        return BagOfWords(self._fitted(), weighting=self.weighting, **self.options)

    def config(self) -> dict[str, Any]:
        own = ("max_words", "min_documents", "stop_words", "weighting", "tokenizer", "lowercase", "top")
        fitted = {"words": self.words, "idf": self.idf}
        return {"kind": self.kind, **{name: getattr(self, name) for name in own}, **self.options, "fitted": fitted}

    @classmethod
    def _from_config(cls, options: dict[str, Any]) -> Reader:
        options = dict(options)
        fitted = options.pop("fitted", {})
        reader = cls(**options)
        reader.words, reader.idf = fitted.get("words"), fitted.get("idf")
        if reader.words is not None and reader.weighting == "tfidf" and len(reader.idf or ()) != len(reader.words):
            raise ValueError(f"idf has {len(reader.idf or ())} numbers, expected {len(reader.words)}")
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_vectorizer": None}  # worker processes make their own: it holds a local function


def _document(cell: Any) -> str:
    if not isinstance(cell, str):
        raise ValueError(f"bag_of_words reader: got a {type(cell).__name__}, expected text")
    return cell
