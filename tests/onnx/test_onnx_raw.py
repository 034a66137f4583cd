"""Texts and pictures as they are, read as in training."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from eager import Eager

from mmvae_fast.data.image import ImageReader
from mmvae_fast.modalities import Image, Text, Vector
from mmvae_fast.models import MVTCAE
from mmvae_fast.onnx import BadDtype, BadValue, BundleError, Manifest, Runtime, export_onnx, values
from mmvae_fast.onnx.export import cpu_copy
from mmvae_fast.reading import recipes

pillow = pytest.importorskip("PIL.Image", reason="needs the 'image' extra")


def make(likelihood="bernoulli"):
    torch.manual_seed(0)
    image = Image((3, 6, 8), likelihood=likelihood, hidden=())
    return cpu_copy(MVTCAE({"image": image, "text": Text(["red", "bird"], 3, hidden=()), "v": Vector(2)}, 4))


def served(model, **preprocessing):
    """With pictures read in some way."""
    runtime = Eager(model)
    spec = replace(runtime.modalities["image"], preprocessing=preprocessing or None)
    runtime.modalities = {**runtime.modalities, "image": spec}
    return runtime


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 30, 3)).astype(np.uint8)
    path = tmp_path / "bird.png"
    pillow.fromarray(pixels).save(path)
    return path, pixels


@pytest.mark.parametrize("how", [{}, {"fit": "crop", "background": 0.0}, {"fit": "pad", "background": 0.2}])
def test_pictures_are_read_as_in_training(picture, how):
    path, pixels = picture
    runtime = served(make("normal" if how else "bernoulli"), **how)
    x = ImageReader(size=(6, 8), channels=3, **how).read(path).numpy()[None]
    expected = runtime.encode({"image": x}).mu
    given = [path, str(path), [path], path.read_bytes()]
    for one in given + [pixels[None]] * bool(how):
        np.testing.assert_allclose(runtime.encode({"image": one}).mu, expected, atol=1e-6)


def test_texts():
    runtime = served(make())
    expected = runtime.encode({"text": runtime.tokenize(["red bird", "bird"])}).mu
    np.testing.assert_array_equal(runtime.encode({"text": ["red bird", "bird"]}).mu, expected)
    np.testing.assert_allclose(runtime.encode({"text": "red bird"}).mu, expected[:1], atol=1e-6)


def test_what_is_not_read(picture, tmp_path):
    path, pixels = picture
    with pytest.raises(BadValue, match="does not say how its values were read .*likelihood 'normal'"):
        served(make("normal")).encode({"image": path})
    with pytest.raises(BadDtype, match="'image' has dtype uint8"):
        served(make()).encode({"image": pixels[None]})
    with pytest.raises(BadDtype, match="'v' is str, expected an array of numbers"):
        served(make()).encode({"v": "1,2"})
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadValue, match=r"'image', row 1: .*bad\.png: not an image"):
        served(make()).encode({"image": [path, tmp_path / "bad.png"]})


@pytest.mark.parametrize(
    "preprocessing", [{"v": {}}, {"image": {"fit": "squeeze"}}, {"image": {"background": 2}}, {"x": {}}]
)
def test_bad_preprocessing(preprocessing, tmp_path):
    with pytest.raises(ValueError, match="preprocessing .*expected"):
        export_onnx(make(), tmp_path / "bundle", preprocessing=preprocessing)


# --- every kind, as its reader has it ---------------------------------------------------------------------------------

RATE, NAN = 8000, float("nan")
SOUND = {"sample_rate": RATE, "seconds": 0.25, "n_mels": 24, "n_mfcc": 10, "n_fft": 256, "hop_length": 128}
DOCUMENTS = ["The red bird isn't here, the bird flew.", "A blue bird and a red fish; the sea.", "fish swim in the sea"]

NO_TORCH = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxscript", "lightning"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
import numpy as np
from mmvae_fast.onnx import Runtime
from mmvae_fast.onnx.manifest import Manifest

data, out = sys.argv[1:]
found = json.load(open(data))
runtime = Runtime("nowhere", Manifest.from_json(found["manifest"]))
made = {name: runtime.read(name, cells) for name, cells in found["cells"].items()}
made |= {"bytes of " + n: runtime.read(n, open(found["cells"][n][0], "rb").read()) for n in ("log_mel", "image")}
for name in found["shown"]:
    shown = runtime.show(name, made[name])
    made["shown " + name] = np.stack([wave for wave, rate in shown]) if "mel" in name or "mfcc" in name else shown
assert not {"torch", "onnx"} & set(sys.modules)
np.savez(out, **made)
"""


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A reader of every kind, fitted, and cells on disk that it reads."""
    soundfile = pytest.importorskip("soundfile", reason="needs the 'audio' extra")
    for module in ("librosa", "nltk", "sklearn", "scipy", "tokenizers"):
        pytest.importorskip(module)
    from mmvae_fast.data.reader import reader_class

    folder, rng = tmp_path_factory.mktemp("cells"), np.random.default_rng(0)
    sounds, tables, pictures = [], [], []
    for i, hz in enumerate((440, 700, 900)):
        wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(5000) / 11025)
        sounds.append(str(folder / f"{hz}.{('wav', 'flac', 'wav')[i]}"))
        soundfile.write(sounds[-1], np.stack([wave] * (i + 1), 1), 11025)
        tables.append(str(folder / f"{hz}.csv"))
        np.savetxt(tables[-1], 1000 + 5 * rng.standard_normal((8 + 4 * i, 2)), delimiter=",", header="a,b", comments="")
        pictures.append(str(folder / f"{hz}.png"))
        pillow.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).save(pictures[-1])
    texts = ["a red bird", "a blue bird flies", "größe of birds in the very long text"]
    cells = {
        "image": ("image", {"size": (6, 8), "channels": 3, "fit": "pad", "background": 0.3}, pictures),
        "log_mel": ("audio", {**SOUND, "align": "center"}, sounds),
        "mfcc": ("audio", {**SOUND, "features": "mfcc"}, sounds),
        "size": ("vector", {"names": ["h", "w"]}, [[170.0, 60.0], [NAN, 80.0], [150.0, 45.5]]),
        "year": ("vector", {"standardise": False}, [1990, 2001, 2024]),
        "series": ("sequence", {"length": 10}, tables),
        "padded": ("sequence", {"length": 10, "fit": "pad"}, tables),
        "counts": ("counts", {}, [[0, 3, 1], [2, 2, 0], [7, 0, 0]]),
        "words": ("bag_of_words", {}, DOCUMENTS),
        "weights": ("bag_of_words", {"weighting": "tfidf", "stop_words": "english", "max_words": 5}, DOCUMENTS),
        "custom": ("bag_of_words", {"tokenizer": "wordpunct", "lowercase": False, "stop_words": ["the"]}, DOCUMENTS),
        "text": ("text", {"length": 3}, texts),
    }
    readers = {}
    for name, (kind, options, some) in cells.items():
        readers[name] = reader_class(kind)(hidden=(4,), **options)
        readers[name].fit(some)
    return readers, {name: some for name, (_, _, some) in cells.items()}, folder


def manifest_of(readers):
    """As the exporter writes it."""
    from mmvae_fast.onnx.export import reading

    torch.manual_seed(0)
    model = cpu_copy(MVTCAE({name: reader.modality() for name, reader in readers.items()}, 3))
    read = reading(model, {name: reader.config() for name, reader in readers.items()})
    manifest = Eager(model).manifest
    specs = tuple(replace(m, preprocessing=read[m.name]) for m in manifest.modalities)
    files = {part.file: "0" * 64 for part in manifest.parts.values()}
    return replace(manifest, modalities=specs, files=files)


def test_every_kind_is_read_and_shown_as_its_reader_does_without_torch(every):
    readers, cells, folder = every
    shown = [name for name in readers if name != "text"]
    content = {"manifest": manifest_of(readers).to_json(), "cells": cells, "shown": shown}
    (folder / "data.json").write_text(json.dumps(content))
    args = [sys.executable, "-c", NO_TORCH, str(folder / "data.json"), str(folder / "out.npz")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run(args, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    found = np.load(folder / "out.npz")
    for name, reader in readers.items():
        expected = torch.stack([reader.read(cell) for cell in cells[name]])
        np.testing.assert_allclose(found[name], expected.numpy(), atol=1e-6, err_msg=name)
        assert found[name].dtype == expected.numpy().dtype and not (expected == expected[:1]).all()
        if name in shown:
            back = [reader.show(x) for x in expected]
            back = [wave for wave, _ in back] if isinstance(back[0], tuple) else back
            if isinstance(back[0], str):
                # words of equal weight come in any order
                assert [set(t.split()) for t in found["shown " + name].tolist()] == [set(t.split()) for t in back]
            else:
                np.testing.assert_allclose(found["shown " + name], np.stack(back), rtol=1e-5, atol=1e-4, err_msg=name)
    for name in ("log_mel", "image"):
        np.testing.assert_allclose(found["bytes of " + name][0], readers[name].read(cells[name][0]), atol=1e-6)
    np.testing.assert_allclose(found["shown size"], cells["size"], rtol=1e-6)  # gaps stay gaps


def test_the_tokens_of_a_language_reader():
    pytest.importorskip("tokenizers")
    from mmvae_fast.data.reader import reader_class

    texts = ["a red bird", "größe", "a text that is much too long for its place"]
    reader = reader_class("language")(length=8, vocabulary_size=300, width=8, layers=1, heads=2)
    reader.fit(texts)
    modality = reader.modality()
    runtime = Eager(cpu_copy(MVTCAE({"t": modality, "v": Vector(2)}, 3)))
    with pytest.raises(ValueError, match="expected at most 8"):
        runtime.read("t", texts)
    how = recipes.of_reader(reader.config(), "language")
    runtime = Eager(cpu_copy(MVTCAE({"t": modality, "v": Vector(2)}, 3)))
    runtime.modalities = {**runtime.modalities, "t": replace(runtime.modalities["t"], preprocessing=how)}
    expected = torch.stack([reader.read(text) for text in texts]).numpy()
    np.testing.assert_array_equal(runtime.read("t", texts), expected)
    assert runtime.show("t", expected) == modality.detokenize(torch.from_numpy(expected))
    assert runtime.encode({"t": texts}).mu.shape == (3, 3)


@pytest.fixture
def reading(every):
    """A Runtime that reads every kind."""
    readers, cells, _ = every
    return Runtime("nowhere", Manifest.from_json(json.loads(manifest_of(readers).dumps()))), cells


def test_raw_values_that_are_wrong(reading, tmp_path):
    runtime, _ = reading
    (tmp_path / "bad.wav").write_bytes(b"RIFF no sound")
    for name, raw, message in (
        ("size", [[1.0, 2.0], [1.0]], "'size', row 1: has 1 numbers, expected 2"),
        ("size", [[1.0, "tall"]], "entry 2 of 2 is 'tall', expected a number"),
        ("size", 3.5, "expected a list of raw values"),
        ("size", [[1e300, 2.0]], "holds inf"),
        ("year", [NAN], "holds nan"),
        ("counts", [[1, 2, 2.5]], "entry 3 of 3 is 2.5, expected a whole number"),
        ("series", [np.zeros((4, 3))], "has 3 channels, expected 2"),
        ("series", ["no.csv"], "no.csv: no such file"),
        ("log_mel", [str(tmp_path / "bad.wav")], "bad.wav: not a sound file"),
        ("log_mel", (np.zeros(10), 0), "rate is 0, expected a positive integer"),
        ("words", [3], "is a int, expected text"),
    ):
        with pytest.raises(ValueError, match=message):
            runtime.read(name, raw)
    with pytest.raises(ValueError, match="no modality 'sizes'|unknown modality 'sizes'|'sizes'"):
        runtime.read("sizes", [1])
    one, two = runtime.read("log_mel", (np.ones(100), RATE)), runtime.read("log_mel", [(np.ones(100), RATE)] * 2)
    np.testing.assert_array_equal(np.concatenate([one, one]), two)
    np.testing.assert_array_equal(runtime.read("words", DOCUMENTS[0]), runtime.read("words", DOCUMENTS[:1]))
    copy = pickle.loads(pickle.dumps(runtime))  # after it has made a vectorizer, which does not pickle
    np.testing.assert_array_equal(copy.read("words", DOCUMENTS), runtime.read("words", DOCUMENTS))


def test_what_comes_from_outside_is_in_its_own_units_and_never_a_path(reading, every, tmp_path):
    runtime, cells = reading
    readers = every[0]
    row = runtime.read("size", [[3.5, 7.0]])
    for made in (
        values.from_text(runtime, "size", "3.5,7"),
        values.from_list(runtime, "size", [[3.5, 7]]),
        values.from_bytes(runtime, "size", b"[3.5, 7]", "x"),
        values.from_bytes(runtime, "size", b"[[3.5, 7]]", "x"),
        values.from_bytes(runtime, "size", b"h,w\n3.5,7\n", "x"),
    ):
        np.testing.assert_array_equal(made, row)
    assert np.isnan(values.from_text(runtime, "size", ",7")[0, 0])
    assert values.as_text(runtime, "size", row[0]) == "3.5,7"
    assert values.plain(runtime, "size", row).tolist() == [pytest.approx([3.5, 7.0], rel=1e-5)]
    path = values.write(runtime, "size", row[0], tmp_path / "row")
    assert path.read_text().startswith("h,w\n3.5")
    np.testing.assert_allclose(values.from_text(runtime, "size", str(path)), row, atol=1e-5)
    series = runtime.read("series", cells["series"][:1])
    np.testing.assert_array_equal(values.from_text(runtime, "series", cells["series"][0]), series)
    with open(cells["series"][0], "rb") as file:
        np.testing.assert_array_equal(values.from_bytes(runtime, "series", file.read(), "x"), series)
    for name, one in (("series", cells["series"][0]), ("log_mel", cells["log_mel"][0]), ("image", cells["image"][0])):
        for rows in ([one], [one, [[1.0, 2.0]]]):
            with pytest.raises(ValueError, match=f"'{name}'"):
                values.from_list(runtime, name, rows)
    sound = values.from_text(runtime, "log_mel", cells["log_mel"][0])
    np.testing.assert_allclose(sound[0], readers["log_mel"].read(cells["log_mel"][0]).numpy(), atol=1e-6)
    assert values.write(runtime, "log_mel", sound[0], tmp_path / "y").suffix == ".wav"
    with pytest.raises(ValueError, match="'log_mel'.*(from it)"):
        values.from_bytes(runtime, "log_mel", b"RIFF", "it")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("size", {"mean": [0.0]}, "shapes"),
        ("size", {"mean": [0.0, 0.0, 0.0], "sd": [1.0] * 3, "names": None}, r"shape \[2\], expected \[3\]"),
        ("size", {"sd": [1.0, 0.0]}, "sd positive"),
        ("size", {"sd": [1.0, 10**400]}, "list of finite numbers"),
        ("size", {"mean": [0.0, NAN]}, "finite"),
        ("size", {"names": ["h"]}, "names holds 1, expected 2"),
        ("size", {"unheard": 1}, "'unheard' is unknown"),
        ("series", {"fit": "stretch"}, "fit is 'stretch', expected one of"),
        ("log_mel", {"n_fft": 2**40}, "n_fft is 1099511627776, expected"),
        ("log_mel", {"n_fft": 2**20, "n_mels": 2**20}, r"n_mels \* n_fft"),
        ("log_mel", {"seconds": 1e5}, "recordings: shape"),
        ("log_mel", {"seconds": "1"}, "seconds is '1', expected a number"),
        ("log_mel", {"fmax": 1e5}, "expected a band below half"),
        ("log_mel", {"iterations": 10**9}, "iterations is"),
        ("mfcc", {"mean": None}, "mean and sd are expected of cepstra"),
        ("weights", {"idf": [1.0]}, r"idf: shape \[1\], expected \[5\]"),
        ("words", {"stop_words": [3]}, "stop_words is"),
        ("text", {"too_long": "wrap"}, "too_long is 'wrap'"),
        ("image", {"background": 2}, "background is 2"),
    ],
)
def test_a_recipe_from_outside_is_checked(every, name, change, message):
    data = json.loads(manifest_of(every[0]).dumps())
    (spec,) = (m for m in data["modalities"] if m["name"] == name)
    spec["preprocessing"] |= change
    with pytest.raises(BundleError, match=f"'preprocessing' of modality '{name}': .*{message}"):
        Manifest.from_json(data)


def test_readers_that_a_bundle_cannot_repeat():
    assert not recipes.is_readable("patches")
    lag = {"kind": "lag", "standardise": True, "rates": None, "fitted": {"mean": [0.5], "sd": [2.0]}}
    assert recipes.of_reader(lag, "vector") == {"mean": [0.5], "sd": [2.0], "names": ["lag"]}
    with pytest.raises(ValueError, match="not fitted"):
        recipes.of_reader({"kind": "vector", "fitted": None}, "vector")
    with pytest.raises(ValueError, match="kind 'vector', expected one of kind 'audio'"):
        recipes.of_reader({"kind": "vector"}, "audio")
    aligned = recipes.make("sequence", {"mean": [0.0], "sd": [1.0], "align_to": "video"}, (4, 1))
    with pytest.raises(ValueError, match="into step with 'video'"):
        aligned.read([1.0, 2.0], (4, 1))
