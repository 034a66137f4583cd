"""The registry of readers, and what a missing cell is."""

import math

import pytest

from mmvae_fast.data import READERS, Reader, reader_class
from mmvae_fast.data.reader import is_missing, kinds


@pytest.mark.parametrize(
    ("cell", "missing"),
    [(None, True), ("", True), (" \n", True), (math.nan, True), ([None, ""], True), (0, False), ("0", False),
     (["", "1"], False), (b"", False), (False, False), ("nan", False)],
)  # fmt: skip
def test_missing(cell, missing):
    assert is_missing(cell) is missing


def test_readers_come_by_kind_and_are_imported_when_asked_for():
    assert reader_class("image").__name__ == "ImageReader"
    assert "image" in kinds()
    with pytest.raises(ValueError, match="reader of kind 'smell', expected one of .*'image'"):
        reader_class("smell")
    with pytest.raises(ValueError, match="reader of kind None"):
        Reader.from_config({})
    with pytest.raises(ValueError, match="is a list, expected a dict"):
        Reader.from_config([])
    with pytest.raises(ValueError, match="malformed description of a image reader: .*channels is 7"):
        Reader.from_config({"kind": "image", "channels": 7})


def test_a_kind_names_one_class():
    image = reader_class("image")
    with pytest.raises(ValueError, match="kind 'image' is that of mmvae_fast.data.image.ImageReader already"):

        class Mine(Reader):
            kind = "image"

    assert READERS["image"] is image
