"""Documents as counts of their words, by NLTK's tokens and scikit-learn's counting. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mmvae_fast._lazy import require

TOKENIZERS = ("treebank", "wordpunct")


def vectorizer(
    words: Sequence[str], weighting: str, idf: Sequence[float] | None, analyzer: Callable[[str], list[str]]
) -> Any:
    """Of scikit-learn, over this vocabulary: counts, or with weighting "tfidf" weights by ``idf``."""
    text = require("sklearn.feature_extraction.text", extra="text")
    if weighting == "counts":
        return text.CountVectorizer(vocabulary=words, analyzer=analyzer)
    made = text.TfidfVectorizer(vocabulary=words, analyzer=analyzer)
    made.idf_ = np.array(idf)
    return made


def analyzer(tokenizer: str, lowercase: bool, stop_words: frozenset[str]) -> Callable[[str], list[str]]:
    """Document -> its words: tokens that have a letter or a digit and are no stop words."""
    nltk = require("nltk.tokenize", extra="text")
    split = nltk.TreebankWordTokenizer().tokenize if tokenizer == "treebank" else nltk.wordpunct_tokenize

    def words(document: str) -> list[str]:
        tokens = split(document.lower() if lowercase else document)
        return [token for token in tokens if token not in stop_words and any(map(str.isalnum, token))]

    return words


def stops(stop_words: str | Iterable[str]) -> frozenset[str]:
    """ "english" is scikit-learn's list."""
    if stop_words == "english":
        return require("sklearn.feature_extraction.text", extra="text").ENGLISH_STOP_WORDS
    return frozenset(stop_words)
