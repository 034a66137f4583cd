"""One row out for every row in, in order; done once; whatever interrupts or is wrong in a cell."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from mmvae_fast.onnx import embedding, values
from mmvae_fast.onnx.embedding import Job, embed_file

pa = pytest.importorskip("pyarrow", reason="needs the 'data' extra")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 11


@pytest.fixture
def source(mopoe, tmp_path, make_inputs):
    """Pictures as bytes or nothing, texts or nothing, sounds as flat or nested lists; and what the arrays are."""
    pytest.importorskip("PIL", reason="needs the 'image' extra")
    inputs = make_inputs(ROWS)
    pictures = [{"bytes": values.png(x), "path": None} if row % 3 else None for row, x in enumerate(inputs["image"])]
    inputs["image"] = np.round(inputs["image"] * 255).astype(np.float32) / np.float32(255)
    words = [" ".join(["one", "zero", "cat"][: 1 + row % 3]) if row % 2 else None for row in range(ROWS)]
    inputs["text"] = mopoe.runtime.tokenize([text or "" for text in words])
    sounds = [x.reshape(-1).tolist() for x in inputs["audio"]]
    table = pa.table({"key": [f"k{row}" for row in range(ROWS)], "image": pictures, "text": words, "audio": sounds})
    path = tmp_path / "data" / "part.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=4)
    masks = {"image": [p is not None for p in pictures], "text": [w is not None for w in words]}
    return path, inputs, {name: np.array(mask) for name, mask in masks.items()}


def job(source, target, **options) -> Job:
    columns = {"image": "image", "text": "text", "audio": "audio"}
    return Job(str(source), str(target), **{"columns": columns, "batch_rows": 5, **options})


def latents(path) -> np.ndarray:
    table = pq.read_table(path)
    return np.stack([table[f"z_{d}"].to_numpy() for d in range(6)], 1)


def test_every_row_in_order_with_what_it_has(mopoe, source, tmp_path):
    path, inputs, mask = source
    done = embed_file(mopoe.runtime, job(path, tmp_path / "out" / "z.parquet", keep=["key"]))
    assert (done.rows, done.faults, done.skipped) == (ROWS, 0, False)
    table = pq.read_table(tmp_path / "out" / "z.parquet")
    assert table.column_names == ["key", *(f"z_{d}" for d in range(6))]
    assert table["key"].to_pylist() == [f"k{row}" for row in range(ROWS)]
    expected = mopoe.runtime.encode(inputs, mask).mu
    np.testing.assert_allclose(latents(tmp_path / "out" / "z.parquet"), expected, rtol=1e-4, atol=1e-5)


def test_what_is_done_is_not_done_again_unless_something_changed(mopoe, mvae, source, tmp_path):
    path, _, _ = source
    target = tmp_path / "z.parquet"
    embed_file(mopoe.runtime, job(path, target))
    before = target.stat().st_mtime_ns
    again = embed_file(mopoe.runtime, job(path, target))
    assert again.skipped and again.rows == ROWS and target.stat().st_mtime_ns == before
    assert not embed_file(mopoe.runtime, job(path, target, columns={"audio": "audio"})).skipped
    assert not embed_file(mopoe.runtime, job(path, target)).skipped
    os.utime(path, ns=(1, 1))  # another file of the same name
    assert not embed_file(mopoe.runtime, job(path, target)).skipped
    target.write_bytes(target.read_bytes()[:-10])  # not ours: this one is damaged
    assert not embed_file(mopoe.runtime, job(path, target)).skipped
    assert len(latents(target)) == ROWS


def test_an_interruption_leaves_nothing_half_written(mopoe, source, tmp_path, monkeypatch):
    path, _, _ = source
    calls = []
    read = embedding._read

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(embedding, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_file(mopoe.runtime, job(path, tmp_path / "out" / "z.parquet"))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert embed_file(mopoe.runtime, job(path, tmp_path / "out" / "z.parquet")).rows == ROWS


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("image", b"no picture", "no known format"),
        ("image", {"bytes": b"no picture", "path": None}, "no known format"),
        ("text", "one one one one", "4 words, expected at most 3"),
        ("audio", [1.0, 2.0], r"has shape \[2\], expected \[4, 3\]"),
        ("audio", [float("nan")] * 12, "holds NaN or infinity"),
        ("audio", "nowhere.npy", "'nowhere.npy' is no file"),
    ],
)
def test_bad_cells_are_named_or_counted(mopoe, tmp_path, column, cell, message):
    good = {"image": None, "text": "one", "audio": None}[column]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"other": [1, 2, 3], column: [good, cell, good]}), path)
    with pytest.raises(ValueError, match=rf"in\.parquet: row 2, column '{column}': .*{message}"):
        embed_file(mopoe.runtime, job(path, tmp_path / "z.parquet"))
    assert not (tmp_path / "z.parquet").exists()
    done = embed_file(mopoe.runtime, job(path, tmp_path / "z.parquet", on_error="missing"))
    assert (done.rows, done.faults) == (3, 1)
    np.testing.assert_array_equal(latents(tmp_path / "z.parquet")[1], np.zeros(6))  # the prior's mean
    assert embed_file(mopoe.runtime, job(path, tmp_path / "z.parquet", on_error="missing")).faults == 1


def test_files_beside_the_table(mopoe, tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.save(tmp_path / "sound.npy", x)
    pq.write_table(pa.table({"audio": ["sound.npy"]}), tmp_path / "in.parquet")
    embed_file(mopoe.runtime, job(tmp_path / "in.parquet", tmp_path / "z.parquet"))
    np.testing.assert_allclose(latents(tmp_path / "z.parquet"), mopoe.runtime.encode({"audio": x[None]}).mu, atol=1e-5)


def test_bad_files_and_columns(mopoe, tmp_path):
    path = tmp_path / "in.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"in\.parquet: not a Parquet file"):
        embed_file(mopoe.runtime, job(path, tmp_path / "z.parquet"))
    pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(ValueError, match=r"has columns \['other'\], expected some of image, text, audio"):
        embed_file(mopoe.runtime, job(path, tmp_path / "z.parquet"))
    with pytest.raises(ValueError, match=r"unknown column to keep 'othr' \(did you mean 'other'\?\)"):
        embed_file(mopoe.runtime, job(path, tmp_path / "z.parquet", keep=["othr"]))


def test_an_empty_file_gives_an_empty_file(mopoe, tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    assert embed_file(mopoe.runtime, job(tmp_path / "in.parquet", tmp_path / "z.parquet")).rows == 0
    assert latents(tmp_path / "z.parquet").shape == (0, 6)


def embed(*arguments) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "mmvae_fast", "embed", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_names_what_is_wrong(mopoe, tmp_path):
    out = ["--out", tmp_path / "z"]
    for options in (["--engine", "spark"], ["--keep", "x"], ["--engine", "ray", "--column", "x"],
                    ["--engine", "ray", "--on-error", "ignore"]):  # fmt: skip
        done = embed(mopoe.folder, tmp_path, *out, *options)
        assert done.returncode == 2 and "expected" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_folder_on_ray_and_again(mopoe, source, tmp_path):
    """Started again after half of it is gone, it makes that half; a bad cell ends as one sentence."""
    pytest.importorskip("ray", reason="needs the 'ray' extra")
    pytest.importorskip("typer", reason="needs the 'cli' extra")
    path, _, _ = source
    folder, out = path.parent, tmp_path / "out"
    (folder / "deep").mkdir()
    for n in range(3):
        pq.write_table(pa.table({"text": ["one"] * n, "key": list(range(n))}), folder / "deep" / f"{n}.parquet")
    arguments = [mopoe.folder, folder, "--out", out, "--engine", "ray", "--keep", "key", "--workers", "2"]
    first = embed(*arguments)
    assert first.returncode == 0, first.stderr
    assert "4 files, 14 rows; 0 files were done before" in first.stderr
    assert first.stdout == f"{out}\n"
    assert [len(latents(out / "deep" / f"{n}.parquet")) for n in range(3)] == [0, 1, 2]
    (out / "part.parquet").unlink()
    pq.write_table(pa.table({"text": ["one one one one"]}), folder / "deep" / "bad.parquet")
    second = embed(*arguments[:-4], "--workers", "1")
    assert second.returncode == 1
    assert "bad.parquet: row 1, column 'text'" in second.stderr and "Traceback" not in second.stderr
    third = embed(*arguments[:-4], "--on-error", "missing")
    assert third.returncode == 0, third.stderr
    assert "1 cells could not be read" in third.stderr and len(latents(out / "part.parquet")) == ROWS
