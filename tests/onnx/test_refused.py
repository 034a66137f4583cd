"""Models that a bundle has no place for are refused in a sentence, not exported wrongly."""

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Vector
from mmvae_fast.models import MVTCAE
from mmvae_fast.models.flows import MAF
from mmvae_fast.onnx import export_onnx
from mmvae_fast.onnx.errors import ExportError


def make(names=("v", "w")):
    torch.manual_seed(0)
    return MVTCAE({name: Vector(2, hidden=()) for name in names}, 2)


def test_a_prior_of_ones_own(tmp_path):
    model = make()
    model.prior = MAF(2)
    with pytest.raises(ExportError, match="has a MAF prior, whose draws a bundle does not know"):
        export_onnx(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_posterior_of_ones_own(tmp_path):
    class Odd(nn.Module):
        def forward(self, mus, logvars, mask):
            return torch.distributions.Normal(mus[0], 1.0)

    model = make()
    model.fusion = Odd()
    with pytest.raises(ExportError, match="the posterior is a Normal, expected one of .*'Posterior'"):
        export_onnx(model, tmp_path / "bundle")


def test_metadata_that_is_no_json(tmp_path):
    for metadata in ({"a": object()}, {"a": float("nan")}, 3):
        with pytest.raises(ValueError, match="metadata is .* expected a dict that JSON can hold"):
            export_onnx(make(), tmp_path / "bundle", metadata=metadata)
