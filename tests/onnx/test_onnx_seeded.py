"""Noise made inside the graphs: the same as NumPy's, for every kind, from a seed alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from mmvae_fast.modalities import Vector
from mmvae_fast.models import CMVAE
from mmvae_fast.onnx import Runtime, export_onnx, noise
from mmvae_fast.onnx.manifest import NoiseSpec
from mmvae_fast.onnx.seeded import seed_graph

SHAPES = {
    "normal": ["samples", "batch", 6],
    "laplace": ["samples", "batch", 9],
    "uniform": ["samples", "batch"],
    "uniform_of_samples": ["samples", "batch"],
    "rows": ["batch", 5],
}


def program(name, opset):
    """noise, x [batch, 2] -> the noise as it is."""
    ir = pytest.importorskip("onnx_ir")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["noise"], ["out"])],
        "g",
        [value("x", 1, ["batch", 2]), value("noise", 1, SHAPES[name])],
        [value("out", 1, SHAPES[name])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    made = ir.from_proto(model)
    kind = "normal" if name == "rows" else name
    seed_graph(made, [NoiseSpec("noise", kind, branch=3)])
    return ort.InferenceSession(ir.to_proto(made).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("name", SHAPES)
def test_the_graphs_noise_is_numpys(name, opset):
    session, kind = program(name, opset), "normal" if name == "rows" else name
    for seed, samples, rows in ((0, 1, 1), (2**64 - 1, 3, 7), (2**63, 5, 2), (-5, 2, 300), (7, 2, 0), (7, 0, 4)):
        seed_input, count, one = noise.seeded(seed, samples)
        x = np.zeros((rows, 2), np.float32)
        (found,) = session.run(None, {"x": x, "seed": seed_input, "count": count, "noise_scale": one})
        shape = [{"samples": samples, "batch": rows}.get(d, d) for d in SHAPES[name]]
        np.testing.assert_allclose(found, noise.make(kind, noise.branch(seed, 3), shape), atol=2e-6, rtol=1e-6)
        assert found.shape == tuple(shape)


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_is_left_over(name, capfd):
    program(name, 20)
    assert "Removing initializer" not in "".join(capfd.readouterr())


def test_a_model_with_every_kind_of_noise(tmp_path):
    torch.manual_seed(0)
    model = CMVAE({"v": Vector(2, hidden=())}, 4, n_clusters=3, private_dim=2)
    result = export_onnx(model, tmp_path / "bundle", sampling="philox")
    assert result.report.passed
    runtime = Runtime.load(result.folder)
    assert [t.name for t in result.manifest.parts["prior"].inputs] == ["seed", "count", "noise_scale"]
    for name, x in model.eval().sample(5, seed=8).items():
        np.testing.assert_allclose(runtime.sample(5, seed=8)[name], x.numpy(), rtol=1e-4, atol=1e-5)
    x = {"v": np.ones((3, 2), np.float32)}
    np.testing.assert_array_equal(runtime.reconstruct(x)["v"], runtime.reconstruct(x)["v"])
    assert (runtime.posterior_sample(x, 2) != runtime.posterior_sample(x, 2)).any()


def test_bad_sampling(tmp_path):
    with pytest.raises(ValueError, match="sampling is 'torch', expected one of"):
        export_onnx(CMVAE({"v": Vector(2)}, 2), tmp_path / "bundle", sampling="torch")
