"""The benchmarks of serving run, and compare what computes the same."""

import pytest

pytest.importorskip("onnxscript", reason="needs the 'onnx' extra")
pytest.importorskip("onnxruntime", reason="needs the 'runtime' extra")

from benchmarks import inference


def test_inference_against_torch(capsys):
    options = ["--small", "--no-compile", "--networks", "mlp", "--batches", "2", "--seconds", "0.05"]
    rows = inference.main(options)
    assert [row[1] for row in rows] == ["nothing", "the image", "half"]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 and row[5] == "-" for row in rows)
    assert "eager / Runtime" in capsys.readouterr().out


def test_load_of_a_server(tmp_path, capsys):
    for module in ("fastapi", "uvicorn", "orjson", "prometheus_client", "typer"):
        pytest.importorskip(module, reason="needs the extras 'serve' and 'cli'")
    from benchmarks import serving
    from mmvae_fast.onnx import export_onnx

    folder = export_onnx(inference.mlp(small=True), tmp_path / "bundle", verify=False).folder
    rows = serving.main([str(folder), "--clients", "1", "3", "--seconds", "0.2"])
    assert [row[1] for row in rows] == ["1", "3", "1"] * 2
    assert all(float(row[2]) > 0 and float(row[3]) <= float(row[4]) and row[5] == "0" for row in rows)
    assert "requests/s" in capsys.readouterr().out
