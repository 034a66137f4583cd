"""The commands around a bundle: what they print, how they end, and that serving ones need no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer", reason="needs the 'cli' extra")
pytest.importorskip("PIL", reason="needs the 'image' extra")

from typer.testing import CliRunner

from mmvae_fast.cli import app
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.onnx import Runtime, manifest, values


def call(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert "Traceback" not in result.output + result.stderr
    return result


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "x.png"
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4) * 12).save(path)
    return path


@pytest.fixture(scope="module")
def saved(mopoe, tmp_path_factory):
    return mopoe.model.save(tmp_path_factory.mktemp("saved") / "model")


def test_export_then_verify(saved, tmp_path):
    out = tmp_path / "bundle"
    exported = call("export", saved, out)
    assert exported.exit_code == 0, exported.stderr
    assert "ONNX against torch: passed" in exported.output
    assert manifest.is_bundle(out)
    again = call("export", saved, out)
    assert again.exit_code == 1 and "already exists" in again.stderr
    verified = call("verify", out, "--run", saved, "--json")
    assert verified.exit_code == 0
    assert json.loads(verified.output)["passed"] is True


def test_a_run_tells_how_its_data_were_read(saved, tmp_path):
    from mmvae_fast.cli._model import preprocessing

    assert preprocessing(saved) == {}
    (tmp_path / "readers.json").write_text(
        json.dumps({"readers": {"image": {"kind": "image", "fit": "pad", "background": 0.0}, "p": {"kind": "patches"}}})
    )
    assert preprocessing(tmp_path) == {"image": {"kind": "image", "fit": "pad", "background": 0.0}}
    assert call("export", saved, tmp_path / "out", "--sampling", "dice").exit_code == 2


def test_export_options(saved, tmp_path):
    assert call("export", saved, tmp_path / "b", "--layout", "flat").exit_code == 2
    assert call("export", saved, tmp_path / "b", "--layout", "single").exit_code == 2
    assert call("export", saved, tmp_path / "b", "--quantize", "int4").exit_code == 2
    one = call("export", saved, tmp_path / "m.onnx", "--layout", "single", "--rtol", "0.01", "--atol", "0.001")
    assert one.exit_code == 0, one.stderr
    assert "(rtol 0.01, atol 0.001)" in one.output and (tmp_path / "m.onnx").is_file()


def test_verify_fails_on_other_weights(mopoe, saved, tmp_path):
    model = MultimodalVAE.load(saved)
    next(model.decoders["image"].parameters()).data += 0.1
    other = model.save(tmp_path / "other")
    result = call("verify", mopoe.folder, "--run", other)
    assert result.exit_code == 1
    assert "decoder_image" in result.output and "FAILED" in result.output


def test_export_and_verify_name_what_is_no_model(mopoe, tmp_path):
    for args in (["export", tmp_path / "none", tmp_path / "out"], ["verify", mopoe.folder, "--run", tmp_path / "none"]):
        result = call(*args)
        assert result.exit_code == 1 and "no such folder" in result.stderr
    assert not (tmp_path / "out").exists()


def test_inspect(mopoe, copied):
    result = call("inspect", mopoe.folder)
    assert result.exit_code == 0
    assert "MoPoE, 6 latent dimensions" in result.output and "encoder_text.onnx" in result.output
    printed = json.loads(call("inspect", mopoe.folder, "--json").output)
    assert printed == json.loads(mopoe.result.manifest.dumps())
    (copied / "fusion.onnx").write_bytes(b"")
    damaged = call("inspect", copied)
    assert damaged.exit_code == 1 and "fusion.onnx: SHA-256" in damaged.stderr


def test_quantize(mopoe, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", image=rng.random((8, 1, 5, 4), dtype=np.float32))
    result = call("quantize", mopoe.folder, tmp_path / "q", "--limit", 1, "--data", tmp_path / "rows.npz")
    assert result.exit_code == 0, result.stderr
    assert "relative RMS error" in result.output and Runtime.load(tmp_path / "q").latent_dim == 6
    refused = call("quantize", mopoe.folder, tmp_path / "r", "--limit", "0.00001")
    assert refused.exit_code == 1 and "expected at most" in refused.stderr and not (tmp_path / "r").exists()
    for option in (["--preset", "int4"], ["--limit", "0"], ["--limit", "x"]):
        assert call("quantize", mopoe.folder, tmp_path / "r", *option).exit_code == 2
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    bad = call("quantize", mopoe.folder, tmp_path / "r", "--data", tmp_path / "bad.npz")
    assert bad.exit_code == 1 and "not an .npz file" in bad.stderr


def test_bench(mopoe):
    result = call("bench", mopoe.folder, "--batch", 2, "--seconds", "0.01", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.output)
    assert {row["call"] for row in found} >= {"encode", "encode image alone", "decode text", "reconstruct"}
    assert all(row["rows"] == 2 and 0 < row["median_ms"] <= row["p99_ms"] for row in found)
    assert "rows/s" in call("bench", mopoe.folder, "--batch", 1, "--seconds", "0.01").output


def test_run_puts_a_picture_into_words(mopoe, picture):
    pixels = np.arange(20, dtype=np.float32).reshape(1, 1, 5, 4) * 12 / np.float32(255)
    ids = mopoe.runtime.cross_generate({"image": pixels}, "text")
    expected = mopoe.runtime.detokenize(ids)[0]
    for form in (["--image", picture], [f"--image={picture}"], ["--from", f"image={picture}"]):
        result = call("run", mopoe.folder, *form, "--to", "text")
        assert result.exit_code == 0, result.stderr
        assert result.output == f"{expected}\n"


def test_run_writes_pictures_and_arrays(mopoe, tmp_path):
    from PIL import Image

    image = call("run", mopoe.folder, "--text", "a drawing of", "--to", "image", "--out", tmp_path / "made")
    assert image.exit_code == 0, image.stderr
    expected = mopoe.runtime.cross_generate({"text": mopoe.runtime.tokenize(["a drawing of"])}, "image")[0, 0]
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "made.png")) / 255, expected, atol=1 / 255)
    audio = call("run", mopoe.folder, "--text", "zero", "--to", "audio", "--out", tmp_path / "sound")
    assert audio.exit_code == 0
    assert np.load(tmp_path / "sound.npy").shape == (4, 3)
    back = call("run", mopoe.folder, "--audio", tmp_path / "sound.npy", "--text", "zero", "--to", "text")
    assert back.exit_code == 0, back.stderr


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (["--imgae", "x.png", "--to", "text"], 2, "did you mean 'image'"),
        (["--text", "a", "--to", "txet"], 2, "did you mean 'text'"),
        (["--to", "text"], 2, "nothing to start from"),
        (["--text", "--to", "image"], 2, "--text: expected a value"),
        (["--image", "--to=text"], 2, "expected a value"),
        (["--text", "a", "--from", "text=b", "--to", "image"], 2, "given twice"),
        (["--from", "text", "--to", "image"], 2, "expected MODALITY=VALUE"),
        (["stray", "--text", "a", "--to", "image"], 2, "'stray'"),
        (["--text", "a", "--to", "image"], 2, "say with --out"),
        (["--image", "nowhere.png", "--to", "text"], 1, "'nowhere.png' is no file"),
        (["--text", "a a a a", "--to", "text"], 1, "4 words, expected at most 3"),
    ],
)
def test_run_names_what_is_wrong(mopoe, args, code, named):
    result = call("run", mopoe.folder, *args)
    assert result.exit_code == code, result.stderr
    assert named in result.output + result.stderr


def test_serving_commands_need_no_torch(mopoe, picture, tmp_path):
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "onnx", "onnxscript", "lightning"]))
from mmvae_fast.cli import app
for args in (["inspect", {str(mopoe.folder)!r}], ["bench", {str(mopoe.folder)!r}, "--seconds", "0.01", "--batch", "1"],
             ["run", {str(mopoe.folder)!r}, "--image", {str(picture)!r}, "--to", "text"]):
    app(args, standalone_mode=False)
print("ended with", app(["run", "nowhere", "--text", "a", "--to", "text"], standalone_mode=False))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "rows/s" in done.stdout and "ended with 1" in done.stdout and "nowhere: no such folder" in done.stderr


# --- values -----------------------------------------------------------------------------------------------------------


def npy(array) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_read(mopoe, mode):
    import io

    from PIL import Image

    gray = np.full((10, 8), 51, dtype=np.uint8)
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    file = io.BytesIO()
    image.save(file, format="TIFF" if mode == "CMYK" else "PNG")
    found = values.from_bytes(mopoe.runtime, "image", file.getvalue(), "x.png")
    assert found.shape == (1, 1, 5, 4) and found.dtype == np.float32
    if mode != "1":
        np.testing.assert_allclose(found, 0.2, atol=0.005)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("image", b"\x00\x01", "2 bytes of no known format, expected a picture or a .npy array of shape"),
        ("image", b"", "0 bytes of no known format"),
        ("audio", b"[{}]", "is no array of numbers"),
        ("image", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "expected a picture|damaged picture"),
        ("audio", b"\xff\xfe", "no known format, expected a .npy array"),
        ("audio", b"[[1, 2], [3]]", "is no array of numbers"),
        ("audio", b"[" * 100_000, "not valid JSON"),
        ("audio", b'["a", "b"]', "is no array of numbers .*expected a .npy array"),
        ("audio", b"hello", "expected a .npy array"),
        ("audio", npy(np.zeros((4, 3)))[:-1], "95 bytes of data, expected 96"),
        ("audio", npy(np.zeros((4, 3))).replace(b"(4, 3)", b"(4,30)"), "expected 960"),
        ("audio", npy(np.zeros((4, 3))).replace(b"(4, 3), ", b"(9**99)"), "damaged .npy"),
        ("audio", npy(np.array(["a"])), "expected numbers"),
        ("audio", b"\x93NUMPY\x09\x09", "damaged .npy"),
    ],
)
def test_bad_files_are_named(mopoe, name, data, message):
    with pytest.raises(ValueError, match=rf"(?s)modality '{name}'.*({message})"):
        values.from_bytes(mopoe.runtime, name, data, "the file")


def test_a_npy_file_is_never_unpickled(mopoe, tmp_path):
    import io

    class Danger:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    file = io.BytesIO()
    np.save(file, np.array([Danger()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="expected numbers"):
        values.from_bytes(mopoe.runtime, "audio", file.getvalue(), "the file")
    assert not (tmp_path / "owned").exists()


def test_gigapixels_are_refused_before_they_are_decoded(mopoe, monkeypatch, picture):
    monkeypatch.setattr(values, "MAX_PIXELS", 19)
    with pytest.raises(ValueError, match="a picture of 20 pixels, expected at most 19"):
        values.from_bytes(mopoe.runtime, "image", picture.read_bytes(), "x.png")


def test_numbers_and_lists(mvae):
    row = values.from_text(mvae.runtime, "table-2", "1,2,3,4,5.5")
    np.testing.assert_array_equal(row, np.array([[1, 2, 3, 4, 5.5]], dtype=np.float32))
    assert values.as_text(mvae.runtime, "table-2", row[0]) == "1,2,3,4,5.5"
    np.testing.assert_array_equal(values.from_bytes(mvae.runtime, "table-2", b"[1, 2, 3, 4, 5.5]", "x"), row)
    np.testing.assert_array_equal(values.from_list(mvae.runtime, "table-2", [[1, 2, 3, 4, 5.5]]), row)
    with pytest.raises(ValueError, match="holds texts, expected 5 numbers"):
        values.from_list(mvae.runtime, "table-2", ["a"])
    with pytest.raises(ValueError, match=r"is a dict, expected a list of samples"):
        values.from_list(mvae.runtime, "table-2", {})


@pytest.mark.parametrize("command", [["verify", "b", "--run", "r"], ["export", "r", "b"]])
def test_commands_on_the_model_say_that_torch_is_missing(command):
    script = "import sys; sys.modules['torch'] = None; from mmvae_fast.cli import main; main()"
    found = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and found.stderr.startswith("torch is not installed; this command"), found.stderr
    assert "run, bench, embed and serve" in found.stderr
