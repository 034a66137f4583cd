"""Text of a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import _words
from mmvae_fast._words import PAD, UNKNOWN
from mmvae_fast.modalities.base import Modality, _common
from mmvae_fast.modalities.networks import TokenEncoder
from mmvae_fast.modalities.tokens import Tokens


class Text(Tokens):
    """Token ids [B, length], int64; categorical likelihood at every position (decoder gives logits [N, length, V]).

    Args:
        vocabulary: the words, to which "<pad>" (id 0) and "<unk>" (id 1) are prepended unless they come first already;
            or the number of ids, if you bring your own tokenizer.
        length: tokens in a sample.
        embedding_dim: size of a token's embedding in the default encoder.

    See :class:`Modality` for the other arguments.
    """

    kind = "text"

    def __init__(
        self,
        vocabulary: Sequence[str] | int,
        length: int,
        *,
        likelihood: str = "categorical",
        embedding_dim: int = 32,
        **options: Any,
    ) -> None:
        super().__init__((length,), likelihood=likelihood, **options)
        (self.embedding_dim,) = self._sizes("embedding_dim", (embedding_dim,))
        if isinstance(vocabulary, int):
            (self.vocabulary_size,) = self._sizes("vocabulary", (vocabulary,))
            self.words: tuple[str, ...] | None = None
        else:
            self.words = _with_specials(vocabulary)
            self.vocabulary_size = len(self.words)
        self.padding = None if self.words is None else self.words.index(PAD)  # ids of your own may have none
        self._ids = {word: i for i, word in enumerate(self.words or ())}

    @classmethod
    def from_sentences(cls, sentences: Iterable[str], length: int | None = None, **options: Any) -> Text:
        """A vocabulary of every word in ``sentences``, sorted; as long as the longest of them unless told."""
        split = [sentence.split() for sentence in sentences]
        words = sorted({word for sentence in split for word in sentence} - {PAD, UNKNOWN})
        return cls(words, max(map(len, split), default=0) if length is None else length, **options)

    def make_encoder(self, latent_dim: int) -> nn.Module:
        if self.encoder is not None:
            return self.encoder
        return TokenEncoder(self.vocabulary_size, self.embedding_dim, self.length, self.hidden, latent_dim)

    def predict(self, params: Tensor) -> Tensor:
        """The most probable token at every position: logits [..., length, V] -> ids [..., length]."""
        return params.argmax(-1)

    def tokenize(self, sentences: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Whitespace-separated words -> ids [B, length], padded with 0; unknown words become 1.

        Raises:
            TypeError: not a list of strings.
            ValueError: a sentence of more than ``length`` words, unless ``truncate``; or no words to look up.
        """
        self._need_words("tokenize")
        ids = _words.tokenize(sentences, self._ids, self.length, truncate=truncate, where="Text.tokenize")
        return torch.from_numpy(ids)

    def detokenize(self, ids: Tensor) -> list[str]:
        """Ids [B, length] -> sentences; padding is left out."""
        words = self._need_words("detokenize")
        self._check_rows("detokenize", ids)
        return _words.detokenize(ids.numpy(force=True), words)

    def _need_words(self, method: str) -> tuple[str, ...]:
        if self.words is None:
            raise ValueError(
                f"Text.{method}: the vocabulary is {self.vocabulary_size} ids without words, expected a list of words"
            )
        return self.words

    def config(self) -> dict[str, Any]:
        vocabulary = self.vocabulary_size if self.words is None else list(self.words)
        return {**super().config(), "vocabulary": vocabulary, "embedding_dim": self.embedding_dim}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        (length,) = config["shape"]
        return cls(config["vocabulary"], length, embedding_dim=config["embedding_dim"], **_common(config), **networks)


def _with_specials(vocabulary: Sequence[str]) -> tuple[str, ...]:
    if isinstance(vocabulary, str) or not all(isinstance(word, str) for word in vocabulary):
        raise TypeError("Text: vocabulary is expected to be a list of words, or the number of ids")
    words = tuple(vocabulary)
    if words[:2] != (PAD, UNKNOWN):
        words = (PAD, UNKNOWN, *words)
    seen: set[str] = set()
    for word in words:
        if word.split() != [word]:
            raise ValueError(f"Text: vocabulary holds {word!r}, expected words without whitespace")
        if word in seen:
            raise ValueError(f"Text: vocabulary holds {word!r} twice")
        seen.add(word)
    return words
