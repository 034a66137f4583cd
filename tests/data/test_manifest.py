"""Manifests: what a cell is, and everything that can be wrong with one."""

import os

import numpy as np
import pytest

from mmvae_fast.data import Manifest, ManifestError
from mmvae_fast.data.image import ImageReader
from mmvae_fast.data.reader import reader_class

arrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")

COLUMNS = {"image": "file", "pair": ["x", "y"]}


@pytest.fixture
def manifest(tmp_path):
    def make(content, columns=COLUMNS, **options):
        path = tmp_path / "data.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Manifest(path, columns, **options)

    return make


def cells(manifest):
    return [tuple(manifest.cell(row, name) for name in manifest.columns) for row in range(len(manifest))]


def test_cells_of_a_csv(manifest):
    found = manifest('\ufefffile,x,y\na.png,1,2\n,,3\n"",,\n"q""\nz, ü",4,\n')
    assert cells(found) == [("a.png", ["1", "2"]), (None, [None, "3"]), (None, None), ('q"\nz, ü', ["4", None])]
    assert list(found.cells("image")) == ["a.png", 'q"\nz, ü']
    assert list(found.cells("image", [0, 1])) == ["a.png"]


def test_cells_of_a_parquet_file(tmp_path):
    table = arrow.table(
        {"file": ["a.png", None], "v": [[1.0, 2.0], None], "n": [float("nan"), 3.0], "digit": [7, None]}
    )
    arrow.parquet.write_table(table, tmp_path / "data.parquet")
    found = Manifest(tmp_path / "data.parquet", {"image": "file", "v": "v", "n": "n"}, label="digit")
    assert cells(found) == [("a.png", [1.0, 2.0], None), (None, None, 3.0)]
    assert found.labels() == ["7", None]


def test_labels_and_columns_of_nobody(manifest):
    content = "file,x,y,digit,note\na,1,2,3,hi\nb,1,2,,\n"
    assert manifest(content, label="digit", ignore=["note"]).labels() == ["3", None]
    assert manifest(content, ignore="all").labels() == [None, None]
    with pytest.raises(ManifestError, match="columns 'digit', 'note' of no modality: name them under data.ignore"):
        manifest(content)


def test_a_partial_manifest_may_lack_modalities_but_not_all(manifest):
    assert cells(manifest("x,y,z\n1,2,3\n", partial=True)) == [(None, ["1", "2"])]
    with pytest.raises(ManifestError, match="no column 'y'"):
        manifest("file,x\na,1\n", partial=True)
    with pytest.raises(ManifestError, match="no column 'file'"):
        manifest("z\n1\n", partial=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty, expected a header"),
        ("\n\n", "is empty, expected a header"),
        ("file,x,y\n", "has no rows"),
        ("file,x,x,y\na,1,2,3\n", "the column 'x' is there 2 times"),
        ("file,x,\na,1,2\n", "column 3 has no name"),
        ("fil,x,y\na,1,2\n", "no column 'file' for the modality 'image'; did you mean 'fil'?"),
        ("file,x,y\na,1,2\nb,1\nc,1,2,3\n", r"rows of another length\n  row 2: 2 cells, expected 3\n  row 3: 4 cells"),
        (b"file,x,y\n\xff\xfe,1,2\n", "not CSV in UTF-8"),
        (b"\x00\x01" * 50, "not CSV in UTF-8|of another length|no column"),
    ],
)
def test_bad_csv_is_one_error(manifest, content, said):
    with pytest.raises(ManifestError, match=said) as error:
        manifest(content)
    assert "data.csv" in str(error.value)


def test_of_many_bad_rows_ten_are_listed(manifest):
    with pytest.raises(ManifestError) as error:
        manifest("file,x,y\n" + "a\n" * 25)
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "  row 10: 1 cells, expected 3 and 15 more"


def test_files_that_are_no_manifests(tmp_path):
    for name, content, said in (
        ("data.txt", b"", "expected a manifest that ends in .csv or .parquet"),
        ("data.parquet", b"not parquet", "not Parquet, or damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ManifestError, match=said):
            Manifest(tmp_path / name, COLUMNS)
    with pytest.raises(ManifestError, match="no such file"):
        Manifest(tmp_path / "none.csv", COLUMNS)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ManifestError, match="is a folder"):
        Manifest(tmp_path / "folder.csv", COLUMNS)


def test_paths_are_from_the_manifest_and_all_bad_ones_are_listed(tmp_path, manifest, monkeypatch):
    (tmp_path / "here.png").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    readers = {"image": ImageReader(size=(2, 2), channels=1)}
    found = manifest("file\nhere.png\n\nfolder\n" + "gone.png\n" * 20, {"image": "file"})
    monkeypatch.chdir(os.sep)  # from where makes no difference
    assert found.resolve("here.png", readers["image"]) == str(tmp_path / "here.png")
    assert found.resolve(np.zeros(2), readers["image"]).shape == (2,)
    with pytest.raises(ManifestError) as error:
        found.check_files(readers)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("data.csv: 21 cells cannot be read")
    assert lines[1] == f"  row 3, file: {tmp_path / 'folder'}: is a folder, expected a file"
    assert lines[2] == f"  row 4, file: {tmp_path / 'gone.png'}: no such file"
    assert lines[11] == "  and 11 more"
    assert len(lines) == 12


@pytest.mark.parametrize("kind", ["image", "patches", "audio", "sequence"])
def test_cells_of_another_type_are_known_before_training(tmp_path, kind):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"x": [3, None, 4], "y": [0, 0, 0]}), tmp_path / "m.parquet")
    manifest = Manifest(tmp_path / "m.parquet", {"x": "x"}, ignore="all")
    with pytest.raises(ManifestError, match="(?s)2 cells cannot be read\n  row 1, x: is a int.*row 3, x: is a int"):
        manifest.check_files({"x": reader_class(kind)()})
    cells = [{"bytes": b"1", "path": None}, {"bytes": None, "path": None}]
    if kind != "sequence":
        parquet.write_table(arrow.table({"x": cells}), tmp_path / "m.parquet")
        with pytest.raises(ManifestError, match="1 cell cannot be read\n  row 2, x: holds neither"):
            Manifest(tmp_path / "m.parquet", {"x": "x"}).check_files({"x": reader_class(kind)()})


def test_a_blank_line_of_one_column_is_an_empty_cell(manifest):
    found = manifest("x\na\n\nb\n", {"x": "x"})
    assert cells(found) == [("a",), (None,), ("b",)]
    assert len(manifest("x,y\n1,2\n\n3,4\n\n", {"x": "x", "y": "y"})) == 2
