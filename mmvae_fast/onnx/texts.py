"""Text without torch: the tokenizers of a bundle, and drawing a text token by token."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mmvae_fast import _lazy
from mmvae_fast.onnx.errors import BadDtype, BadShape, BadValue, BundleError, InferenceTimeout
from mmvae_fast.onnx.manifest import LanguageSpec
from mmvae_fast.onnx.noise import philox_uniform

_COLD = 1e-6  # a temperature below takes the most probable token, as in Language.generate
_STREAM = 2  # of the noise, as there
_MIN_CHARACTERS, _CHARACTERS_A_TOKEN = 4096, 64  # of a text: more do not fit into the tokens there are


_KNOWN = {
    "model": {"BPE", "WordPiece", "WordLevel", "Unigram"},
    "pre_tokenizer": {
        *("Sequence", "ByteLevel", "Whitespace", "WhitespaceSplit", "Metaspace", "BertPreTokenizer"),
        *("Digits", "Punctuation", "UnicodeScripts", "CharDelimiterSplit", "Split"),
    },
    "decoder": {
        *("Sequence", "ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "Replace", "Strip"),
    },
    "normalizer": {
        *("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Nmt"),
        *("Prepend", "Replace", "Strip"),
    },
    "post_processor": {"Sequence", "ByteLevel", "BertProcessing", "RobertaProcessing", "TemplateProcessing"},
}
"""What takes time in proportion to a text. What is not here, a bundle's author could have run for minutes, take
gigabytes (paddings) or end the library's own code (a damaged table of characters)."""
_MAX_ADDED = 16  # characters that a part may put before a text, or a decoder strip from one


def tokenizer(path: str, text: str) -> Any:
    """Of the ``tokenizers`` library, from its JSON.

    Raises:
        BundleError: not the JSON of one, or of one with parts that could be used to do harm.
    """
    cls = _lazy.require("tokenizers", extra="text").Tokenizer
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not the JSON of a tokenizer ({error})") from error
    if not isinstance(described, dict):
        raise BundleError(f"{path}: not the JSON of a tokenizer (a {type(described).__name__}, expected an object)")
    for part in ("truncation", "padding"):
        if described.get(part) is not None:
            raise BundleError(f"{path}: a tokenizer with {part}, expected none")
    for part, known in _KNOWN.items():
        for kind in _types(described.get(part)):
            if kind.get("type") not in known:
                what = str(kind.get("type"))[:60]
                raise BundleError(f"{path}: a tokenizer with {part} {what!r}, expected some of {sorted(known)}")
            if why := _harmful(kind):
                raise BundleError(f"{path}: a tokenizer with {part} {kind['type']!r} {why}")
    with _ours(f"{path}: not the JSON of a tokenizer"):
        return cls.from_str(json.dumps(described))  # what was checked, whatever was there twice


def _types(part: Any) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer, and what a sequence holds."""
    if isinstance(part, dict):
        yield part if isinstance(part.get("type"), str) else {"type": repr(part.get("type"))}
        for name in ("normalizers", "pretokenizers", "decoders", "processors"):
            listed = part.get(name, [])
            for inner in listed if isinstance(listed, list) else [listed]:
                yield from _types(inner)
    elif part is not None:
        yield {"type": repr(part)}


def _harmful(part: dict[str, Any]) -> str | None:
    """What of a known part's options could run for long or make a text grow without bounds; None if nothing."""
    kind = part["type"]
    if kind in ("Split", "Replace"):
        pattern = part.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) and len(pattern) == 1 else None
        if not isinstance(literal, str) or not literal:
            return "by a pattern, expected one by a plain string"
        if kind == "Replace" and len(str(part.get("content"))) > len(literal):
            return "that makes a text longer, expected one that does not"
    if kind == "Prepend" and len(str(part.get("prepend"))) > _MAX_ADDED:
        return f"of more than {_MAX_ADDED} characters"
    if kind == "Strip" and any(
        type(part.get(end, 0)) is not int or not 0 <= part.get(end, 0) <= _MAX_ADDED for end in ("start", "stop")
    ):
        return f"of more than {_MAX_ADDED} characters"
    return None


@contextmanager
def _ours(what: str) -> Iterator[None]:
    """Of the tokenizers library, which raises plain Exceptions, and for a bug of its own a BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise BundleError(f"{what} ({error})") from error


def tokenize(texts: Any, own: Any, spec: LanguageSpec, length: int, *, truncate: bool, where: str) -> np.ndarray:
    """Texts -> ids int64 [B, length], as ``Language.tokenize``."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise BadDtype(
            f"{where}: got {'one string' if isinstance(texts, str) else texts!r}, expected a list of strings"
        )
    ids = np.full((len(texts), length), spec.pad, dtype=np.int64)
    for row, text in enumerate(texts):
        longest = max(_MIN_CHARACTERS, _CHARACTERS_A_TOKEN * length)
        if len(text) > longest:  # the library holds the interpreter's lock for seconds of a text of megabytes
            if not truncate:
                raise BadShape(f"{where}: text {row} has {len(text)} characters, expected at most {longest}")
            text = text[:longest]
        try:
            text.encode()
        except UnicodeError as error:
            raise BadValue(f"{where}: text {row} is not Unicode text ({error})") from error
        with _ours(f"{where}: the bundle's tokenizer cannot take text {row}"):
            tokens = own.encode(text, add_special_tokens=False).ids
        row_ids = [*(spec.offset + token for token in tokens), spec.end]
        if len(row_ids) > length and not truncate:
            raise BadShape(
                f"{where}: text {row} has {len(row_ids)} tokens, its end included, expected at most {length} "
                "(or pass truncate=True)"
            )
        ids[row, : len(row_ids)] = row_ids[:length]
    return ids


def detokenize(ids: np.ndarray, own: Any, spec: LanguageSpec) -> list[str]:
    """Ids [B, length] -> texts, each up to its end."""
    texts = []
    for row in ids.tolist():
        tokens = row[: row.index(spec.end)] if spec.end in row else row
        kept = [i - spec.offset for i in tokens if i >= spec.offset]
        with _ours("the bundle's tokenizer cannot make a text of tokens"):
            texts.append(own.decode(kept, skip_special_tokens=False))
    return texts


def generate(
    begin: Callable[[], np.ndarray],
    step: Callable[[np.ndarray, int, np.ndarray], Sequence[np.ndarray]],
    rows: int,
    length: int,
    spec: LanguageSpec,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    timeout: float | None = None,
) -> np.ndarray:
    """Ids [rows, length], as ``Language.generate`` draws them.

    Args:
        begin: -> what is remembered before the first token.
        step: the last tokens [rows], their place, what is remembered -> logits [rows, V], what is remembered now.
        timeout: seconds for all of it.

    Raises:
        InferenceTimeout: it took longer.
    """
    _check(temperature, top_k, top_p)
    x = np.full((rows, length), spec.pad, dtype=np.int64)
    greedy = temperature < _COLD
    u = None if greedy else philox_uniform(seed, rows, length, stream=_STREAM)
    going, last = np.ones(rows, dtype=bool), np.full(rows, spec.begin, dtype=np.int64)
    if rows == 0:
        return x
    ends = None if timeout is None else time.monotonic() + timeout
    past = begin()
    for t in range(length):
        if ends is not None and time.monotonic() > ends:
            raise InferenceTimeout(f"generate: stopped at token {t} of {length} after {timeout:g} s, the timeout")
        logits, past = step(last, t, past)
        drawn = logits.argmax(-1) if u is None else draw(logits / np.float32(temperature), top_k, top_p, u[:, t])
        last = np.where(going, drawn, spec.pad)
        x[:, t] = last
        going &= drawn != spec.end
        if not going.any():
            break
    return x


def draw(logits: np.ndarray, top_k: int | None, top_p: float | None, u: np.ndarray) -> np.ndarray:
    """A token a row from logits [N, V], cut down to the most probable ones, by uniforms u [N]: the inverse CDF."""
    e = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float32)
    p = e / e.sum(-1, keepdims=True)
    tokens = np.argsort(-p, axis=-1, kind="stable")
    p = np.take_along_axis(p, tokens, -1)
    if top_k is not None:
        p[:, top_k:] = 0.0
        p = p / p.sum(-1, keepdims=True)
    if top_p is not None:
        p = np.where(p.cumsum(-1) - p < top_p, p, np.float32(0.0))
    below = p.cumsum(-1)
    place = (below <= u[:, None] * below[:, -1:]).sum(-1)
    place = np.minimum(place, (p > 0).sum(-1) - 1)  # u times the sum may round to the sum
    return np.take_along_axis(tokens, place[:, None], -1)[:, 0]


def _check(temperature: Any, top_k: Any, top_p: Any) -> None:
    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    if not number(temperature) or not 0 <= temperature < math.inf:
        raise BadValue(f"generate: temperature is {temperature!r}, expected a number, 0 or more")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise BadValue(f"generate: top_k is {top_k!r}, expected 1 or more")
    if top_p is not None and (not number(top_p) or not 0 < top_p <= 1):
        raise BadValue(f"generate: top_p is {top_p!r}, expected a probability above 0")
