"""Exporting takes about a second a file, so bundles are made once a session; tests that damage one work on a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="needs the 'onnx' extra")
pytest.importorskip("onnxscript", reason="needs the 'onnx' extra")
pytest.importorskip("onnxruntime", reason="needs the 'runtime' extra")

from mmvae_fast.modalities import Audio, Image, Text, Vector
from mmvae_fast.models import MVAE, MoPoE
from mmvae_fast.onnx import Runtime, export_onnx

WORDS = ["a", "drawing", "of", "zero", "one", "größe"]
LATENT = 6


class ConvEncoder(nn.Module):
    """A network of one's own: convolution, batch norm, dropout and a mean over negative axes."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 2 * latent_dim)

    def forward(self, x):
        return self.head(self.conv(x).mean((-2, -1))).chunk(2, -1)


def make_mopoe() -> MoPoE:
    torch.manual_seed(0)
    modalities = {
        "image": Image((1, 5, 4), hidden=(16,)),
        "text": Text(WORDS, 3, hidden=(16,), embedding_dim=4),
        "audio": Audio((4, 3), hidden=(16,)),
    }
    return MoPoE(modalities, LATENT)


def make_mvae() -> MVAE:
    torch.manual_seed(1)
    photo = Image((3, 8, 8), likelihood="laplace", hidden=(16,), encoder=ConvEncoder(LATENT))
    model = MVAE({"photo": photo, "table-2": Vector(5, hidden=(8,))}, LATENT)
    for _ in range(3):  # batch-norm statistics that differ from the defaults
        model.encoders["photo"](1 + 2 * torch.randn(16, 3, 8, 8))
    return model


@pytest.fixture(scope="session")
def mopoe(tmp_path_factory) -> SimpleNamespace:
    model = make_mopoe()
    result = export_onnx(model, tmp_path_factory.mktemp("bundles") / "mopoe")
    return SimpleNamespace(model=model.eval(), folder=result.folder, result=result, runtime=Runtime.load(result.folder))


@pytest.fixture(scope="session")
def mvae(tmp_path_factory) -> SimpleNamespace:
    model = make_mvae().train()
    result = export_onnx(model, tmp_path_factory.mktemp("bundles") / "mvae")
    still_training = model.training
    return SimpleNamespace(
        model=model.eval(),
        untouched=make_mvae(),
        still_training=still_training,
        folder=result.folder,
        result=result,
        runtime=Runtime.load(result.folder),
    )


@pytest.fixture
def runtime(mopoe) -> Runtime:
    """Fresh: nothing loaded yet."""
    return Runtime.load(mopoe.folder)


@pytest.fixture
def copied(mopoe, tmp_path) -> Path:
    """A copy of the MoPoE bundle, to be damaged."""
    return Path(shutil.copytree(mopoe.folder, tmp_path / "bundle"))


@pytest.fixture
def make_inputs() -> Callable[..., dict[str, np.ndarray]]:
    def make(rows: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            "image": rng.random((rows, 1, 5, 4), dtype=np.float32),
            "text": rng.integers(0, len(WORDS) + 2, (rows, 3)),
            "audio": rng.standard_normal((rows, 4, 3), dtype=np.float32),
        }

    return make
