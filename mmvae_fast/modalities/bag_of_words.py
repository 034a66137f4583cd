"""Documents as what words they hold, in no order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvae_fast.modalities.base import Modality
from mmvae_fast.modalities.counts import CountEncoder, shares

WEIGHTINGS = ("counts", "tfidf")


class BagOfWords(Modality):
    """Counts of the words of a vocabulary [B, V], float32; multinomial likelihood (decoder gives logits [N, V]).

    With n = sum_v x_v words in a document, log p(x | z, n) = log n! - sum_v log x_v! + sum_v x_v log softmax(logits)_v:
    the multinomial coefficient is in it, so that the probabilities of all documents of n words sum to 1. How long a
    document is, is given, not explained. An empty document is legal, and has log p = 0. Predictions, for which no n is
    known, are the shares softmax(logits), which sum to 1. The default encoder reads log(1 + x).

    Args:
        vocabulary: the V words, in the order of the columns.
        weighting: "tfidf" for weights in place of counts: log p is then sum_v x_v log softmax(logits)_v, without the
            coefficient, which has no meaning there. That is a weighted log-likelihood, not a probability of the
            weights.

    See :class:`Modality` for the other arguments; ``scale`` has no meaning here.

    Source: Miao, Yu & Blunsom, Neural Variational Inference for Text Processing, ICML 2016.
    """

    kind = "bag_of_words"
    likelihoods = ("multinomial",)

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        weighting: str = "counts",
        likelihood: str = "multinomial",
        **options: Any,
    ) -> None:
        if isinstance(vocabulary, str) or not all(isinstance(word, str) for word in vocabulary):
            raise TypeError("BagOfWords: vocabulary is expected to be a list of words")
        self.words = tuple(vocabulary)
        if not self.words or len(set(self.words)) < len(self.words):
            twice = next((word for i, word in enumerate(self.words) if word in self.words[:i]), None)
            raise ValueError(
                f"BagOfWords: vocabulary {f'holds {twice!r} twice' if self.words else 'is empty'}, expected one word "
                "for every column"
            )
        super().__init__((len(self.words),), likelihood=likelihood, **options)
        if weighting not in WEIGHTINGS:
            raise ValueError(f"BagOfWords: weighting is {weighting!r}, expected one of {WEIGHTINGS}")
        self.weighting = weighting

    def make_encoder(self, latent_dim: int) -> nn.Module:
        return CountEncoder(self.size, self.hidden, latent_dim) if self.encoder is None else self.encoder

    def log_likelihood(self, x: Tensor, params: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | params, n) in nats: x [B, V], logits [..., B, V] -> [..., B]; a missing row counts 0."""
        real = torch.promote_types(params.dtype, torch.float32)
        x = x.to(real)
        if mask is not None:
            x = torch.where(mask[:, None], x, 0.0)
        log_p = (x * F.log_softmax(params, -1, dtype=real)).sum(-1)
        if self.weighting == "counts":
            log_p = log_p + torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
        return log_p if mask is None else torch.where(mask, log_p, 0.0)

    def predict(self, params: Tensor) -> Tensor:
        """The share of every word: logits [..., V] -> [..., V]."""
        return params.softmax(-1)

    def comparable(self, x: Tensor) -> Tensor:
        """The share of every word, [..., V]: predictions know no length of a document."""
        return shares(x)

    def top(self, shares: Tensor, n: int = 10) -> list[list[str]]:
        """The words that weigh most in each row of [B, V], at most ``n``, most first; none that weighs 0."""
        weights, places = shares.topk(min(n, self.size), dim=-1)
        rows = zip(weights.tolist(), places.tolist(), strict=True)
        return [[self.words[i] for w, i in zip(*row, strict=True) if w > 0] for row in rows]

    def check_values(self, name: str, x: Tensor) -> None:
        super().check_values(name, x)
        if not bool((x >= 0).all()) or (self.weighting == "counts" and not bool((x == x.round()).all())):
            expected = "counts" if self.weighting == "counts" else "weights of 0 or more"
            raise ValueError(f"modality {name!r}: holds negative or broken numbers, expected {expected}")

    def config(self) -> dict[str, Any]:
        return {**super().config(), "vocabulary": list(self.words), "weighting": self.weighting}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        options = {key: config[key] for key in ("weighting", "likelihood", "scale", "hidden")}
        return cls(config["vocabulary"], **options, **networks)

    def __repr__(self) -> str:
        return f"BagOfWords({len(self.words)} words, weighting={self.weighting!r})"
