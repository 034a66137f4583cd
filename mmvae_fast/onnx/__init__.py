"""ONNX: export a trained model to a bundle folder, verify it against torch, serve it without torch.

``export_onnx`` and ``verify`` need torch and onnx (extra ``onnx``); ``Runtime`` needs NumPy and onnxruntime only (extra
``runtime``). Everything loads on first use, so importing this package imports none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmvae_fast.onnx.errors import (
        BadDtype,
        BadShape,
        BadValue,
        BundleError,
        ExportError,
        ExportVerificationError,
        InferenceTimeout,
        InputError,
        MissingInput,
        NonFinite,
        UnknownModality,
    )
    from mmvae_fast.onnx.export import ExportResult, export_onnx
    from mmvae_fast.onnx.manifest import Manifest
    from mmvae_fast.onnx.noise import philox_normal
    from mmvae_fast.onnx.quantize import QuantizationError, QuantizeResult, quantize_onnx
    from mmvae_fast.onnx.report import Report
    from mmvae_fast.onnx.runtime import Posterior, Runtime
    from mmvae_fast.onnx.translation import decompositions, translation_table
    from mmvae_fast.onnx.verification import verify

__all__ = [
    "BadDtype",
    "BadShape",
    "BadValue",
    "BundleError",
    "ExportError",
    "ExportResult",
    "ExportVerificationError",
    "InferenceTimeout",
    "InputError",
    "Manifest",
    "MissingInput",
    "NonFinite",
    "Posterior",
    "QuantizationError",
    "QuantizeResult",
    "Report",
    "Runtime",
    "UnknownModality",
    "decompositions",
    "export_onnx",
    "philox_normal",
    "quantize_onnx",
    "translation_table",
    "verify",
]

_HOME = {
    "ExportResult": "export",
    "Manifest": "manifest",
    "Posterior": "runtime",
    "QuantizationError": "quantize",
    "QuantizeResult": "quantize",
    "Report": "report",
    "Runtime": "runtime",
    "decompositions": "translation",
    "export_onnx": "export",
    "philox_normal": "noise",
    "quantize_onnx": "quantize",
    "translation_table": "translation",
    "verify": "verification",
}  # the rest are errors


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"mmvae_fast.onnx.{_HOME.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'mmvae_fast.onnx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
