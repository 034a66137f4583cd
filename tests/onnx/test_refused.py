"""Models that a bundle has no place for are refused in a sentence, not exported wrongly."""

import pytest

from mmvae_fast.modalities import Language, Vector
from mmvae_fast.models import (
    CRMVAE,
    CVAE,
    JMVAE,
    MHVAE,
    MMJSD,
    MMVAE,
    MVTCAE,
    FusedVAE,
    MMVAEPlus,
    Nexus,
)
from mmvae_fast.onnx import export_onnx
from mmvae_fast.onnx.errors import ExportError

REFUSED = {
    MMVAE: "LearnedScale prior",
    MMJSD: "mixture for a posterior",
    MMVAEPlus: "latents of single modalities",
    JMVAE: "needs more for its posterior",
    MHVAE: "needs more for its posterior",
    Nexus: "needs more for its posterior",
}


def make(cls, **options):
    return cls({"v": Vector(2, hidden=()), "w": Vector(3, hidden=())}, 2, **options)


@pytest.mark.parametrize("cls", REFUSED)
def test_what_a_bundle_has_no_place_for(cls, tmp_path):
    with pytest.raises(ExportError, match=f"{cls.__name__} .*{REFUSED[cls]}"):
        export_onnx(make(cls), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_conditional_model_is_refused(tmp_path):
    with pytest.raises(ExportError, match="needs more for its posterior"):
        export_onnx(make(CVAE, condition=["w"]), tmp_path / "bundle")


@pytest.mark.parametrize("cls", [MVTCAE, CRMVAE])
def test_gaussian_posteriors_of_experts_are_exported(cls, tmp_path):
    assert export_onnx(make(cls), tmp_path / "bundle").report.passed


def test_any_fusion_to_a_gaussian_is_exported(tmp_path):
    for rule in ("weighted product", "wasserstein"):
        assert export_onnx(make(FusedVAE, fusion=rule), tmp_path / rule.replace(" ", "_")).report.passed


def test_text_generated_token_by_token_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    model = MVTCAE({"t": Language.from_texts(["a"], width=4, heads=1), "v": Vector(2)}, 2)
    with pytest.raises(ExportError, match="modality 't' is Language, whose decoder generates token by token"):
        export_onnx(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
