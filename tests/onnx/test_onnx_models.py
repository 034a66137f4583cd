"""Every model, taken apart and put together by the Runtime, against its own methods; and traced, the slow way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import MODELS, modalities  # tests/models
from eager import Eager

from mmvae_fast.onnx import Manifest, export_onnx, verification
from mmvae_fast.onnx.export import cpu_copy
from mmvae_fast.onnx.report import Record, Report
from mmvae_fast.systems import Autoencoder

EVERY = {**MODELS, "Autoencoder": lambda: Autoencoder(modalities(), 5)}
ALIKE = {
    "BetaVAE",
    "IWAE",
    "IWAE dreg",
    "IWAE stl",
    "MVAE+2",
    "MMVAE tight",
    "MMVAE iwae tight",
    "MMVAE stl",
    "TELBO 2",
}


def make(name):
    torch.manual_seed(3)
    model = EVERY[name]()
    with torch.no_grad():  # priors and flows that differ from where training begins
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return cpu_copy(model)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ALIKE])
@torch.no_grad()
def test_the_parts_put_together_are_the_model(name):
    model, record = make(name), Record(rtol=1e-4, atol=1e-5)
    runtime = Eager(model)
    described = replace(runtime.manifest, files={part.file: "0" * 64 for part in runtime.manifest.parts.values()})
    assert Manifest.from_json(json.loads(described.dumps())) == described
    verification._compare_runtime(runtime, model, record, np.random.default_rng(0))
    report = Report(record.checks(), 1e-4, 1e-5)
    assert report.passed, str(report)
    assert {c.part for c in report.checks} >= {"Runtime.encode", "Runtime.posterior_sample", "Runtime.reconstruct"}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EVERY))
def test_every_model_is_exported(name, tmp_path):
    assert export_onnx(make(name), tmp_path / "bundle").report.passed
