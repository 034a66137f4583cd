"""Recordings of any kind to log-mel pictures and cepstra, and back to something one can hear."""

import numpy as np
import pytest

from mmvae_fast.features import fit_length, griffin_lim, load_audio, log_mel, mfcc, mfcc_to_log_mel, write_wav
from mmvae_fast.features.audio import to_mono

soundfile = pytest.importorskip("soundfile", reason="needs the 'audio' extra")
pytest.importorskip("librosa", reason="needs the 'audio' extra")

RATE = 8000
INVERSE = {"sample_rate": RATE, "n_fft": 512, "hop_length": 128}
OPTIONS = {**INVERSE, "n_mels": 40}


def sine(hz, seconds=0.5, rate=RATE, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("rate", [4000, 8000, 11025, 48000])
def test_any_rate_and_number_of_channels(tmp_path, rate, channels, suffix):
    gains = np.arange(1, channels + 1) / channels
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, sine(440, 1.0, rate)[:, None] * gains, rate)
    wave = load_audio(path, RATE)
    assert wave.dtype == np.float32
    assert wave.shape == (RATE,)
    expected = sine(440, 1.0) * gains.mean()
    middle = slice(500, -500)  # the filter has nothing beyond the ends
    np.testing.assert_allclose(wave[middle], expected[middle], atol=2e-3)


def test_integers_are_scaled():
    np.testing.assert_allclose(to_mono(np.array([-32768, 0, 16384], np.int16), 8, 8), [-1, 0, 0.5])
    np.testing.assert_allclose(to_mono(np.array([0, 128, 192], np.uint8), 8, 8), [-1, 0, 0.5])
    np.testing.assert_allclose(to_mono(np.array([[0.5, 0.1]]), 8, 8), [0.3])


def test_what_is_not_a_recording_is_refused(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"text\.wav: not a sound file"):
        load_audio(tmp_path / "text.wav", RATE)
    with pytest.raises(ValueError, match=r"empty\.wav: the recording is empty"):
        load_audio(tmp_path / "empty.wav", RATE)
    with pytest.raises(ValueError, match=r"nan\.wav: the recording holds NaN"):
        load_audio(tmp_path / "nan.wav", RATE)
    with pytest.raises(FileNotFoundError, match=r"none\.wav: no such file"):
        load_audio(tmp_path / "none.wav", RATE)
    with pytest.raises(ValueError, match="sample_rate is 0"):
        to_mono(np.zeros(3), 8, 0)
    with pytest.raises(ValueError, match=r"of shape \[1, 1, 1\]"):
        to_mono(np.zeros((1, 1, 1)), 8, 8)


@pytest.mark.parametrize("rate", [RATE, 11025, 44100, 3001])
@pytest.mark.parametrize("align", ["start", "center", "end"])
def test_no_more_is_read_than_is_needed(tmp_path, monkeypatch, align, rate):
    soundfile = pytest.importorskip("soundfile")
    path, sent = tmp_path / "long.wav", []
    soundfile.write(path, 0.3 * np.random.default_rng(0).normal(size=30 * rate), rate, subtype="FLOAT")
    whole = load_audio(path, RATE)
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **kw: sent.append(read(*args, **kw)) or sent[-1])
    for samples in (RATE // 2, 100):
        sent.clear()
        part = load_audio(path, RATE, samples=samples, align=align)
        np.testing.assert_allclose(part, fit_length(whole, samples, align=align), atol=2e-4)
        assert sum(map(len, sent)) < 3 * rate
    longer = load_audio(path, RATE, samples=40 * RATE, align=align)
    np.testing.assert_array_equal(longer, fit_length(whole, 40 * RATE, align=align))


@pytest.mark.parametrize("align", ["start", "center", "end"])
def test_a_header_that_claims_too_much(tmp_path, align):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / "long.flac"
    soundfile.write(path, np.full(RATE, 0.25), RATE)
    content = bytearray(path.read_bytes())
    assert content[:4] == b"fLaC"
    content[21] |= 0x0F  # the number of samples, 36 bits
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    assert soundfile.info(path).frames > 10**10
    if align == "start":  # what there is, is good
        np.testing.assert_allclose(load_audio(path, RATE, samples=100), 0.25, atol=1e-4)
    else:
        with pytest.raises(ValueError, match="long.flac: "):
            load_audio(path, RATE, samples=100, align=align)
    with pytest.raises(ValueError, match="long.flac: "):
        load_audio(path, RATE)
    with pytest.raises(ValueError, match="align is 'left'"):
        load_audio(path, RATE, samples=100, align="left")


def test_length():
    wave = np.arange(1.0, 6.0)
    assert fit_length(wave, 3).tolist() == [1, 2, 3]
    assert fit_length(wave, 3, align="center").tolist() == [2, 3, 4]
    assert fit_length(wave, 3, align="end").tolist() == [3, 4, 5]
    assert fit_length(wave, 7).tolist() == [1, 2, 3, 4, 5, 0, 0]
    assert fit_length(wave, 7, align="center").tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert fit_length(wave, 7, align="end").tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert fit_length(wave, 5).tolist() == wave.tolist()
    with pytest.raises(ValueError, match="align is 'left'"):
        fit_length(wave, 3, align="left")


@pytest.mark.parametrize("hz", [440.0, 1250.0])
def test_a_tone_survives_the_way_to_a_picture_and_back(hz):
    wave = sine(hz)
    back = griffin_lim(log_mel(wave[None], **OPTIONS), samples=len(wave), **INVERSE)
    assert back.dtype == np.float32
    assert back.shape == (1, len(wave))
    spectrum = np.abs(np.fft.rfft(back[0] * np.hanning(len(wave))))
    strongest = spectrum.argmax() * RATE / len(wave)
    assert abs(strongest - hz) <= RATE / OPTIONS["n_fft"]  # one bin of the picture's spectra
    assert np.sqrt((back**2).mean()) == pytest.approx(np.sqrt((wave**2).mean()), rel=0.15)


def test_what_comes_back_has_the_same_picture_and_the_same_seed_the_same_wave():
    waves = np.stack([sine(440) + sine(1800), sine(700) * np.linspace(0, 1, 4000, dtype=np.float32)])
    pictures = log_mel(waves, **OPTIONS)
    back = griffin_lim(pictures, **INVERSE)
    assert back.shape == (2, 31 * 128)
    strong = pictures > 0.5
    assert np.abs(log_mel(back, **OPTIONS) - pictures)[strong].mean() < 0.03  # of 60 dB
    np.testing.assert_array_equal(back, griffin_lim(pictures, **INVERSE))
    assert np.abs(back - griffin_lim(pictures, seed=1, **INVERSE)).max() > 0
    assert np.abs(griffin_lim(np.zeros((1, 40, 9)), **INVERSE)).max() < 1e-6
    assert griffin_lim(np.zeros((0, 40, 9)), **INVERSE).shape == (0, 1024)


def test_cepstra():
    """Against the cosine sums written out; all of them are the picture again, the first few its outline."""
    wave = (sine(440) + sine(900) + sine(2100))[None]
    picture = log_mel(wave, **OPTIONS)
    all_of_them = mfcc(wave, n_mfcc=40, **OPTIONS)
    k, n = np.arange(40)[:, None], np.arange(40)
    basis = np.sqrt(2 / 40) * np.cos(np.pi * k * (2 * n + 1) / 80)
    basis[0] /= np.sqrt(2)
    np.testing.assert_allclose(all_of_them[0], basis @ picture[0], atol=1e-5)
    np.testing.assert_allclose(mfcc_to_log_mel(all_of_them, 40), picture, atol=1e-5)
    np.testing.assert_array_equal(mfcc(wave, n_mfcc=13, **OPTIONS), all_of_them[:, :13])
    error = [np.square(mfcc_to_log_mel(all_of_them[:, :c], 40) - picture).mean() for c in (5, 13, 30)]
    assert error[0] > error[1] > error[2]
    assert mfcc(np.zeros((0, 4000)), n_mfcc=5, **OPTIONS).shape == (0, 5, 32)
    assert mfcc_to_log_mel(np.zeros((0, 5, 32)), 40).shape == (0, 40, 32)
    with pytest.raises(ValueError, match="n_mfcc is 41, expected at most n_mels, 40"):
        mfcc(wave, n_mfcc=41, **OPTIONS)


def test_a_wave_is_written_and_read_again(tmp_path):
    wave = sine(440)
    path = write_wav(tmp_path / "folder" / "tone.wav", wave, RATE)
    np.testing.assert_allclose(load_audio(path, RATE), wave, atol=1e-4)
    assert soundfile.info(path).subtype == "PCM_16"
    loud = load_audio(write_wav(path, 5 * wave, RATE), RATE)  # turned down, not clipped
    np.testing.assert_allclose(loud, 2 * wave, atol=1e-3)
    assert [p.name for p in path.parent.iterdir()] == ["tone.wav"]
    for bad in (np.array([np.nan]), np.zeros((2, 2)), np.zeros(3, np.int16)):
        with pytest.raises(ValueError, match=r"expected finite samples \[n\]"):
            write_wav(path, bad, RATE)


@pytest.mark.parametrize(
    ("pictures", "change", "message"),
    [
        (np.zeros((4, 4)), {}, r"pictures has shape \[4, 4\]"),
        (np.full((1, 4, 4), np.nan), {}, "NaN or infinite"),
        (np.zeros((1, 4, 4)), {"fmax": 5000.0}, "fmin < fmax <= 4000.0 Hz"),
        (np.zeros((1, 4, 4)), {"iterations": 0}, "iterations is 0"),
        (np.zeros((1, 4, 4)), {"floor_db": 30.0}, "floor_db is 30.0, expected less than ceiling_db"),
    ],
)
def test_pictures_that_cannot_be_are_refused(pictures, change, message):
    with pytest.raises(ValueError, match=message):
        griffin_lim(pictures, **{**INVERSE, **change})


@pytest.mark.parametrize("shape, n_mels", [((5, 4), 40), ((1, 5, 4), 4), ((1, 5, 4), 0)])
def test_cepstra_of_another_shape_are_refused(shape, n_mels):
    with pytest.raises(ValueError, match="mfcc_to_log_mel: "):
        mfcc_to_log_mel(np.zeros(shape), n_mels)
