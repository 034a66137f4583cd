"""Text of any length up to a limit, in any script: byte-level tokens, read and written by Transformers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast._lazy import require
from mmvae_fast.modalities.base import Modality
from mmvae_fast.modalities.tokens import Tokens
from mmvae_fast.modalities.transformer import TransformerDecoder, TransformerEncoder
from mmvae_fast.reference import philox_uniform, seed_tensor

logger = logging.getLogger(__name__)

PAD, BEGIN, END = 0, 1, 2
"""Ids of ours. Those of the tokenizer follow, so that no text, whatever it spells, is mistaken for one of them."""
_OURS = 3
_COLD = 1e-6  # logits over less than that may overflow, and say nothing else than that the largest is drawn
_STREAM = 2  # of the noise: 0 and 1 are the latents' normals and choices


class Language(Tokens):
    """Token ids [B, length], int64: a text's tokens, END (id 2), and padding (id 0).

    p(x | z) = prod_t p(x_t | z, x_<t) over the tokens of a text and its END, by an autoregressive Transformer; padding
    counts nothing. A text of ``length`` tokens or more has no END, and x is its beginning, so that the probabilities of
    all x sum to 1. The empty text is END alone. ``log_likelihood`` is exact; predictions (``reconstruct``, ``sample``,
    ``translate``) are generated greedily, and :meth:`generate` has other ways.

    Args:
        tokenizer: of the ``tokenizers`` library, or its JSON (text or dict). :meth:`from_texts` trains one for which no
            text is unknown. One of your own may know an unknown token, or drop what it does not know.
        length: largest number of tokens, END included.
        width: of the Transformers' layers, four times that in their MLPs.
        heads: of their attention; ``width`` is a multiple.
        layers: of the encoder, and of the decoder.
        dropout: in both, while training.
        word_dropout: probability of a token to be hidden from the decoder, while training, so that it has to listen to
            z; see :class:`~mmvae_fast.modalities.transformer.TransformerDecoder`.
        encoder: your own module instead, x [B, length] -> (mu, logvar).
        decoder: your own module instead, (z [N, latent_dim], x [N, length]) -> logits [N, length, vocabulary_size];
            those at t may depend on x_0, ..., x_(t-1) alone.

    Raises:
        ValueError, TypeError: a tokenizer, size or probability that cannot be.
        ImportError: without the ``text`` extra.
    """

    kind = "language"
    autoregressive = True
    padding = PAD

    def __init__(
        self,
        tokenizer: Any,
        length: int,
        *,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
        word_dropout: float = 0.2,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__((length,), likelihood="categorical", hidden=(), encoder=encoder, decoder=decoder)
        self.width, self.heads, self.layers = (
            self._sizes(what, (value,))[0] for what, value in (("width", width), ("heads", heads), ("layers", layers))
        )
        if width % heads:
            raise ValueError(f"Language: width is {width}, expected a multiple of heads, {heads}")
        self.dropout, self.word_dropout = _probability("dropout", dropout), _probability("word_dropout", word_dropout)
        self.tokenizer = _tokenizer(tokenizer)
        self.vocabulary_size = _OURS + 1 + max(self.tokenizer.get_vocab().values(), default=-1)
        if self.vocabulary_size == _OURS:
            raise ValueError("Language: the tokenizer has no tokens, expected a trained one")

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], length: int | None = None, *, vocabulary_size: int = 2000, **options: Any
    ) -> Language:
        """With a byte-level BPE tokenizer trained on ``texts``: frequent words are one token, anything can be spelled.

        Args:
            texts: the corpus.
            length: as in the class; None for room for the longest of ``texts``.
            vocabulary_size: largest number of tokens, the 3 of ours and the 256 bytes included; a small corpus gives
                fewer.
            options: of the class.

        Source: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, ACL 2016; bytes: Radford
        et al., Language Models are Unsupervised Multitask Learners, 2019.
        """
        texts = _check_texts("Language.from_texts", texts)
        for i, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"Language.from_texts: text {i} is not Unicode text ({error})") from error
        least = _OURS + 256
        if type(vocabulary_size) is not int or vocabulary_size < least:
            raise ValueError(f"Language.from_texts: vocabulary_size is {vocabulary_size!r}, expected {least} or more")
        tokenizer = train_byte_bpe(texts, vocabulary_size - _OURS)
        if length is None:
            length = 1 + max((len(tokenizer.encode(text).ids) for text in texts), default=0)
        return cls(tokenizer, length, **options)

    def make_encoder(self, latent_dim: int) -> nn.Module:
        if self.encoder is not None:
            return self.encoder
        return TransformerEncoder(self.vocabulary_size, self.length, latent_dim, pad=PAD, **self._network())

    def make_decoder(self, latent_dim: int) -> nn.Module:
        if self.decoder is not None:
            return self.decoder
        return TransformerDecoder(
            self.vocabulary_size,
            self.length,
            latent_dim,
            word_dropout=self.word_dropout,
            begin=BEGIN,
            never=(PAD, BEGIN),
            **self._network(),
        )

    def _network(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("width", "heads", "layers", "dropout")}

    def log_likelihood(self, x: Tensor, params: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | z) in nats: x [B, length], params [..., B, length, V] (logits, given z and x's past) -> [..., B].

        Padding counts nothing, and neither does a row that ``mask`` (bool [B]) says is missing.
        """
        counted = x != PAD if mask is None else (x != PAD) & mask[:, None]
        of_tokens = functional.log_likelihood(
            x.flatten(), params.flatten(-3, -2), family="categorical", mask=counted.flatten()
        )
        return of_tokens.unflatten(-1, x.shape).sum(-1)

    def predict(self, params: Tensor) -> Tensor:
        """The most probable token at every place, given the text that the logits [..., length, V] were made with; after
        the first END, padding."""
        ids = params.argmax(-1)
        ended = (ids == END).cumsum(-1) - (ids == END).long() > 0
        return torch.where(ended, PAD, ids)

    @torch.no_grad()
    def generate(
        self,
        decoder: Any,
        z: Tensor,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Texts from a model's decoder and latents z [N, latent_dim], token by token: ids [N, length].

        Row n's text depends on z[n], the seed and n alone, not on the other rows.

        Args:
            temperature: 0, or less than a millionth, takes the most probable token each time; otherwise tokens are
                drawn, with logits over it.
            top_k: draw from the so many most probable tokens.
            top_p: draw from the most probable tokens that together reach this probability (nucleus sampling).
            seed: of the draws; None takes one from ``generator``, or torch's.
            cache: False computes everything anew at every token: slow, and the same.

        Raises:
            ValueError: an option out of range.

        Source: Holtzman et al., The Curious Case of Neural Text Degeneration, ICLR 2020 (top_p).
        """
        _check_sampling(temperature, top_k, top_p)
        n, length = z.shape[0], self.length
        x = torch.full((n, length), PAD, device=z.device)
        greedy = temperature < _COLD
        if not greedy:
            u = philox_uniform(seed_tensor(seed, generator, z.device), n, length, _STREAM, device=z.device)
        going = torch.ones(n, dtype=torch.bool, device=z.device)
        cache = cache and hasattr(decoder, "begin") and hasattr(decoder, "step")
        memory, last = decoder.begin(z) if cache else None, None
        for t in range(length):
            logits = decoder.step(z, last, t, memory) if cache else decoder(z, x)[:, t]
            drawn = logits.argmax(-1) if greedy else _draw(logits.float() / temperature, top_k, top_p, u[:, t])
            last = torch.where(going, drawn, PAD)
            x[:, t] = last
            going = going & (drawn != END)
            if not bool(going.any()):
                break
        return x

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Texts -> ids [B, length].

        Args:
            truncate: keep the beginning of texts that are too long, and log how many there were.

        Raises:
            TypeError: not a list of strings.
            ValueError: a text of more tokens than there is room for, unless ``truncate``; or with half of a surrogate
                pair, which is no Unicode.
        """
        texts = _check_texts("Language.tokenize", texts)
        ids = torch.full((len(texts), self.length), PAD)
        too_long = []
        for row, text in enumerate(texts):
            tokens = self.encode(text, where=f"Language.tokenize: text {row}")
            if len(tokens) > self.length:
                too_long.append(row)
                if not truncate:
                    raise ValueError(
                        f"Language.tokenize: text {row} has {len(tokens)} tokens, its end included, expected at most "
                        f"{self.length} (or pass truncate=True)"
                    )
            ids[row] = self.row(tokens)
        if too_long:
            logger.warning(
                "Language.tokenize: %d of %d texts have more than %d tokens and were cut off, the first in row %d",
                *(len(too_long), len(texts), self.length, too_long[0]),
            )
        return ids

    def encode(self, text: str, *, where: str = "Language.encode") -> list[int]:
        """All tokens of one text and END, however many."""
        try:
            tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError) as error:
            raise ValueError(f"{where}: is not Unicode text ({error})") from error
        return [*(_OURS + token for token in tokens), END]

    def row(self, tokens: Sequence[int]) -> Tensor:
        """The tokens of one text as ids [length]: cut off, or padded."""
        kept = list(tokens[: self.length])
        return torch.tensor(kept + [PAD] * (self.length - len(kept)))

    def detokenize(self, ids: Tensor) -> list[str]:
        """Ids [B, length] -> texts, each up to its END."""
        self._check_rows("detokenize", ids)
        texts = []
        for row in ids.tolist():
            tokens = row[: row.index(END)] if END in row else row
            texts.append(self.tokenizer.decode([i - _OURS for i in tokens if i >= _OURS], skip_special_tokens=False))
        return texts

    def check_values(self, name: str, x: Tensor) -> None:
        super().check_values(name, x)
        if not x.numel():
            return
        ended = (x == END).cumsum(-1) - (x == END).long() > 0
        wrong = ((x == PAD) != ended) | (x == BEGIN)
        if bool(wrong.any()):
            row = int(wrong.any(-1).nonzero()[0])
            raise ValueError(
                f"modality {name!r}: row {row} is {x[row].tolist()}, expected tokens ({_OURS} or more), then {END} "
                f"unless they fill the row, then padding ({PAD}), as tokenize makes them"
            )

    def config(self) -> dict[str, Any]:
        own = {"word_dropout": self.word_dropout, **self._network()}
        return {**super().config(), "tokenizer": json.loads(self.tokenizer.to_str()), **own}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        (length,) = config["shape"]
        own = {name: config[name] for name in ("width", "heads", "layers", "dropout", "word_dropout")}
        return cls(config["tokenizer"], length, **own, **networks)

    def __repr__(self) -> str:
        return f"Language(length={self.length}, vocabulary_size={self.vocabulary_size})"


def train_byte_bpe(texts: Iterable[str], vocabulary_size: int) -> Any:
    """A byte-level BPE tokenizer of at most so many tokens, which include the 256 bytes."""
    tokenizers = require("tokenizers", extra="text")
    byte_level = require("tokenizers.pre_tokenizers", extra="text").ByteLevel
    tokenizer = tokenizers.Tokenizer(require("tokenizers.models", extra="text").BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = require("tokenizers.decoders", extra="text").ByteLevel()
    trainer = require("tokenizers.trainers", extra="text").BpeTrainer(
        vocab_size=vocabulary_size, min_frequency=2, initial_alphabet=sorted(byte_level.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokenizer(tokenizer: Any) -> Any:
    """A copy of our own, that neither pads nor cuts."""
    cls = require("tokenizers", extra="text").Tokenizer
    if isinstance(tokenizer, cls):
        text = tokenizer.to_str()
    elif isinstance(tokenizer, (str, dict)):
        text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    else:
        raise TypeError(
            f"Language: tokenizer is a {type(tokenizer).__name__}, expected a tokenizers.Tokenizer, or its JSON"
        )
    try:
        own = cls.from_str(text)
    except Exception as error:  # the library raises plain Exceptions
        raise ValueError(f"Language: tokenizer is not the JSON of one: {error}") from error
    own.no_padding()
    own.no_truncation()
    return own


def _check_texts(where: str, texts: Iterable[str]) -> list[str]:
    got = "one string" if isinstance(texts, str) else None
    texts = [] if got else list(texts)
    if got is None and not all(isinstance(text, str) for text in texts):
        got = f"a list with a {next(type(text).__name__ for text in texts if not isinstance(text, str))}"
    if got:
        raise TypeError(f"{where}: got {got}, expected a list of texts (strings)")
    return texts


def _probability(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Language: {what} is a {type(value).__name__}, expected a number")
    if not 0 <= value < 1:
        raise ValueError(f"Language: {what} is {value}, expected a probability below 1")
    return float(value)


def _check_sampling(temperature: Any, top_k: Any, top_p: Any) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
        raise ValueError(f"generate: temperature is {temperature!r}, expected a number, 0 or more")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ValueError(f"generate: top_k is {top_k!r}, expected 1 or more")
    if top_p is not None and (isinstance(top_p, bool) or not isinstance(top_p, (int, float)) or not 0 < top_p <= 1):
        raise ValueError(f"generate: top_p is {top_p!r}, expected a probability above 0")


def _draw(logits: Tensor, top_k: int | None, top_p: float | None, u: Tensor) -> Tensor:
    """A token a row from logits [N, V], cut down to the most probable ones, by uniforms u [N]: the inverse CDF."""
    p, tokens = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        p = torch.where(torch.arange(p.shape[-1], device=p.device) < top_k, p, 0.0)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None:
        p = torch.where(p.cumsum(-1) - p < top_p, p, 0.0)
    below = p.cumsum(-1)
    place = (below <= u[:, None] * below[:, -1:]).sum(-1)
    place = torch.minimum(place, (p > 0).sum(-1) - 1)  # u times the sum may round to the sum
    return tokens.gather(-1, place[:, None])[:, 0]
