"""Are the texts that a bundle generates the model's? Token by token, each given those that the bundle drew before it.

So every token is compared, and a near tie, which changes all that follows, is still no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.modalities.language import _STREAM as STREAM
from mmvae_fast.modalities.language import END, PAD, _draw
from mmvae_fast.onnx.manifest import ModalitySpec, begin_part, step_part
from mmvae_fast.onnx.noise import philox_uniform
from mmvae_fast.onnx.parts import Taken
from mmvae_fast.onnx.report import Record
from mmvae_fast.onnx.runtime import Runtime

_ROWS, _MANY = 7, 64
_TEMPERATURE, _SEED = 1.0, 0x9E3779B97F4A7C15


def compare_texts(runtime: Runtime, taken: Taken, model: Any, record: Record, rng: np.random.Generator) -> None:
    """Every part of every text: all ids, all positions, and what the loop around them generates."""
    for spec in runtime.modalities.values():
        if spec.dtype == "int64":
            _compare_ids(runtime, taken, spec, record)
        if spec.tokens is not None and spec.decodable:
            _compare_steps(runtime, taken, spec, record, rng)
            z = rng.standard_normal((_ROWS, spec.code_dim or runtime.latent_dim), np.float32)
            for temperature in (0.0, _TEMPERATURE):
                ids = runtime._tokens(z, spec, temperature=temperature, seed=_SEED)
                add_text(
                    record,
                    ("Runtime.generate", spec.name, f"temperature={temperature:g}, seed={_SEED}"),
                    *(model, torch.from_numpy(z), ids, temperature),
                )


def _compare_ids(runtime: Runtime, taken: Taken, spec: ModalitySpec, record: Record) -> None:
    """The encoders see every id of the vocabulary."""
    assert spec.vocabulary_size is not None
    width = int(np.prod(spec.shape))
    for part in (f"{kind}_{spec.name}" for kind in ("encoder", "features")):
        if part not in taken.parts:
            continue
        ids = np.arange(-(-spec.vocabulary_size // width) * width) % spec.vocabulary_size
        for x in _chunks(ids.reshape(-1, *spec.shape)):
            expected = taken.parts[part].module(torch.from_numpy(x))
            for tensor, e, a in zip(taken.parts[part].io.outputs, expected, runtime._run(part, x), strict=True):
                record.add(part, tensor.name, f"ids {x.min()} to {x.max()}", e, a)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(rows[i : i + _MANY]) for i in range(0, len(rows), _MANY))


def _compare_steps(
    runtime: Runtime, taken: Taken, spec: ModalitySpec, record: Record, rng: np.random.Generator
) -> None:
    """The step graph at every position, after every id of the vocabulary, remembering what the model remembers."""
    assert spec.tokens is not None and spec.vocabulary_size is not None
    name, length, size = step_part(spec.name), spec.shape[0], spec.vocabulary_size
    begin, step = (taken.parts[part].module for part in (begin_part(spec.name), name))
    rows = min(_MANY, max(2, -(-size // length)))
    for first in range(0, max(size, 1), rows * length):
        z = torch.from_numpy(rng.standard_normal((rows + 1, spec.code_dim or runtime.latent_dim), np.float32))
        past = begin(z)
        for t in range(length):
            last = (first + t * rows + torch.arange(rows + 1)) % size
            expected = step(z, last, torch.tensor(t), past)
            batch = rows + (past.shape[3] != rows + 1)  # sizes that differ: one taken for the other would show
            given = (z[:batch], last[:batch], torch.tensor(t), past[:, :batch])
            actual = runtime._run(name, *(np.asarray(x.numpy(), order="C") for x in given))
            kept = (expected[0][:batch], expected[1][:, :batch])
            for tensor, e, a in zip(taken.parts[name].io.outputs, kept, actual, strict=True):
                record.add(name, tensor.name, f"t={t}, B={batch}", e, a, by_row=tensor.name == "logits")
            past = expected[1]


def add_text(
    record: Record,
    where: tuple[str, str, str],
    model: Any,
    z: Tensor,
    actual: np.ndarray,
    temperature: float = 0.0,
) -> None:
    """Ids [..., length] that a bundle generated of codes z [..., C], against the model's choice of every token.

    Args:
        where: part, name of the modality, case.
        temperature: that they were drawn with, by ``_SEED``; 0 for the most probable ones.
    """
    part, name, case = where
    expected_shape = (*z.shape[:-1], *model.modalities[name].shape)
    if actual.shape != expected_shape or actual.dtype != np.int64:
        record.add(part, name, case, torch.zeros(expected_shape, dtype=torch.int64), actual)
        return
    ids = torch.from_numpy(actual.reshape(-1, actual.shape[-1]))
    flat = z.reshape(-1, z.shape[-1])
    if not len(ids):
        return
    size = model.modalities[name].vocabulary_size
    logits = model.decoders[name](flat, ids.clamp(0, size - 1))
    ended = (ids == END).cumsum(-1) - (ids == END).long() > 0
    chosen = logits.argmax(-1) if temperature == 0.0 else _drawn(logits / temperature, ids, record)
    expected = torch.where(ended, PAD, chosen)
    record.add(part, name, case, expected, ids.numpy(), logits)


def _drawn(logits: Tensor, ids: Tensor, record: Record) -> Tensor:
    """The tokens the model draws [N, length]; where a uniform is so close to the edge between two that the tolerance
    does not tell them, the one of them that the bundle drew."""
    rows, length, _ = logits.shape
    u, near = torch.from_numpy(philox_uniform(_SEED, rows, length, stream=STREAM)), record.atol + record.rtol
    flat = logits.flatten(0, 1)
    drawn = [_draw(flat, None, None, (u + shift).clamp(0, 1).flatten()) for shift in (0.0, -near, near)]
    chosen = drawn[0]
    for other in drawn[1:]:
        chosen = torch.where(other == ids.flatten(), other, chosen)
    return chosen.view(rows, length)
