"""Readers of text: words at fixed places (:class:`Text`), or tokens of any text (:class:`Language`)."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from mmvae_fast._files import with_ending, write_atomic
from mmvae_fast.data.reader import Reader
from mmvae_fast.modalities import Language, Modality, Text

logger = logging.getLogger(__name__)

TOO_LONG = ("cut", "error")


class _Tokens(Reader):
    """What both readers share: learn a modality from the training texts, or be given one, and use it."""

    def __init__(self, *, length: int | None = None, too_long: str = "cut", **options: Any) -> None:
        if too_long not in TOO_LONG:
            raise ValueError(f"{self.kind} reader: too_long is {too_long!r}, expected one of {TOO_LONG}")
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError(f"{self.kind} reader: length is {length!r}, expected a positive integer")
        self.length, self.too_long, self.options = length, too_long, options
        self.fitted: Any = None

    @abstractmethod
    def learn(self, texts: list[str]) -> Any:
        """The modality of these texts."""

    @abstractmethod
    def split(self, text: str) -> list[Any]:
        """All tokens of a text, of which ``length`` are kept."""

    @abstractmethod
    def ids(self, tokens: list[Any]) -> Tensor:
        """The sample [length] of a text's tokens, cut off or padded."""

    def fit(self, cells: Iterable[Any]) -> None:
        texts = [_text(self.kind, cell) for cell in cells]
        self.fitted = self.learn(texts)
        counts = [len(self.split(text)) for text in texts]
        room = self.fitted.length
        if longer := sum(count > room for count in counts):
            logger.warning(
                "%s reader: %d of %d texts have more than length = %d tokens (the longest %d); %s",
                *(self.kind, longer, len(texts), room, max(counts)),
                "their ends are cut off" if self.too_long == "cut" else "they are errors",
            )

    def read(self, cell: Any) -> Tensor:
        """Token ids [length] of a text; see ``too_long`` for one that has more."""
        text = _text(self.kind, cell)
        room, tokens = self.modality().length, self.split(text)
        if len(tokens) > room and self.too_long == "error":
            raise ValueError(f"a text of {len(tokens)} tokens, expected at most {room} (or set too_long: cut)")
        return self.ids(tokens)

    def show(self, sample: Tensor) -> str:
        return self.modality().detokenize(sample.unsqueeze(0))[0]

    def write(self, sample: Tensor, path: Path) -> Path:
        path = with_ending(path, ".txt")
        write_atomic(path, self.show(sample) + "\n")
        return path

    def modality(self) -> Any:
        if self.fitted is None:
            raise ValueError(f"{self.kind} reader: has not learned a vocabulary yet, expected fit before")
        return self.fitted

    def config(self) -> dict[str, Any]:
        fitted = None if self.fitted is None else self.fitted.config()
        return {"kind": self.kind, "length": self.length, "too_long": self.too_long, **self.options, "fitted": fitted}

    @classmethod
    def _from_config(cls, options: dict[str, Any]) -> Reader:
        options = dict(options)
        fitted = options.pop("fitted", None)
        reader = cls(**options)
        reader.fitted = None if fitted is None else Modality.from_config(fitted)
        return reader


class TextReader(_Tokens):
    """Texts as words at fixed places, for :class:`~mmvae_fast.modalities.Text`: short captions of a small vocabulary.

    A word that was not in the training texts becomes "<unk>". What an ONNX bundle can hold.

    Args:
        length: words in a sample; None for as many as the longest training text has.
        too_long: "cut" keeps the beginning of longer texts, which :meth:`fit` logs; "error" refuses them.
        options: of the modality.
    """

    kind = "text"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        Text(["word"], self.length or 1, **self.options)  # what the modality refuses is refused now

    def learn(self, texts: list[str]) -> Text:
        return Text.from_sentences(texts, self.length, **self.options)

    def split(self, text: str) -> list[str]:
        return text.split()

    def ids(self, tokens: list[str]) -> Tensor:
        return self.modality().tokenize([" ".join(tokens)], truncate=True)[0]


class LanguageReader(_Tokens):
    """Texts as byte-level tokens, for :class:`~mmvae_fast.modalities.Language`: any text, in any script.

    Args:
        length: tokens in a sample, its end included; None for as many as the longest training text has.
        vocabulary_size: largest number of tokens of the tokenizer that :meth:`fit` trains.
        too_long: "cut" keeps the beginning of longer texts, which :meth:`fit` logs; "error" refuses them.
        options: of the modality.
    """

    kind = "language"

    def __init__(self, *, vocabulary_size: int = 2000, **options: Any) -> None:
        super().__init__(**options)
        self.vocabulary_size = vocabulary_size
        self.learn([])  # what the modality refuses is refused now

    def learn(self, texts: list[str]) -> Language:
        return Language.from_texts(texts, self.length, vocabulary_size=self.vocabulary_size, **self.options)

    def split(self, text: str) -> list[int]:
        return self.modality().encode(text)

    def ids(self, tokens: list[int]) -> Tensor:
        return self.modality().row(tokens)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "vocabulary_size": self.vocabulary_size}


def _text(kind: str, cell: Any) -> str:
    if not isinstance(cell, str):
        raise ValueError(f"{kind} reader: got a {type(cell).__name__}, expected text")
    return cell
