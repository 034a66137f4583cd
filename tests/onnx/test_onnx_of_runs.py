"""From a trained run to a bundle that takes and gives what the run's files held, by the command line."""

import csv
import sys

import numpy as np
import pytest
import torch

for module in (
    "onnxscript",
    "onnxruntime",
    "pyarrow",
    "pydantic",
    "yaml",
    "lightning",
    "librosa",
    "soundfile",
    "typer",
):
    pytest.importorskip(module)

import soundfile  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from mmvae_fast.cli import app  # noqa: E402
from mmvae_fast.data.config import read_config  # noqa: E402
from mmvae_fast.data.run import Run, train  # noqa: E402

CONFIG = """
data: {train: train.csv, validation: 0.25, ignore: all}
modalities:
  sound: {kind: audio, sample_rate: 4000, seconds: 0.25, n_mels: 12, n_fft: 128, hop_length: 64, hidden: [8]}
  size: {kind: vector, columns: [height, weight], names: [height, weight], hidden: [8]}
model: {name: MVTCAE, latent_dim: 3}
training: {epochs: 1, batch_size: 8, accelerator: cpu}
out: run
"""

CLASSES = """
data: {train: train.csv, validation: 0.25, label: who, ignore: all}
modalities:
  size: {kind: vector, columns: [height, weight], hidden: [8]}
  series: {kind: sequence, length: 6, hidden: [8]}
model: {name: FusionClassifier, latent_dim: 3}
training: {epochs: 1, batch_size: 8, accelerator: cpu}
out: classes
"""


def call(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, f"{result.stdout} {result.stderr} {result.exception!r}"
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sounds, series, heights and weights of 16 somebodies, and a run of each configuration."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    rows = [("sound", "height", "weight", "series", "who")]
    for i in range(16):
        wave = 0.4 * np.sin(2 * np.pi * (300 + 40 * i) * np.arange(3000) / 11025)
        soundfile.write(folder / f"{i}.wav", wave, 11025)
        np.savetxt(folder / f"{i}.csv", 500 + 10 * rng.standard_normal((6 + i % 3, 2)), delimiter=",")
        size = 170 + 3 * rng.standard_normal(), 70 + 9 * rng.standard_normal()
        rows.append((f"{i}.wav", *size, f"{i}.csv", ("ann", "bob")[i % 2]))
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for name, text in (("config", CONFIG), ("classes", CLASSES)):
        (folder / f"{name}.yaml").write_text(text)
        train(read_config(folder / f"{name}.yaml"), progress=False)
    call("export", folder / "run", folder / "bundle", "--no-verify")
    call("export", folder / "classes", folder / "classes_bundle", "--no-verify")
    return folder


def test_numbers_and_sounds_go_in_and_come_out_in_their_own_units(folder):
    run = Run.load(folder / "run")
    model, readers = run.model.eval(), run.readers
    sound, size = readers["sound"].read(str(folder / "3.wav"))[None], readers["size"].read(["181.5", "90"])[None]

    printed = call("run", folder / "bundle", "--from", f"sound={folder / '3.wav'}", "--to", "size")
    expected = readers["size"].show(model.reconstruct({"sound": sound})["size"][0])
    np.testing.assert_allclose([float(x) for x in printed.split(",")], expected, rtol=1e-5)
    assert expected[0] > 100  # centimetres, not standard deviations

    arguments = ["--to", "sound", "--out", folder / "y.wav", "--seed", 3]
    out = call("run", folder / "bundle", "--from", "size=181.5,90", *arguments)
    assert out.strip() == str(folder / "y.wav")
    wave, rate = soundfile.read(folder / "y.wav")
    expected, expected_rate = readers["sound"].show(model.reconstruct({"size": size})["sound"][0])
    assert rate == expected_rate == 4000 and len(wave) == 1000
    # phases drift apart over sixty iterations from pictures that differ by rounding
    np.testing.assert_allclose(wave, expected / max(1, np.abs(expected).max()), atol=0.03 * np.abs(expected).max())


def test_a_classifier_says_the_class(folder):
    run = Run.load(folder / "classes")
    given = {"size": [["170", "60"]], "series": [str(folder / "2.csv")]}
    batch = {name: torch.stack([run.readers[name].read(cell) for cell in cells]) for name, cells in given.items()}
    shares = run.model.eval().predict_proba(batch)[0].detach().numpy()
    printed = call("run", folder / "classes_bundle", "--size", "170,60", "--series", folder / "2.csv").split()
    assert printed[0] == printed[1] == run.classes[shares.argmax()]
    np.testing.assert_allclose([float(printed[2]), float(printed[4])], sorted(shares, reverse=True), atol=1e-4)
    refused = CliRunner().invoke(app, ["run", str(folder / "bundle"), "--size", "1,2"])
    assert refused.exit_code == 2 and "--to is missing" in refused.stderr


def test_serving_sounds_and_numbers(folder, monkeypatch):
    for module in ("fastapi", "orjson", "httpx2"):
        pytest.importorskip(module)
    from starlette.testclient import TestClient

    from mmvae_fast.onnx import Runtime
    from mmvae_fast.serve import create_app

    runtime = Runtime.load(folder / "bundle")
    x = {"size": runtime.read("size", [[181.5, 90.0]])}
    with TestClient(create_app(folder / "bundle")) as client:
        found = client.post("/v1/encode", json={"inputs": {"size": [[181.5, 90.0]]}}).json()["mu"]
        np.testing.assert_allclose(found, runtime.encode(x).mu, atol=1e-5)
        files = {"sound": (folder / "3.wav").read_bytes()}
        found = client.post("/v1/translate", data={"to": "size"}, files=files).json()["values"]
        expected = runtime.show("size", runtime.cross_generate({"sound": folder / "3.wav"}, "size"))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        made = client.post("/v1/translate", json={"inputs": {"size": [[181.5, 90.0]]}, "to": "sound", "format": "wav"})
        assert made.headers["content-type"] == "audio/wav" and made.content.startswith(b"RIFF")
        assert client.post("/v1/encode", json={"inputs": {"sound": [str(folder / "3.wav")]}}).status_code == 422
        assert client.post("/v1/encode", files={"sound": b"RIFF no sound"}).status_code == 422
        monkeypatch.setitem(sys.modules, "soundfile", None)  # as in an image without the extra
        refused = client.post("/v1/encode", files=files)
        assert refused.status_code == 501 and "mmvae_fast[audio]" in refused.json()["error"]["message"]
        no_sound = {"inputs": {"size": [[1, 2]]}, "to": "size", "format": "wav"}
        assert client.post("/v1/translate", json=no_sound).status_code == 422


def test_embedding_cells_in_their_own_units(folder):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from mmvae_fast.onnx import Runtime
    from mmvae_fast.onnx.embedding import Job, embed_file

    runtime = Runtime.load(folder / "bundle")
    rows = {"size": [[181.5, 90.0], None, [150.0, 50.0]], "sound": ["3.wav", "4.wav", None]}
    parquet.write_table(arrow.table(rows), folder / "rows.parquet")
    embed_file(runtime, Job(str(folder / "rows.parquet"), str(folder / "z.parquet"), {n: n for n in rows}))
    found = np.stack([column.to_numpy() for column in parquet.read_table(folder / "z.parquet").columns], 1)
    given = {"size": runtime.read("size", [[181.5, 90.0], [0.0, 0.0], [150.0, 50.0]]),
             "sound": runtime.read("sound", [str(folder / f"{i}.wav") for i in (3, 4, 4)])}  # fmt: skip
    mask = {"size": np.array([True, False, True]), "sound": np.array([True, True, False])}
    np.testing.assert_allclose(found, runtime.encode(given, mask).mu, atol=1e-5)
