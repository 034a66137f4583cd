"""A Runtime whose parts are the modules that would be exported: all but the tracing, which takes seconds."""

from __future__ import annotations

import torch

from mmvae_fast.onnx import Manifest, Runtime
from mmvae_fast.onnx.manifest import PartSpec
from mmvae_fast.onnx.systems import take_any_apart


class Eager(Runtime):
    def __init__(self, model):
        self.taken = taken = take_any_apart(model)
        parts = {name: PartSpec(f"{name}.onnx", *part.io, part.noise) for name, part in taken.parts.items()}
        super().__init__(
            "nowhere",
            Manifest(
                model=type(model).__name__,
                latent_dim=taken.interface.latent_dim,
                modalities=tuple(taken.interface.modalities),
                parts=parts,
                opset=20,
                ir_version=10,
                versions={},
                system=taken.interface.system,
                condition_dim=taken.interface.condition_dim,
                classes=taken.classes or None,
                posterior=taken.posterior,
                prior=taken.interface.prior,
                context_dim=taken.interface.context_dim,
                notes=taken.notes,
            ),
        )

        tokenizers = {name: getattr(m, "tokenizer", None) for name, m in model.modalities.items()}
        self._tokenizers = {name: own for name, own in tokenizers.items() if own is not None}

    @torch.no_grad()
    def _run(self, part, *values, outputs=None):
        part = self.taken.parts[part]
        found = part.module(*(torch.from_numpy(v) for v in values))
        named = dict(
            zip((t.name for t in part.io.outputs), found if isinstance(found, tuple) else (found,), strict=True)
        )
        for tensor in part.io.outputs:
            assert len(tensor.shape) == named[tensor.name].dim(), f"{part}: {tensor}"
        return [named[name].numpy() for name in outputs or named]
