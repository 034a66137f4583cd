"""Transformers between token ids and a latent space: an encoder, and a causal decoder that is told z."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STD = 0.1
"""Of what is added to a token at first: its embedding, its position and z weigh the same. Of captions (MNIST pairs, 375
steps), 1.00 were reconstructed this way, 0.28 with 0.02 for the embeddings and PyTorch's own initial weights for z."""


class TransformerEncoder(nn.Module):
    """Token ids [B, length] -> mu, logvar, each [B, latent_dim].

    A learned token in front of the others gathers what they say; its output, through a linear layer, is the posterior.
    Padding is attended by nothing, so it changes nothing; a row of padding alone is legal.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        latent_dim: int,
        *,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        pad: int,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(torch.empty(1 + length, width))  # the first is the gathering token's
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.to_posterior = nn.Linear(width, 2 * latent_dim)
        nn.init.normal_(self.tokens.weight, std=_STD)
        nn.init.normal_(self.positions, std=_STD)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        h = self.dropout(F.pad(self.tokens(ids), (0, 0, 1, 0)) + self.positions)
        if ids.shape[0]:  # nn.MultiheadAttention refuses an empty batch
            h = self.layers(h, src_key_padding_mask=F.pad(ids == self.pad, (1, 0)))
        mu, logvar = self.to_posterior(h[:, 0]).chunk(2, -1)
        return mu, logvar


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values [N, heads, tokens so far, width / heads] of every block."""


class TransformerDecoder(nn.Module):
    """p(x_t | z, x_<t): latents z [N, latent_dim] and token ids x [N, length] -> logits [N, length, vocabulary_size].

    Logits at t depend on z and x_0, ..., x_(t-1) alone: they are those of x_t. As in Optimus, z is heard in two ways:
    added to every token's embedding, and as one more key and value, in front of the tokens', of every block. The output
    layer shares the embeddings' weights; logits of ids that no text holds (``never``) are -inf.

    Word dropout: in training, every token the decoder sees (not those it predicts) is blanked with that probability.
    What it can no longer read there, z has to tell, which keeps the posterior from collapsing. Like any dropout it
    draws from torch's generator.

    :meth:`begin` and :meth:`step` compute the same token by token, every step at the cost of one token.

    Source: Vaswani et al., Attention Is All You Need, 2017; Li et al., Optimus, EMNLP 2020 (memory and embedding);
    Bowman et al., Generating Sentences from a Continuous Space, CoNLL 2016 (word dropout); Press & Wolf, Using the
    Output Embedding to Improve Language Models, EACL 2017 (tied weights).
    """

    impossible: Tensor

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        latent_dim: int,
        *,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        word_dropout: float,
        begin: int,
        never: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.first, self.word_dropout = begin, word_dropout
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blank = nn.Parameter(torch.zeros(width))
        self.from_z = nn.Linear(latent_dim, width)
        self.blocks = nn.ModuleList(Block(width, heads, latent_dim, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.dropout = nn.Dropout(dropout)
        impossible = torch.zeros(vocabulary_size)
        impossible[list(never)] = -torch.inf
        self.register_buffer("impossible", impossible, persistent=False)
        nn.init.normal_(self.tokens.weight, std=_STD)
        nn.init.normal_(self.positions, std=_STD)
        nn.init.normal_(self.from_z.weight, std=_STD / math.sqrt(latent_dim))
        nn.init.zeros_(self.from_z.bias)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        seen = F.pad(x[:, :-1], (1, 0), value=self.first)
        h = self.tokens(seen)
        if self.training and self.word_dropout > 0:
            dropped = torch.rand(x.shape, device=x.device) < self.word_dropout
            dropped = dropped & (torch.arange(x.shape[1], device=x.device) > 0)  # where it begins is no news
            h = torch.where(dropped.unsqueeze(-1), self.blank, h)
        h = self.dropout(h + self.positions + self.from_z(z).unsqueeze(1))
        length = x.shape[1]  # token t attends z, which is key 0, and tokens 0 to t
        causal = torch.ones(length, 1 + length, dtype=torch.bool, device=x.device).tril(1)
        for block, before in zip(self.blocks, self.begin(z), strict=True):
            h, _ = block(h, before, causal)
        return self._logits(h)

    def begin(self, z: Tensor) -> Cache:
        """What every block remembers before the first token: z."""
        return [cast(Block, block).recall(z) for block in self.blocks]

    def step(self, z: Tensor, last: Tensor | None, t: int, cache: Cache) -> Tensor:
        """Logits [N, vocabulary_size] of x_t from x_(t-1) [N] (None at t = 0); adds that token to the cache."""
        if last is None:
            last = torch.full((z.shape[0],), self.first, device=z.device)
        h = self.dropout(self.tokens(last) + self.positions[t] + self.from_z(z)).unsqueeze(1)
        for i, block in enumerate(self.blocks):
            h, cache[i] = block(h, cache[i], None)
        return self._logits(h)[:, 0]

    def _logits(self, h: Tensor) -> Tensor:
        return F.linear(self.norm(h), self.tokens.weight, self.bias + self.impossible)


class Block(nn.Module):
    """Causal self-attention over the tokens and what is remembered before them, then a small MLP; norms come first."""

    def __init__(self, width: int, heads: int, latent_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.memory = nn.Linear(latent_dim, 2 * width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def recall(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [N, latent_dim] as one key and one value, [N, heads, 1, width / heads] each."""
        k, v = self._split(self.memory(z).unsqueeze(1), 2)
        return k, v

    def forward(
        self, h: Tensor, before: tuple[Tensor, Tensor], attended: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Tokens h [N, T, width] that follow the keys and values ``before``; ``attended`` bool [T, before + T], None
        for everything. Returns the tokens, and all keys and values."""
        q, k, v = self._split(self.to_qkv(self.norm_1(h)), 3)
        k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        dropout = self.dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=attended, dropout_p=dropout)
        h = h + F.dropout(self.out(a.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return h + self.mlp(self.norm_2(h)), (k, v)

    def _split(self, h: Tensor, parts: int) -> list[Tensor]:
        """[N, T, parts * width] -> so many [N, heads, T, width / heads]."""
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in h.chunk(parts, -1)]
