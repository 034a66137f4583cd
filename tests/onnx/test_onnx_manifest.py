"""The manifest, and every way in which a bundle can be damaged or foreign."""

from __future__ import annotations

import json
import shutil

import onnx
import onnxruntime as ort
import pytest

from mmvae_fast import __version__
from mmvae_fast.onnx import BundleError, Manifest, Runtime, manifest


def edit(folder, change) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_says_everything_a_caller_needs(mopoe):
    data = json.loads((mopoe.folder / "manifest.json").read_text(encoding="utf-8"))
    assert (data["format"], data["schema"], data["model"], data["latent_dim"]) == ("mmvae_fast.onnx", 2, "MoPoE", 6)
    image, text, audio = data["modalities"]
    assert [m["name"] for m in data["modalities"]] == list(mopoe.model.modalities)
    assert image["shape"] == [1, 5, 4]
    assert image["likelihood"] == "bernoulli"
    assert text["vocabulary"] == ["<pad>", "<unk>", "a", "drawing", "of", "zero", "one", "größe"]
    assert text["param_shape"] == [3, 8]
    assert text["dtype"] == "int64"
    assert audio["vocabulary"] is None
    assert data["noise"]["generator"] == "philox4x32-10"
    assert data["versions"]["mmvae_fast"] == __version__
    assert data["parts"]["fusion"]["inputs"][3] == {"name": "eps", "dtype": "float32", "shape": ["samples", "batch", 6]}
    on_disk = {f.name for f in mopoe.folder.iterdir()} - {"manifest.json"}
    assert set(data["files"]) == on_disk == {p["file"] for p in data["parts"].values()}


def test_round_trips(mopoe):
    read = manifest.read(mopoe.folder)
    assert read == mopoe.result.manifest
    assert Manifest.from_json(json.loads(read.dumps())) == read


def test_every_file_carries_it(mopoe):
    session = ort.InferenceSession(mopoe.folder / "fusion.onnx", providers=["CPUExecutionProvider"])
    inside = json.loads(session.get_modelmeta().custom_metadata_map["mmvae_fast"])
    assert inside["modalities"] == json.loads(mopoe.result.manifest.dumps())["modalities"]
    assert session.get_modelmeta().producer_name == "mmvae_fast"


def test_no_such_folder(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere.*no such folder"):
        Runtime.load(tmp_path / "nowhere")


def test_foreign_folder(tmp_path):
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        Runtime.load(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe\x00", b"", b"[" * 100_000])
def test_broken_json(copied, text):
    (copied / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json: not valid JSON"):
        Runtime.load(copied)


def drop(key):
    return lambda d: d.pop(key)


def put(value, *path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("other", "format"), "format is 'other', expected 'mmvae_fast.onnx'"),
        (put(1, "schema"), "schema version 1, expected 2"),
        (drop("schema"), "schema version None, expected 2"),
        (drop("latent_dim"), "'latent_dim' is None, expected int"),
        (put(-1, "latent_dim"), "'latent_dim' is -1, expected 1 or more"),
        (put(True, "latent_dim"), "'latent_dim' is True, expected int"),
        (put("x", "modalities"), "'modalities' is 'x', expected list"),
        (put([], "modalities"), "'modalities' is empty"),
        (put(["x"], "modalities"), "a modality is a str, expected an object"),
        (put([0], "modalities", 0, "shape"), r"'shape' is \[0\], expected a list of positive ints"),
        (put("float64", "modalities", 0, "dtype"), "modality 'image' has dtype 'float64'"),
        (put(4, "latent_dim"), r"part 'fusion': inputs are .*'eps', .* 6\]\).* expected .*'eps', .* 4\]\)"),
        (put([2, 5, 4], "modalities", 0, "shape"), r"part '\w+_image': .* expected .*\['batch', 2, 5, 4\]"),
        (
            put("float64", "parts", "decoder_image", "outputs", 0, "dtype"),
            "part 'decoder_image': outputs are .*float64",
        ),
        (put([], "parts", "encoder_text", "inputs"), r"part 'encoder_text': inputs are \[\], expected"),
        (put("mean", "parts", "encoder_text", "outputs", 0, "name"), "part 'encoder_text': outputs are .*'mean'"),
        (put([3, 9], "modalities", 1, "param_shape"), r"'text' has 'param_shape' \[3, 9\].*\[3, 8\]"),
        (put("guess", "posterior"), "'posterior' is 'guess', expected one of 'gaussian', 'mixture', 'flow'"),
        (put(7, "modalities", 0, "code_dim"), r"part 'decoder_image': inputs are .* expected .*'z', .*'batch', 7"),
        (put("pink", "parts", "fusion", "noise", 0, "kind"), "'kind' is 'pink', expected one of 'normal', 'laplace'"),
        (put([], "parts", "fusion", "noise"), "part 'fusion': inputs are .*'eps'.* expected"),
        (put(["x", 1], "notes"), "'notes' is .*expected a list of strings"),
        (put("other", "noise", "generator"), "'noise' is .*'other'.*, expected .*philox4x32-10"),
        (put(["a"], "modalities", 1, "vocabulary"), "modality .text. has 1 words, expected .vocabulary_size. 8"),
        (put(1, "modalities", 1, "gaps"), "'gaps' is 1, expected true or false"),
        (put(None, "modalities", 1, "vocabulary_size"), "modality 'text' has no 'vocabulary_size'"),
        (put("text", "modalities", 0, "name"), "names one twice"),
        (lambda d: d["parts"].pop("fusion"), "'parts' holds .*expected"),
        (lambda d: d["files"].pop("fusion.onnx"), "no SHA-256 for 'fusion.onnx'"),
        (put("abc", "files", "fusion.onnx"), "'files' gives 'abc' for 'fusion.onnx'"),
        (put("../fusion.onnx", "parts", "fusion", "file"), "file name '../fusion.onnx' leaves the bundle"),
        (put("/etc/passwd", "parts", "fusion", "file"), "file name '/etc/passwd' leaves the bundle"),
        (put("..\\fusion.onnx", "parts", "fusion", "file"), "leaves the bundle"),
        (lambda d: d["files"].update({"../x": "0" * 64}), "file name '../x' leaves the bundle"),
    ],
)
def test_inconsistent_manifest(copied, change, message):
    edit(copied, change)
    with pytest.raises(BundleError, match=rf"manifest\.json: .*{message}"):
        Runtime.load(copied)


def test_not_an_object(copied):
    (copied / "manifest.json").write_text("[1, 2]")
    with pytest.raises(BundleError, match="the manifest is a list, expected an object"):
        Runtime.load(copied)


def test_missing_file(copied):
    (copied / "encoder_text.onnx").unlink()
    with pytest.raises(BundleError, match=r"encoder_text\.onnx: missing"):
        Runtime.load(copied)


def test_one_flipped_bit(copied):
    path = copied / "decoder_image.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder_image\.onnx: SHA-256 is .*, expected"):
        Runtime.load(copied)


def rehash(folder, name) -> None:
    edit(folder, put(manifest.sha256(folder / name), "files", name))


def test_garbage_with_the_right_hash(copied, make_inputs):
    (copied / "encoder_image.onnx").write_bytes(b"not a model")
    rehash(copied, "encoder_image.onnx")
    with pytest.raises(BundleError, match=r"encoder_image\.onnx: onnxruntime .* cannot load it"):
        Runtime.load(copied).encode({"image": make_inputs()["image"]})


def test_swapped_parts_with_the_right_hash(copied, make_inputs):
    shutil.copy(copied / "encoder_audio.onnx", copied / "encoder_image.onnx")
    rehash(copied, "encoder_image.onnx")
    with pytest.raises(BundleError, match=r"encoder_image\.onnx: inputs are .*'batch', 4, 3.* expected .*1, 5, 4"):
        Runtime.load(copied).encode({"image": make_inputs()["image"]})


def tampered(folder) -> None:
    """The same file with other weights, which would load and answer."""
    model = onnx.load(folder / "encoder_audio.onnx")
    weight = max(model.graph.initializer, key=lambda i: len(i.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(model, folder / "encoder_audio.onnx")


def deleted(folder) -> None:
    (folder / "encoder_audio.onnx").unlink()


@pytest.mark.parametrize("change", [tampered, deleted])
def test_a_runtime_never_mixes_two_bundles(copied, make_inputs, change):
    """Parts open on first use; by then another export may have taken the bundle's place."""
    runtime, inputs = Runtime.load(copied), make_inputs()
    runtime.encode({"text": inputs["text"]})
    change(copied)
    with pytest.raises(BundleError, match=r"encoder_audio\.onnx: (changed since it was loaded|no longer there)"):
        runtime.encode({"audio": inputs["audio"]})
    runtime.encode({"text": inputs["text"]})  # what was open stays
