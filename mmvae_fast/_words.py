"""Whitespace-separated words and their token ids, the same in training and in serving. NumPy only: no torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

PAD, UNKNOWN = "<pad>", "<unk>"
"""The first two words of every vocabulary, so their ids are 0 and 1."""

PAD_ID, UNKNOWN_ID = 0, 1


def tokenize(
    sentences: Sequence[str], ids: Mapping[str, int], length: int, *, truncate: bool = False, where: str = "tokenize"
) -> np.ndarray:
    """Words -> token ids int64 [B, length], padded with 0; words that are not in ``ids`` become 1.

    Args:
        ids: of the words of the vocabulary.
        truncate: cut longer sentences instead of raising.
        where: begins the error messages.

    Raises:
        TypeError: not a list of strings.
        ValueError: a sentence of more than ``length`` words.
    """
    if isinstance(sentences, str) or not all(isinstance(sentence, str) for sentence in sentences):
        got = "one string" if isinstance(sentences, str) else f"a {type(sentences).__name__} of other things"
        raise TypeError(f"{where}: got {got}, expected a list of sentences (strings)")
    out = np.full((len(sentences), length), PAD_ID, dtype=np.int64)
    for row, sentence in enumerate(sentences):
        words = sentence.split()
        if len(words) > length and not truncate:
            raise ValueError(
                f"{where}: sentence {row} has {len(words)} words, expected at most {length} (or pass truncate=True)"
            )
        known = [ids.get(word, UNKNOWN_ID) for word in words[:length]]
        out[row, : len(known)] = known
    return out


def detokenize(ids: np.ndarray, words: Sequence[str]) -> list[str]:
    """Token ids [B, length], each from 0 to len(words) - 1 -> sentences; padding is left out."""
    return [" ".join(words[i] for i in row if i != PAD_ID) for row in ids.tolist()]
