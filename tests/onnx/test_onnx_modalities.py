"""Every kind of data: its networks traced, its predictions served."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eager import Eager

from mmvae_fast.modalities import Audio, BagOfWords, Counts, Image, Language, Sequence, Text, Vector
from mmvae_fast.models import MVTCAE
from mmvae_fast.onnx import NonFinite, Runtime, export_onnx, verification
from mmvae_fast.onnx.export import cpu_copy
from mmvae_fast.onnx.report import Record, Report

SMALL = {"hidden": (5,)}
KINDS = {
    "image": lambda: Image((1, 5, 4), **SMALL),
    "image laplace": lambda: Image((1, 5, 4), likelihood="laplace", **SMALL),
    "image conv": lambda: Image((3, 8, 8), network="conv", width=2),
    "image residual": lambda: Image((1, 9, 7), network="residual", width=2),
    "image batch norm": lambda: Image((1, 8, 8), network="conv", width=2, norm="batch"),
    "image discretized": lambda: Image((1, 5, 4), likelihood="discretized_logistic", **SMALL),
    "audio": lambda: Audio((4, 6), **SMALL),
    "audio conv": lambda: Audio((8, 11), network="conv", width=2),
    "text": lambda: Text(["red", "bird"], 3, embedding_dim=2, **SMALL),
    "bag of words": lambda: BagOfWords(["red", "bird", "größe"], **SMALL),
    "counts": lambda: Counts(4, **SMALL),
    "counts observed": lambda: Counts(4, likelihood="negative_binomial", library="observed", **SMALL),
    "counts zero-inflated": lambda: Counts(4, likelihood="zero_inflated_negative_binomial", **SMALL),
    "sequence lstm": lambda: Sequence(5, 2, hidden=(4, 4)),
    "sequence gru": lambda: Sequence(5, 2, cell="gru", hidden=(4,)),
    "vector": lambda: Vector(3, **SMALL),
    "vector with gaps": lambda: Vector(3, missing=True, **SMALL),
    "language": lambda: Language.from_texts(["a red bird"], width=8, heads=2, layers=1),
}
TRACED = ("sequence lstm", "vector with gaps")  # the others in the slow test


def make(*kinds):
    torch.manual_seed(0)
    if "language" in kinds:
        pytest.importorskip("tokenizers", reason="needs the 'text' extra")
    return cpu_copy(MVTCAE({kind.replace(" ", "_"): KINDS[kind]() for kind in kinds}, 4))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_served_as_the_model_does(kind):
    model, record = make(kind), Record(1e-4, 1e-5)
    verification._compare_runtime(Eager(model), model, record, np.random.default_rng(0))
    assert Report(record.checks(), 1e-4, 1e-5).passed


def test_some_traced(tmp_path):
    result = export_onnx(make(*TRACED), tmp_path / "bundle")
    assert result.report.passed
    runtime = Runtime.load(result.folder)
    gaps = np.array([[1, np.nan, 2]], np.float32)
    assert np.isfinite(runtime.encode({"vector_with_gaps": gaps}).mu).all()
    with pytest.raises(NonFinite, match="'sequence_lstm' holds nan"):
        runtime.encode({"sequence_lstm": np.full((1, 5, 2), np.nan, np.float32)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_exported(kind, tmp_path):
    assert export_onnx(make(kind), tmp_path / "bundle").report.passed
