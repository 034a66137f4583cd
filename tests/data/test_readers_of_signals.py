"""Readers of recordings, series, numbers, counts and patches: file -> sample -> model -> file, and what they refuse."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvae_fast.data import Reader
from mmvae_fast.data.reader import reader_class
from mmvae_fast.models import MVAE

NAN = float("nan")
RATE = 8000


def again(reader):
    """The reader that comes back from JSON."""
    copy = Reader.from_config(json.loads(json.dumps(reader.config())))
    assert type(copy) is type(reader)
    assert copy.config() == reader.config()
    return copy


def through_a_model(reader, cells):
    """Every cell as a sample of the reader's modality, through an untrained model, and back."""
    x = torch.stack([reader.read(cell) for cell in cells])
    modality = reader.modality()
    modality.check("x", x)
    modality.check_values("x", x)
    predicted = MVAE({"x": modality}, 2).eval().reconstruct({"x": x})["x"]
    modality.check("x", predicted)
    return predicted[0]


def tone(hz, seconds=0.5, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


# --- audio ------------------------------------------------------------------------------------------------------------

SMALL = {"sample_rate": RATE, "seconds": 0.25, "n_mels": 24, "n_mfcc": 10, "n_fft": 256, "hop_length": 128}


@pytest.fixture
def recordings(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs the 'audio' extra")
    pytest.importorskip("librosa", reason="needs the 'audio' extra")
    paths = []
    for i, hz in enumerate((440, 600, 900)):
        wave = tone(hz, 0.5, 11025)
        paths.append(str(tmp_path / f"{hz}.{('wav', 'flac', 'wav')[i]}"))
        soundfile.write(paths[-1], np.stack([wave] * (i + 1), 1), 11025)
    return paths


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("features", ["log_mel", "mfcc"])
def test_audio(recordings, tmp_path, features, network):
    soundfile = pytest.importorskip("soundfile")
    reader = reader_class("audio")(features=features, network=network, scale=0.3, **SMALL)
    assert reader.reads_files
    reader.fit(recordings)
    other = again(reader)
    samples = [reader.read(path) for path in recordings]
    assert samples[0].shape == reader.modality().shape == ((24, 16) if features == "log_mel" else (10, 16))
    assert samples[0].dtype == torch.float32
    assert torch.equal(other.read(recordings[1]), samples[1])
    assert reader.modality().scale == 0.3
    for kind in (Path(recordings[0]).read_bytes(), {"path": recordings[0]}, soundfile.read(recordings[0])):
        torch.testing.assert_close(reader.read(kind), samples[0], atol=2e-3, rtol=0)
    path = other.write(samples[2], tmp_path / "out" / "back.bin")
    assert path == tmp_path / "out" / "back.bin.wav"
    wave, rate = soundfile.read(path)
    assert (rate, len(wave)) == (RATE, 2000)
    strongest = np.abs(np.fft.rfft(wave * np.hanning(2000))).argmax() * RATE / 2000
    # a log-mel filter is about a bin of the spectra wide there; ten cepstra blur them more
    assert abs(strongest - 900) <= (1 if features == "log_mel" else 4) * RATE / SMALL["n_fft"]
    wave, rate = reader.show(through_a_model(reader, recordings))
    assert (rate, wave.shape, wave.dtype) == (RATE, (2000,), np.float32)


def test_cepstra_are_standardised(recordings):
    reader = reader_class("audio")(features="mfcc", **SMALL)
    with pytest.raises(ValueError, match="read of cepstra comes after fit"):
        reader.read(recordings[0])
    reader.fit(recordings)
    every = torch.stack([reader.read(path) for path in recordings])
    torch.testing.assert_close(every.mean((0, 2)), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(every.std((0, 2), correction=0), torch.ones(10), atol=1e-3, rtol=0)


def test_recordings_that_cannot_be_are_refused(recordings, tmp_path):
    reader = reader_class("audio")(**SMALL)
    (tmp_path / "text.wav").write_text("no sound")
    for cell, error, message in (
        (str(tmp_path / "text.wav"), ValueError, r"text\.wav: not a sound file"),
        (str(tmp_path / "none.wav"), FileNotFoundError, "no such file"),
        (b"no sound", ValueError, "the recording: not a sound file"),
        ((np.zeros(0), RATE), ValueError, "recording is empty"),
        ((np.array([NAN]), RATE), ValueError, "NaN"),
        ((tone(440), "fast"), ValueError, "rate is 'fast'"),
        (7, ValueError, "is a int, expected a path"),
    ):
        with pytest.raises(error, match=message):
            reader.read(cell)
    for options, message in (
        ({"features": "wave"}, "features is 'wave'"),
        ({"seconds": 0}, "seconds is 0"),
        ({"n_mels": 0}, "n_mels is 0"),
        ({"fmax": 1e5}, "fmin < fmax"),
        ({"align": "left"}, "align is 'left'"),
        ({"features": "mfcc", "n_mfcc": 99}, "n_mfcc is 99"),
        ({"network": "cnn"}, "network is 'cnn'"),
        ({"iterations": 0}, "iterations is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            reader_class("audio")(**{**SMALL, **options})


# --- series -----------------------------------------------------------------------------------------------------------


def series(n=9, phase=0.0):
    t = np.linspace(0, 1, n)
    return np.stack([10 + np.sin(6 * t + phase), 100 * t], 1)


@pytest.fixture
def files(tmp_path):
    pytest.importorskip("scipy", reason="needs the 'delay' extra")
    np.savetxt(tmp_path / "a.csv", series(), delimiter=",")
    np.savetxt(tmp_path / "b.csv", series(30, 1.0), delimiter=",", header="one,two", comments="")
    np.savetxt(tmp_path / "c.tsv", series(5, 2.0), delimiter="\t")
    np.save(tmp_path / "d.npy", series(9, 3.0))
    return [str(tmp_path / name) for name in ("a.csv", "b.csv", "c.tsv", "d.npy")]


def test_sequence(files, tmp_path):
    reader = reader_class("sequence")(length=9, cell="gru", hidden=[6], scale=0.2, names=["one", "two"])
    assert reader.reads_files
    reader.fit([*files, series().tolist()])
    other = again(reader)
    samples = [reader.read(path) for path in files]
    assert all(x.shape == reader.modality().shape == (9, 2) for x in samples)
    assert reader.modality().config() == other.modality().config()
    assert (reader.modality().cell, reader.modality().hidden, reader.modality().scale) == ("gru", (6,), 0.2)
    assert torch.equal(other.read(series()), samples[0])
    np.testing.assert_allclose(
        reader.show(samples[0]), series(), rtol=1e-5, atol=1e-5
    )  # there and back in its own units
    np.testing.assert_allclose(reader.show(samples[1]), series(9, 1.0), atol=0.1, rtol=0.03)  # of 30 steps, resampled
    np.testing.assert_allclose(reader.show(samples[2])[::2], series(5, 2.0), rtol=1e-5, atol=1e-4)  # of 5
    path = reader.write(samples[0], tmp_path / "back.x")
    assert path.read_text().splitlines()[0] == "one,two"
    torch.testing.assert_close(reader.read(path), samples[0])
    assert reader.show(through_a_model(reader, files)).shape == (9, 2)


def test_the_length_of_a_series(files):
    learned = reader_class("sequence")()
    learned.fit(files)
    assert learned.modality().shape == (30, 2)
    padded = reader_class("sequence")(length=7, fit="pad", standardise=False)
    padded.fit(files)
    np.testing.assert_allclose(padded.read(files[0]), series()[:7], rtol=1e-6)
    np.testing.assert_allclose(padded.read(files[2])[4:], np.repeat(series(5, 2.0)[4:], 3, 0), rtol=1e-6)
    strict = reader_class("sequence")(length=7, fit="error")
    strict.fit(files)
    with pytest.raises(ValueError, match="has 9 steps, expected 7"):
        strict.read(files[0])
    one = reader_class("sequence")(length=4)
    one.fit([[1.0, 2.0, 3.0, 4.0], [5.0]])
    assert one.modality().shape == (4, 1)
    np.testing.assert_allclose(one.show(one.read([5.0])), [[5.0]] * 4, rtol=1e-6)


def test_every_damage_of_an_array_file_is_a_value_error(tmp_path):
    """NumPy's own errors of headers are of many types, and an archive is no array."""
    np.save(tmp_path / "good.npy", series())
    good, path = (tmp_path / "good.npy").read_bytes(), tmp_path / "bad.npy"
    archive = io.BytesIO()
    np.savez(archive, a=series())
    huge = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**10, 2)}
    np.lib.format.write_array_header_1_0(huge, header)
    damaged = [archive.getvalue(), b"PK\x03\x04 no archive", b"", huge.getvalue(), *(good[:n] for n in (3, 7, 9, 60))]
    damaged += [good[:i] + bytes([byte]) + good[i + 1 :] for i in range(8, 70) for byte in (0, 40, 0x27, 0xFF)]
    reader = reader_class("sequence")(length=9)
    reader.fit([series()])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            reader.read(path)  # a byte of the padding may change nothing
        except ValueError as error:
            refused += "bad.npy" in str(error)
    assert refused > 100


def test_series_that_cannot_be_are_refused(files, tmp_path):
    reader = reader_class("sequence")()
    with pytest.raises(ValueError, match="modality comes after fit"):
        reader.modality()
    reader.fit(files)
    contents = {
        "empty.csv": "",
        "header.csv": "a,b\n",
        "ragged.csv": "1,2\n3\n",
        "words.csv": "1,2\n3,four\n",
        "gap.csv": "1,2\n3,nan\n",
        "binary.csv": b"\xff\xfe\x00",
        "broken.npy": b"no array",
        "a.mp4": "1",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name, message in (
        ("empty.csv", "holds no rows of numbers"),
        ("header.csv", "holds no rows of numbers"),
        ("ragged.csv", "row 2 of numbers has 1 columns, expected 2"),
        ("words.csv", "words.csv: could not convert string to float: .*four"),
        ("gap.csv", "step 2, channel 2 is nan"),
        ("binary.csv", "not a text file"),
        ("broken.npy", "not a .npy file of numbers"),
        ("object.npy", "not a .npy file of numbers"),
        ("a.mp4", "expected a .csv, .tsv, .txt or .npy file"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.read(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no such file"):
        reader.read(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="has 3 channels, expected 2"):
        reader.read(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="no table of numbers"):
        reader.read([[1.0], [1.0, 2.0]])
    for options, message in (
        ({"length": 0}, "length is 0"),
        ({"fit": "cut"}, "fit is 'cut'"),
        ({"cell": "rnn"}, "cell is 'rnn'"),
    ):
        with pytest.raises(ValueError, match=message):
            reader_class("sequence")(**options)


# --- numbers ----------------------------------------------------------------------------------------------------------

ROWS = [["1", "10.5", "7"], ["2", "", "7"], [3.0, 8.5, None], np.array([6.0, NAN, 7.0])]


def test_vector(tmp_path):
    reader = reader_class("vector")(names=["a", "b", "c"], hidden=[8], scale=0.5)
    reader.fit(ROWS)
    other = again(reader)
    x = torch.stack([reader.read(row) for row in ROWS])
    modality = reader.modality()
    assert modality.missing
    assert modality.scale == 0.5
    values = np.array([[1, 10.5, 7], [2, NAN, 7], [3, 8.5, NAN], [6, NAN, 7]])
    expected = (values - np.nanmean(values, 0)) / [np.std([1, 2, 3, 6]), 1, 1]  # a constant column is only shifted
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    np.testing.assert_allclose(other.show(x[0]), values[0], rtol=1e-6)
    assert torch.equal(other.read(ROWS[0]), x[0])
    assert reader.write(x[0], tmp_path / "row").read_text() == "a,b,c\n1,10.5,7\n"
    assert reader.show(through_a_model(reader, ROWS)).shape == (3,)


def test_a_vector_without_gaps():
    reader = reader_class("vector")()
    reader.fit(["1", "3"])  # one column
    assert not reader.modality().missing
    assert reader.modality().shape == (1,)
    assert reader.read("3").tolist() == [1.0]
    reader = reader_class("vector")(standardise=False)
    reader.fit([[1, 2], [3, 4]])
    assert reader.read(["5", "6"]).tolist() == [5.0, 6.0]
    for cell, message in (
        (["5", ""], "entry 2 of 2 is missing; set missing: true"),
        (["5", "x"], "entry 2 of 2 is 'x', expected a number"),
        (["inf", "1"], "entry 1 of 2 is 'inf', expected a finite number"),
        (["5"], "has 1 numbers, expected 2"),
        ([], "is an empty list"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.read(cell)
    allowed = reader_class("vector")(missing=True)
    allowed.fit([[1, 2], [3, 4]])
    assert allowed.read(["5", ""]).isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="has 1 numbers a row, expected 2 as before"):
        reader_class("vector")().fit([[1, 2], [3]])
    with pytest.raises(ValueError, match="nothing to learn"):
        reader_class("vector")().fit([])
    with pytest.raises(ValueError, match="names is"):
        reader_class("vector")(names=["a"]).fit([[1, 2]])
    with pytest.raises(ValueError, match="read comes after fit"):
        reader_class("vector")().read("1")
    with pytest.raises(ValueError, match="missing is 'yes'"):
        reader_class("vector")(missing="yes")


def test_means_and_deviations_are_those_of_all_rows():
    from mmvae_fast.data._scale import Scale

    rng = np.random.default_rng(0)
    parts = [1e6 + rng.normal(5, 3, (n, 4)) for n in (1, 40, 7)]
    for part in parts:
        part[rng.random(part.shape) < 0.3] = NAN
    scale, whole = Scale.of(parts), np.concatenate(parts)
    np.testing.assert_allclose(scale.mean, np.nanmean(whole, 0))
    np.testing.assert_allclose(scale.sd, np.nanstd(whole, 0), rtol=1e-8)
    np.testing.assert_allclose(scale.unscaled(scale.scaled(whole)), whole)


def test_counts(tmp_path):
    reader = reader_class("counts")(likelihood="negative_binomial", names=["x", "y"])
    cells = [["3", "0"], [4, 7.0], np.array([1, 2])]
    reader.fit(cells)
    other = again(reader)
    assert other.modality().likelihood == "negative_binomial"
    assert reader.read(cells[1]).tolist() == [4.0, 7.0]
    assert reader.write(reader.read(cells[1]), tmp_path / "c").read_text() == "x,y\n4,7\n"
    assert other.show(through_a_model(reader, cells)).shape == (2,)
    for cell, message in (
        (["1", "-1"], "entry 2 of 2 is -1, expected a whole number"),
        (["1", "0.5"], "entry 2 of 2 is 0.5"),
        (["1", ""], "entry 2 of 2 is missing"),
        (["1", "99999999"], "expected a whole number from 0 to 16777215"),
        (["1"], "has 1 counts, expected 2"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.read(cell)
    with pytest.raises(ValueError, match="has 3 counts, expected 2 as before"):
        reader_class("counts")().fit([[1, 2], [1, 2, 3]])


# --- patches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["words", "pooled"])
def test_patches(tmp_path, features):
    pillow = pytest.importorskip("PIL.Image", reason="needs the 'image' extra")
    digits = pytest.importorskip("sklearn.datasets", reason="needs the 'image' extra").load_digits().images
    cells = []
    for i, image in enumerate(digits[:60]):
        pixels = np.kron((image * 15.9).astype(np.uint8), np.ones((2, 2), np.uint8))
        pillow.fromarray(pixels).save(tmp_path / f"{i}.png")
        cells.append(str(tmp_path / f"{i}.png"))
    reader = reader_class("patches")(features=features, size=5, n_words=6, n_patches=10, hidden=[8])
    assert reader.reads_files
    with pytest.raises(ValueError, match="fit"):
        reader.read(cells[0])
    reader.fit(iter(cells))
    other = again(reader)
    x = torch.stack([reader.read(cell) for cell in cells])
    assert torch.equal(x, torch.stack([other.read(cell) for cell in cells]))
    if features == "words":
        assert x.shape == (60, 6)
        assert (x.sum(1) == 12 * 12).all()
    else:
        assert x.shape == (60, 24)
        torch.testing.assert_close(x.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    pixels = np.asarray(pillow.open(cells[0]))
    file = io.BytesIO()
    pillow.fromarray(pixels).save(file, format="PNG")
    for kind in (pixels, file.getvalue(), {"bytes": file.getvalue(), "path": None}):
        assert torch.equal(reader.read(kind), x[0])
    lines = other.write(x[0], tmp_path / "row").read_text().splitlines()
    assert lines[0].startswith("word1,word2,")
    assert len(lines) == (2 if features == "words" else 5)
    assert reader.show(through_a_model(reader, cells)).shape == x.shape[1:]
    (tmp_path / "text.png").write_text("no image")
    for cell, error, message in (
        (str(tmp_path / "text.png"), ValueError, "not an image"),
        (str(tmp_path / "none.png"), FileNotFoundError, "no such file"),
        (np.zeros((9, 9, 3), np.uint8), ValueError, "expected 1 channels"),
        (np.zeros((4, 4), np.uint8), ValueError, "a patch 5 x 5"),
        (3, ValueError, "is a int, expected the path"),
    ):
        with pytest.raises(error, match=message):
            reader.read(cell)
    for options, message in (
        ({"features": "bag"}, "features is 'bag'"),
        ({"channels": 4}, "channels is 4"),
        ({"n_words": 0}, "n_words is 0"),
        ({"likelihood": "bernoulli"}, "likelihood is 'bernoulli'"),
    ):
        with pytest.raises(ValueError, match=message):
            reader_class("patches")(**options)
