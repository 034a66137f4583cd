"""All of a model as one graph, for runtimes that know nothing of bundles: data in, latents and predictions out.

It computes every encoder and decoder whatever is there; with :class:`~mmvae_fast.onnx.Runtime` use a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmvae_fast import _lazy
from mmvae_fast.onnx import noise
from mmvae_fast.onnx.errors import ExportError
from mmvae_fast.onnx.manifest import (
    FUSION_PART,
    IO,
    SEEDED_INPUTS,
    Interface,
    TensorSpec,
    code_output,
    decoder_part,
    encoder_part,
    features_part,
)
from mmvae_fast.onnx.parts import Part, Taken

MODEL_PART = "model"


class Whole(nn.Module):
    """Data by modality, mask [B, M], noise -> what the fusion gives, and every prediction."""

    def __init__(self, taken: Taken):
        super().__init__()
        self.taken, self.interface = taken, taken.interface
        self.registered = nn.ModuleList(part.module for part in taken.parts.values())
        self.outputs = [t.name for t in taken.parts[FUSION_PART].io.outputs]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        specs, parts = self.interface.modalities, self.taken.parts
        data, mask, drawn = given[: len(specs)], given[len(specs)], given[len(specs) + 1 :]
        experts = [parts[encoder_part(s.name)].module(x) for s, x in zip(specs, data, strict=True)]
        inputs = [_side_by_side([e[i] for e in experts], self.interface.widest) for i in range(2)]
        if any(s.features for s in specs):
            features = [parts[features_part(s.name)].module(x) for s, x in zip(specs, data, strict=True)]
            drawn = (*(torch.stack([f[i] for f in features], 1) for i in range(2)), *drawn)
        found = dict(zip(self.outputs, parts[FUSION_PART].module(*inputs, mask, *drawn), strict=True))
        codes = {s.name: found.get(code_output(s.name), found["point"]) for s in specs if s.decodable}
        predictions = (parts[decoder_part(name)].module(code)[1] for name, code in codes.items())
        return (*found.values(), *predictions)


def _side_by_side(experts: Sequence[Tensor], width: int) -> Tensor:
    """[B, D_m] each -> [B, M, width]."""
    return torch.stack([nn.functional.pad(e, (0, width - e.shape[-1])) for e in experts], 1)


def whole(taken: Taken) -> Part:
    """The part that is everything.

    Raises:
        ExportError: of texts generated token by token, and of systems that are no model.
    """
    if FUSION_PART not in taken.parts:
        raise ExportError(f"layout 'single': a {taken.interface.system} has no encoders and decoders; export a bundle")
    for spec in taken.interface.modalities:
        if spec.tokens is not None and spec.decodable:
            raise ExportError(f"layout 'single': modality {spec.name!r} is generated token by token; export a bundle")
    return Part(Whole(taken), io(taken.interface), tuple(taken.interface.fusion_noise))


def io(interface: Interface) -> IO:
    fusion = interface.io()[FUSION_PART]
    data = [TensorSpec(m.name, m.dtype, ("batch", *m.shape)) for m in interface.modalities]
    predictions = [
        TensorSpec(f"prediction_{m.name}", m.dtype, ("batch", *m.shape)) for m in interface.modalities if m.decodable
    ]
    inside = {"mu", "logvar", "features_mu", "features_logvar"}
    given = [t for t in fusion.inputs if t.name not in inside]
    if clash := {t.name for t in data} & {t.name for t in (*given, *fusion.outputs, *predictions, *SEEDED_INPUTS)}:
        raise ExportError(f"layout 'single': modalities {sorted(clash)} are called like other inputs and outputs")
    return IO((*data, *given), (*fusion.outputs, *predictions))


class SingleFile:
    """The one graph behind the same verbs, as far as ``verify`` needs them."""

    def __init__(self, path: Path, taken: Taken, sampling: str):
        ort = _lazy.require("onnxruntime", extra="runtime")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.taken, self.sampling = taken, sampling

    def run(self, data: dict[str, np.ndarray], mask: np.ndarray, samples: int, seed: int | None) -> dict[str, Any]:
        """All outputs by name."""
        feed: dict[str, Any] = {**data, "mask": mask}
        sizes = {"batch": len(mask), "samples": samples}
        if self.sampling == "philox":
            feed |= dict(zip((t.name for t in SEEDED_INPUTS), noise.seeded(seed, samples), strict=True))
        else:
            shapes = {t.name: t.shape for t in io(self.taken.interface).inputs}
            for n in self.taken.interface.fusion_noise:
                shape = [sizes[d] if isinstance(d, str) else d for d in shapes[n.name]]
                made = (
                    noise.none(n.kind, shape)
                    if seed is None
                    else noise.make(n.kind, noise.branch(seed, n.branch), shape)
                )
                feed[n.name] = made
        names = [o.name for o in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, feed), strict=True))
