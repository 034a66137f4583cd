"""Streams that were sampled at different times, from a manifest: their lag as a modality, a series without its lag."""

import csv
import json

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="needs the 'delay' extra")
for module in ("pyarrow", "pydantic", "yaml"):
    pytest.importorskip(module, reason="needs the 'data' extra")

from mmvae_fast.data import ManifestError, Reader  # noqa: E402
from mmvae_fast.data.config import ConfigError, read_config  # noqa: E402
from mmvae_fast.data.errors import CellError  # noqa: E402
from mmvae_fast.data.reader import reader_class  # noqa: E402
from mmvae_fast.data.run import Run, train  # noqa: E402

FAST, SLOW, SECONDS = 50.0, 20.0, 8.0
LAGS = [0.3, -0.2, 0.45, 0.1, -0.35, 0.0, 0.25, -0.1]
TRAINING = "training: {epochs: 1, batch_size: 4, accelerator: cpu}\nmodel: {name: MVAE, latent_dim: 2}\nout: run\n"
LAG = "  delay: {kind: lag, columns: [camera, microphone], rates: [50, 20], max_lag: 1, hidden: [4]}\n"
SERIES = "  camera: {kind: sequence, hidden: [4]}\n"
ALIGNED = (
    "  microphone: {kind: sequence, align_to: camera, rates: [20, 50], max_lag: 1, hidden: [4], standardise: false}\n"
)


def scene(t, row):
    """What happens in front of camera and microphone: 20 waves of 0.3 to 3 Hz."""
    rng = np.random.default_rng(row)
    waves = np.sin(2 * np.pi * np.asarray(t)[:, None] * rng.uniform(0.3, 3, 20) + rng.uniform(0, 6, 20))
    return waves.sum(1)


def write_rows(folder, **changed):
    """Series of each row, and train.csv; ``changed`` are cells by "column_row"."""
    with open(folder / "train.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["camera", "microphone"])
        for row, lag in enumerate(LAGS):
            np.save(folder / f"camera{row}.npy", scene(np.arange(SECONDS * FAST) / FAST, row))
            heard = scene(np.arange(SECONDS * SLOW) / SLOW - lag, row)
            np.savetxt(folder / f"microphone{row}.txt", np.stack([heard, 2 * heard + 1], 1))  # parted by spaces
            cells = {"camera": f"camera{row}.npy", "microphone": f"microphone{row}.txt"}
            table.writerow([changed.get(f"{name}_{row}", cell) for name, cell in cells.items()])


def config(folder, modalities, data="train: train.csv"):
    (folder / "config.yaml").write_text(f"data: {{{data}, ignore: all}}\nmodalities:\n{modalities}{TRAINING}")
    return read_config(folder / "config.yaml")


def test_lag_and_aligned_series_are_modalities(tmp_path):
    write_rows(tmp_path, microphone_5="", camera_6="")
    run = train(config(tmp_path, SERIES + ALIGNED + LAG), progress=False)
    dataset = run.dataset(tmp_path / "train.csv")
    for row, lag in enumerate(LAGS):
        sample = dataset[row]
        if row in (5, 6):  # without one of the two there is neither
            assert sample["delay"] is None and sample["microphone"] is None
            continue
        assert sample["delay"].shape == (1,) and sample["microphone"].shape == (400, 2)
        assert run.readers["delay"].show(sample["delay"]) == pytest.approx([lag], abs=0.5 / SLOW)
        inner = slice(50, -50)  # beyond the ends of the slower series its last value holds
        expected = scene(np.arange(SECONDS * FAST) / FAST, row)[inner]
        assert np.corrcoef(expected, sample["microphone"][inner, 0])[0, 1] > 0.98
        assert np.corrcoef(expected, sample["microphone"][inner, 1])[0, 1] > 0.98
    seen = torch.stack([dataset[row]["delay"] for row in range(len(LAGS)) if row not in (5, 6)])
    torch.testing.assert_close(seen.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    made = run.readers["delay"].write(run.model.sample(1, seed=0)["delay"][0], tmp_path / "delay")
    assert made.read_text().startswith("lag\n")
    # the same run, opened again; a manifest with one of the two columns has neither modality, and is no error
    (tmp_path / "other.csv").write_text("camera\ncamera0.npy\n")
    (sample,) = Run.load(tmp_path / "run").dataset(tmp_path / "other.csv")
    assert sample["delay"] is None and sample["microphone"] is None and sample["camera"] is not None


def test_series_without_a_lag_are_errors_of_their_rows_or_missing(tmp_path):
    np.save(tmp_path / "flat.npy", np.full(400, 3.0))
    np.save(tmp_path / "short.npy", np.ones(1))
    write_rows(tmp_path, camera_1="flat.npy", microphone_2="short.npy")
    with pytest.raises(ManifestError) as error:
        train(config(tmp_path, LAG), progress=False)
    assert "2 cells" in str(error.value)
    assert "row 2, camera, microphone: align: stream 'first' is constant: it has no lag" in str(error.value)
    assert "row 3, camera, microphone: align: stream 'second'" in str(error.value)
    assert "at least two samples" in str(error.value)
    messages = []
    run = train(
        config(tmp_path, LAG + SERIES, "train: train.csv, on_error: missing"), progress=False, report=messages.append
    )
    assert "They counted as missing." in messages[0] and "row 3" in messages[0]
    dataset = run.dataset(tmp_path / "train.csv")
    assert [row for row in range(len(LAGS)) if dataset[row]["delay"] is None] == [1, 2]
    with pytest.raises(CellError, match="row 2, columns 'camera' to 'microphone': align: stream 'first' is constant"):
        run.dataset(tmp_path / "train.csv", on_error="stop")[1]


def test_a_lag_beyond_the_largest_is_an_error_of_its_row(tmp_path):
    write_rows(tmp_path)
    with pytest.raises(ManifestError, match="row 3, camera, microphone: .*better yet beyond"):
        train(config(tmp_path, LAG.replace("max_lag: 1", "max_lag: 0.38")), progress=False)  # of row 3: 0.45
    with pytest.raises(ManifestError, match="row 3, microphone, camera: .*better yet beyond"):
        train(config(tmp_path, SERIES + ALIGNED.replace("max_lag: 1", "max_lag: 0.38")), progress=False)


def test_paths_and_columns_are_checked_before_training(tmp_path):
    write_rows(tmp_path, microphone_4="gone.npy")
    with pytest.raises(ManifestError, match=r"row 5, camera, microphone: .*gone\.npy: no such file"):
        train(config(tmp_path, LAG), progress=False)
    for modalities, message in (
        ("  delay: {kind: lag, column: camera}\n", "a lag is made of 2 columns"),
        ("  delay: {kind: lag, columns: [camera]}\n", "a lag is made of 2 columns"),
        ("  delay: {kind: lag, columns: [camera, microphone], rates: [1]}\n", r"rates is \[1\], expected two positive"),
        ("  delay: {kind: lag, columns: [camera, microphone], max_lag: -1}\n", "max_lag is -1, expected a positive"),
        ("  delay: {kind: lag, columns: [camera, microphone], max_leg: 1}\n", "did you mean 'max_lag'"),
        ("  microphone: {kind: sequence, align_to: camara}\n" + SERIES, "did you mean 'camera'"),
        ("  camera: {kind: sequence, align_to: camera}\n", "no other modality 'camera'"),
        ("  microphone: {kind: sequence, columns: [microphone, camera], align_to: camera}\n" + SERIES, "columns alrea"),
        ("  microphone: {kind: sequence, max_lag: 2}\n", "come with align_to"),
        ("  microphone: {kind: audio, max_lag: 2}\n", "comes with align_to"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(config(tmp_path, modalities), progress=False)


def test_readers_survive_json_and_say_what_a_cell_lacks(tmp_path):
    write_rows(tmp_path)
    cells = [[str(tmp_path / f"camera{row}.npy"), str(tmp_path / f"microphone{row}.txt")] for row in range(4)]
    reader = reader_class("lag")(rates=[50, 20], likelihood="laplace", scale=0.5)
    reader.fit(cells)
    again = Reader.from_config(json.loads(json.dumps(reader.config())))
    assert again.config() == reader.config() and again.modality().config() == reader.modality().config()
    assert torch.equal(again.read(cells[0]), reader.read(cells[0]))
    steps = reader_class("lag")(standardise=False)
    pulse = np.zeros(50)
    pulse[20:23] = 1, 2, 1
    steps.fit([[pulse, np.roll(pulse, 4)]])
    assert steps.read([pulse, np.roll(pulse, 4)]).item() == pytest.approx(4, abs=0.1)
    assert steps.read([np.roll(pulse, 4), pulse.tolist()]).item() == pytest.approx(-4, abs=0.1)
    for cell, message in (
        ("a.npy", "is str, expected two series"),
        ([pulse], "is 1 of them, expected two series"),
        ([pulse, np.array(["a"])], "no table of numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            steps.read(cell)


def test_sounds_know_their_rates_and_are_brought_into_step(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs the 'audio' extra")
    pytest.importorskip("librosa", reason="needs the 'audio' extra")
    rate, lag = 8000, 800
    clap = np.random.default_rng(0).normal(0, 0.2, 2000) * np.hanning(2000)
    near, far = np.zeros(8000), np.zeros(8000)
    near[1000:3000], far[1000 + lag : 3000 + lag] = clap, 0.4 * clap
    for name, wave in (("near", near), ("far", far), ("silent", np.zeros(8000))):
        soundfile.write(tmp_path / f"{name}.wav", wave, rate)
    cell = [str(tmp_path / "near.wav"), str(tmp_path / "far.wav")]
    reader = reader_class("lag")(standardise=False)
    reader.fit([cell])
    assert reader.read(cell).item() == pytest.approx(0.1, abs=1e-3)  # seconds
    with pytest.raises(ValueError, match="set rates"):
        reader.read([cell[0], near])
    options = {"sample_rate": rate, "seconds": 0.5, "n_mels": 16, "n_fft": 256, "hop_length": 128, "floor_db": -20.0}
    plain = reader_class("audio")(**options)
    moved = Reader.from_config(reader_class("audio")(align_to="near", max_lag=0.5, **options).config())
    assert moved.n_columns == 2

    def middle(picture):
        """Of the sound, in frames."""
        loud = picture.sum(0)
        return float((loud * torch.arange(len(loud))).sum() / loud.sum())

    first, second = (middle(plain.read(path)) for path in cell)
    assert second - first == pytest.approx(lag / 128, abs=0.3)
    assert middle(moved.read([cell[1], cell[0]])) == pytest.approx(first, abs=0.3)
    # the first is brought into step with a later one by silence before it
    assert middle(moved.read([cell[0], cell[1]])) == pytest.approx(second, abs=0.3)
    with pytest.raises(ValueError, match="is constant: it has no lag"):
        moved.read([cell[0], str(tmp_path / "silent.wav")])
    with pytest.raises(ValueError, match="expected two recordings"):
        moved.read(cell[0])


@pytest.mark.parametrize(
    "text, names",
    [
        ("1 2\n3\t 4\n", None),
        ("a, b\n1, 2\n3, 4\n", ["a", "b"]),
        ("a  b\n1 2\n3 4\n", ["a", "b"]),
        ("1,2\n3,4\n", None),
    ],
)
def test_a_txt_has_commas_or_spaces(tmp_path, text, names):
    from mmvae_fast.data._streams import read_table

    (tmp_path / "series.txt").write_text(text)
    table = read_table(tmp_path / "series.txt")
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])
    assert table.names == names


def test_the_command_aligns_files(tmp_path):
    testing = pytest.importorskip("typer.testing", reason="needs the 'cli' extra")
    from mmvae_fast.cli import app

    write_rows(tmp_path)
    files = [str(tmp_path / "camera0.npy"), str(tmp_path / "microphone0.txt")]
    rates = ["--rate", "50", "--rate", "20"]
    result = testing.CliRunner().invoke(app, ["align", *files, *rates, "--out", str(tmp_path / "aligned")])
    assert result.exit_code == 0, result.output
    said, written = result.output.replace("\n", " ").strip().rsplit(" ", 1)
    assert float(said.split(" lags ")[1].split()[0]) == pytest.approx(LAGS[0], abs=0.5 / SLOW)
    assert "(correlation 0.9" in said or "(correlation 1.0" in said
    table = np.genfromtxt(written, delimiter=",", names=True)
    assert table.dtype.names == ("time", "camera0", "microphone01", "microphone02")
    np.testing.assert_allclose(np.diff(table["time"]), 1 / SLOW, rtol=1e-4)
    assert np.corrcoef(table["camera0"][5:-5], table["microphone01"][5:-5])[0, 1] > 0.98

    # irregular rows, whose times are the first column
    rng = np.random.default_rng(0)
    for name, lag in (("a", 0.0), ("b", 0.3)):
        t = np.sort(rng.uniform(0, 8, 300))
        header = "t,x,y" if name == "a" else "t,x"
        columns = [t, scene(t - lag, 0)] + [scene(t - lag, 0)] * (name == "a")
        np.savetxt(tmp_path / f"{name}.csv", np.stack(columns, 1), delimiter=",", header=header, comments="")
    out = str(tmp_path / "regular.csv")
    times = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--times", "--max-lag", "1", "--out", out]
    result = testing.CliRunner().invoke(app, ["align", *times])
    assert result.exit_code == 0, result.output
    assert float(result.output.replace("\n", " ").split(" lags ")[1].split()[0]) == pytest.approx(0.3, abs=0.05)
    assert (tmp_path / "regular.csv").read_text().startswith("time,a.x,a.y,b.x\n")

    for arguments, message in (
        ([files[0], "--out", out], "got one file"),
        ([*files, "--rate", "1", "--rate", "2", "--rate", "3", "--out", out], "--rate comes 3 times"),
        ([*files, "--rate", "1", "--times", "--out", out], "--rate and --times"),
        ([files[0], files[0], "--out", out], "named twice"),
        ([files[0], str(tmp_path / "none.csv"), "--out", out], "no such file"),
    ):
        result = testing.CliRunner().invoke(app, ["align", *arguments])
        assert result.exit_code and message in result.output.replace("\n", " "), result.output


def test_a_sound_beside_a_table_of_no_rate_is_refused(tmp_path):
    """The table's rows as seconds would be a wrong lag told with confidence."""
    soundfile = pytest.importorskip("soundfile", reason="needs the 'audio' extra")
    testing = pytest.importorskip("typer.testing", reason="needs the 'cli' extra")
    from mmvae_fast.cli import app

    sound, table = tmp_path / "sound.wav", tmp_path / "table.csv"
    soundfile.write(sound, 0.05 * scene(np.arange(SECONDS * 1000) / 1000, 0), 1000)
    np.savetxt(table, scene(np.arange(SECONDS * SLOW) / SLOW - 0.3, 0), header="x", comments="")
    arguments = ["align", str(sound), str(table), "--max-lag", "1", "--out", str(tmp_path / "out")]
    result = testing.CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "give --rate" in result.output.replace("\n", " "), result.output
    assert not (tmp_path / "out.csv").exists()
    result = testing.CliRunner().invoke(app, [*arguments, "--rate", "1000", "--rate", "20"])
    assert result.exit_code == 0, result.output
    lag = result.output.replace("\n", " ").split(" lags ")[1].split()[0]
    assert float(lag) == pytest.approx(0.3, abs=0.5 / SLOW)
