"""All of a model in one file, for runtimes that know nothing of bundles."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch

from mmvae_fast.modalities import Text, Vector
from mmvae_fast.models import DMVAE, JMVAE
from mmvae_fast.onnx import BundleError, ExportError, Runtime, export, export_onnx, graphs
from mmvae_fast.systems import CycleGAN


def make(cls=DMVAE, **options):
    torch.manual_seed(0)
    return cls({"v": Vector(3, hidden=()), "t": Text(5, 2, hidden=(), embedding_dim=2)}, 4, **options).eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    model = make(private_dim={"v": 2, "t": 0})
    return model, export_onnx(model, tmp_path_factory.mktemp("single") / "m.onnx", layout="single", metadata={"a": 1})


def test_one_file_that_any_runtime_runs(exported):
    model, result = exported
    assert result.report.passed
    assert result.files == [result.folder] and list(result.folder.parent.iterdir()) == [result.folder]
    assert "1 files" in str(result)
    session = ort.InferenceSession(result.folder, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["v", "t", "mask", "eps", "eps_v"]
    about = json.loads(session.get_modelmeta().custom_metadata_map["mmvae_fast"])
    assert about["metadata"] == {"a": 1} and about["parts"]["model"]["noise"][0]["name"] == "eps"
    x = np.array([[1, 2, 3], [np.nan] * 3], np.float32)
    feed = {"v": x, "t": np.array([[1, 2], [3, 0]]), "mask": np.array([[True, False], [False, True]])}
    feed |= {"eps": np.zeros((1, 2, 4), np.float32), "eps_v": np.zeros((2, 2), np.float32)}
    found = dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))
    expected = model.reconstruct({k: torch.from_numpy(feed[k]) for k in "vt"}, torch.from_numpy(feed["mask"]))
    np.testing.assert_allclose(found["prediction_v"], expected["v"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_features_and_seeds_inside(tmp_path):
    model = make(JMVAE, joint_hidden=(3,))
    assert export_onnx(model, tmp_path / "m.onnx", layout="single", sampling="philox").report.passed


def test_the_runtime_serves_bundles(exported):
    with pytest.raises(BundleError, match=r"m\.onnx: "):
        Runtime.load(exported[1].folder)


def test_where_it_goes(exported, tmp_path, monkeypatch):
    model, result = exported
    with pytest.raises(ValueError, match=r"expected a file \*\.onnx"):
        export_onnx(model, tmp_path / "m", layout="single")
    with pytest.raises(ValueError, match="layout is 'flat', expected one of"):
        export_onnx(model, tmp_path / "m", layout="flat")
    with pytest.raises(FileExistsError, match="already exists; pass overwrite=True"):
        export_onnx(model, result.folder, layout="single")

    def interrupt(*_):
        raise KeyboardInterrupt

    before = result.folder.read_bytes()
    monkeypatch.setattr(graphs, "program", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(model, result.folder, layout="single", overwrite=True)
    assert result.folder.read_bytes() == before
    assert export.LAYOUTS == ("bundle", "single")


def test_what_does_not_fit_one_file(tmp_path):
    pair = {"v": Vector(3), "w": Vector(2)}
    with pytest.raises(ExportError, match="a cyclegan has no encoders and decoders; export a bundle"):
        export_onnx(CycleGAN(pair), tmp_path / "m.onnx", layout="single")
    with pytest.raises(ExportError, match=r"modalities \['z'\] are called like other inputs and outputs"):
        export_onnx(DMVAE({"z": Vector(3)}, 2), tmp_path / "m.onnx", layout="single")
    clash = {"a": Vector(3), "prediction_a": Vector(2)}
    with pytest.raises(ExportError, match=r"modalities \['prediction_a'\] are called like other"):
        export_onnx(DMVAE(clash, 2), tmp_path / "m.onnx", layout="single")
