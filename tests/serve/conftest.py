"""One small bundle, exported once; for servers on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

_NEEDED = ("onnx", "onnxscript", "onnxruntime", "fastapi", "uvicorn", "orjson", "prometheus_client", "PIL")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    for module in (*_NEEDED, "python_multipart"):
        pytest.importorskip(module, reason="needs the extras 'onnx', 'serve' and 'image'")
    from mmvae_fast.modalities import Image, Text, Vector
    from mmvae_fast.models import MVAE
    from mmvae_fast.onnx import export_onnx

    torch.manual_seed(0)
    modalities = {
        "image": Image((1, 5, 4), hidden=(16,)),
        "text": Text(["a", "b", "größe"], 3, hidden=(16,), embedding_dim=4),
        "v": Vector(3, hidden=(8,)),
    }
    return export_onnx(MVAE(modalities, 4), tmp_path_factory.mktemp("serve") / "bundle", verify=False).folder


@pytest.fixture(scope="session")
def runtime(bundle):
    from mmvae_fast.onnx import Runtime

    return Runtime.load(bundle)


@pytest.fixture(scope="session")
def picture() -> bytes:
    from mmvae_fast.onnx import values

    return values.png(np.linspace(0, 1, 20, dtype=np.float32).reshape(1, 5, 4))
