"""Texts that are too long, and tokenizers of bundles that anyone may have written."""

from __future__ import annotations

import hashlib
import json
import shutil
import time

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="needs the extras 'onnx' and 'runtime'")
pytest.importorskip("onnxscript", reason="needs the extras 'onnx' and 'runtime'")
pytest.importorskip("tokenizers", reason="needs the 'text' extra")

from mmvae_fast.modalities import Language, Vector
from mmvae_fast.models import MVAE, VAE
from mmvae_fast.onnx import BadShape, BundleError, ExportError, Runtime, export_onnx, texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    text = Language.from_texts(["one two", "three four five"], width=8, heads=1)
    model = MVAE({"text": text, "v": Vector(3, hidden=(8,))}, 4)
    return export_onnx(model, tmp_path_factory.mktemp("tokenizers") / "bundle", verify=False).folder


def test_long_texts_are_refused_before_they_are_encoded(folder):
    runtime = Runtime.load(folder)
    length = runtime.modalities["text"].shape[0]
    text = "a " * 2_000_000
    began = time.perf_counter()
    with pytest.raises(BadShape, match=r"text 0 has 4000000 characters, expected at most \d+"):
        runtime.tokenize([text])
    cut = runtime.tokenize([text], truncate=True)
    assert time.perf_counter() - began < 0.5
    np.testing.assert_array_equal(cut, runtime.tokenize(["a " * length], truncate=True))


SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
REPLACE = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaaaa"}
PADDING = {"strategy": {"Fixed": 2**24}, "direction": "Right", "pad_to_multiple_of": None}
PADDING |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "normalizer 'Precompiled'"),
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 6}}, "normalizer 'Replace'"),
        ({"pre_tokenizer": SPLIT}, "pre_tokenizer 'Split'"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT]}}, "pre_tokenizer 'Split'"),
        ({"decoder": {"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40}}, "decoder 'Strip'"),
        ({"padding": PADDING}, "a tokenizer with padding, expected none"),
        ({"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "[U]"}}, "cannot take text 0"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["x", 0.0]], "byte_fallback": False}}, "text 0"),
        ({"model": []}, "not the JSON of a tokenizer|model"),
    ],
)
def test_hostile_tokenizers_are_our_errors(folder, tmp_path, change, message):
    copy = shutil.copytree(folder, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    file = "tokenizer_text.json"
    data = json.dumps({**json.loads((copy / file).read_text(encoding="utf-8")), **change}).encode()
    (copy / file).write_bytes(data)
    manifest["files"][file] = hashlib.sha256(data).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    began = time.perf_counter()
    with pytest.raises(BundleError, match=message):
        Runtime.load(copy).tokenize(["one two aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"])
    assert time.perf_counter() - began < 5


def word_level():
    from tokenizers import Tokenizer, models, pre_tokenizers

    found = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "▁a": 3}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return found


LLAMA_LIKE = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
}


def test_plain_strings_are_no_patterns():
    described = {**json.loads(word_level().to_str()), **LLAMA_LIKE}
    assert texts.tokenizer("t.json", json.dumps(described)).encode("a b").ids is not None
    longer = {"type": "Replace", "pattern": {"String": "."}, "content": "aa"}
    with pytest.raises(BundleError, match="normalizer 'Replace' that makes a text longer"):
        texts.tokenizer("t.json", json.dumps({**described, "normalizer": longer}))


def test_a_tokenizer_that_no_bundle_may_hold_is_refused_before_the_export(tmp_path):
    described = {**json.loads(word_level().to_str()), "pre_tokenizer": SPLIT}
    language = Language(described, 6, width=8, heads=1, layers=1)
    with pytest.raises(ExportError, match=r"modality 's': .* 'Split' by a pattern.*docs/onnx\.md"):
        export_onnx(VAE({"s": language}, 2), tmp_path / "bundle", verify=False)
    assert not (tmp_path / "bundle").exists()
