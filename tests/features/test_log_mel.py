"""Waveforms to log-mel pictures."""

import numpy as np
import pytest

from mmvae_fast.modalities import log_mel

OPTIONS = {"sample_rate": 8000, "n_mels": 8, "n_fft": 256, "hop_length": 128}


def sine(hz, amplitude=0.5, samples=2048):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(samples) / 8000)).astype(np.float32)


def test_shape_type_and_range():
    picture = log_mel(np.stack([sine(500), sine(2000), 0 * sine(1)]), **OPTIONS)
    assert picture.shape == (3, 8, 1 + 2048 // 128)
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert (picture[2] == 0).all()  # silence is the floor
    assert log_mel(np.zeros((0, 2048), np.float32), **OPTIONS).shape == (0, 8, 17)


def test_a_tone_shows_in_the_filter_around_it():
    """Eight filters, evenly spaced in (Slaney) mel from 0 to 4000 Hz; their centres by the formula."""
    mel = np.linspace(0, 15 + 27 * np.log(4) / np.log(6.4), 10)
    centres = np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))[1:-1]
    tones = np.stack([sine(hz) for hz in centres])
    assert log_mel(tones, **OPTIONS).mean(-1).argmax(-1).tolist() == list(range(8))


def test_decibels():
    """Ten times the amplitude is 20 dB, a third of the range of 60; the floor and the ceiling cut."""
    quiet, loud = log_mel(np.stack([sine(1000, 0.05), sine(1000, 0.5)]), **OPTIONS)[:, :, 8]
    peak = quiet.argmax()
    assert loud[peak] - quiet[peak] == pytest.approx(20 / 60, abs=1e-3)
    half = log_mel(sine(1000, 0.5)[None], **OPTIONS, floor_db=-40, ceiling_db=80)[0, peak, 8]
    assert half == pytest.approx(loud[peak] / 2, abs=1e-5)
    assert log_mel(sine(1000)[None], **OPTIONS, floor_db=-40, ceiling_db=-30)[0, peak, 8] == 1
    assert log_mel(sine(1000)[None], **OPTIONS, floor_db=50, ceiling_db=60)[0, peak, 8] == pytest.approx(0, abs=1e-6)


def test_the_band():
    tones = np.stack([sine(200), sine(1000)])
    low, inside = log_mel(tones, **OPTIONS, fmin=700, fmax=1400)[:, :, 8].max(-1)
    assert inside > low + 0.4


@pytest.mark.parametrize(
    ("waves", "change", "error", "message"),
    [
        (np.zeros((1, 512), np.int16), {}, TypeError, "waves is int16, expected floating-point"),
        (np.zeros(512, np.float32), {}, ValueError, r"waves has shape \[512\], expected \[B, samples\]"),
        (np.zeros((1, 0), np.float32), {}, ValueError, r"waves has shape \[1, 0\]"),
        (np.full((1, 512), np.nan), {}, ValueError, "NaN or infinite"),
        (np.zeros((1, 512)), {"n_mels": 0}, ValueError, "n_mels is 0, expected a positive integer"),
        (np.zeros((1, 512)), {"sample_rate": 8000.0}, ValueError, "sample_rate is 8000.0"),
        (np.zeros((1, 512)), {"fmax": 5000}, ValueError, "fmin < fmax <= 4000.0 Hz"),
        (np.zeros((1, 512)), {"fmin": 300, "fmax": 200}, ValueError, "fmin, fmax are 300, 200"),
        (np.zeros((1, 512)), {"floor_db": 20}, ValueError, "floor_db is 20, expected less than ceiling_db, 20"),
    ],
)
def test_what_cannot_be_is_refused(waves, change, error, message):
    with pytest.raises(error, match=message):
        log_mel(waves, **{**OPTIONS, **change})
