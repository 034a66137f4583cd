"""Recordings to log-mel pictures and cepstra, and back to sound."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmvae_fast._files import write_atomic
from mmvae_fast._lazy import require

_BLOCK = 2**18  # frames read at a time
_MARGIN = 0.1  # seconds read on either side of what is wanted: more than the resampling filter reaches


def load_audio(
    path: str | os.PathLike | BinaryIO, sample_rate: int, *, samples: int | None = None, align: str = "start"
) -> np.ndarray:
    """A sound file (.wav, .flac, .ogg, ...: what libsndfile reads), or an open one, of any rate and number of channels.

    Args:
        samples, align: see :func:`fit_length`; of a longer file no more is read than that takes. None: all there is.

    Returns:
        float32 [samples] at ``sample_rate`` Hz: the mean of the channels, resampled with SoX's band-limited filter.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a sound file, or one without samples, or with NaN or infinity in it.
        ImportError: without the ``audio`` extra.
    """
    soundfile = require("soundfile", extra="audio")
    if isinstance(path, (str, os.PathLike)) and not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a sound file")
    _positive("load_audio", sample_rate=sample_rate, **({} if samples is None else {"samples": samples}))
    share = _share("load_audio", align)
    name = path if isinstance(path, (str, os.PathLike)) else "the recording"
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            start, stop, first = 0, file.frames, 0
            if samples is not None and rate > 0:
                start, stop, first = _window(file.frames, rate, sample_rate, samples, share)
            if start:
                file.seek(start)
            channels = _frames(file, stop - start)
    except (soundfile.SoundFileError, TypeError, MemoryError) as error:
        reason = getattr(error, "error_string", error)
        raise ValueError(f"{name}: not a sound file that libsndfile reads ({reason})") from error
    try:
        wave = to_mono(channels, rate, sample_rate)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if samples is None:
        return wave
    return wave[first : first + samples] if len(wave) - first >= samples else fit_length(wave, samples, align=align)


def _window(frames: int, rate: int, sample_rate: int, samples: int, share: float) -> tuple[int, int, int]:
    """Which frames of a file to read for so many samples at another rate, and where these begin in what they become."""
    total = -(-frames * sample_rate // rate)
    wanted = int(share * max(0, total - samples))
    margin = int(_MARGIN * sample_rate)
    common = math.gcd(rate, sample_rate)  # so many steps of either rate fall together
    units = max(0, wanted - margin) // (sample_rate // common)
    start = units * (rate // common)
    stop = min(frames, -(-(wanted + samples + margin) * rate // sample_rate))
    return start, stop, wanted - units * (sample_rate // common)


def _frames(file: Any, count: int) -> np.ndarray:
    """The next frames of an open sound file, float32 [n, channels]: fewer where it ends before, whatever its header
    says. So memory is taken for what is there only."""
    blocks = []
    while count > 0:
        block = file.read(min(count, _BLOCK), dtype="float32", always_2d=True)
        blocks.append(block)
        if len(block) < min(count, _BLOCK):
            break
        count -= len(block)
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32)


def to_mono(wave: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Samples [n] or [n, channels] at ``rate`` Hz as float32 [m] at ``sample_rate``; integers are scaled to [-1, 1).

    Raises:
        ValueError: no samples, NaN or infinity, or a rate that is not a positive integer.
    """
    _positive("to_mono", rate=rate, sample_rate=sample_rate)
    wave = np.asarray(wave)
    if wave.ndim not in (1, 2) or wave.dtype.kind not in "fiu":
        raise ValueError(f"the wave is {wave.dtype} of shape {list(wave.shape)}, expected samples [n] or [n, channels]")
    if not wave.size:
        raise ValueError("the recording is empty, expected at least one sample")
    if wave.dtype.kind != "f":
        middle = 0 if wave.dtype.kind == "i" else 2 ** (8 * wave.dtype.itemsize - 1)
        wave = (wave.astype(np.float64) - middle) / 2.0 ** (8 * wave.dtype.itemsize - 1)
    if not np.isfinite(wave).all():
        raise ValueError("the recording holds NaN or infinite samples")
    mono = wave.mean(1) if wave.ndim == 2 else wave
    if rate != sample_rate:
        mono = require("librosa", extra="audio").resample(mono, orig_sr=rate, target_sr=sample_rate, res_type="soxr_hq")
    if not len(mono):
        raise ValueError(f"the recording is too short: not one sample at {sample_rate} Hz")
    return np.ascontiguousarray(mono, dtype=np.float32)


def fit_length(wave: np.ndarray, samples: int, *, align: str = "start") -> np.ndarray:
    """A wave [n] cut, or padded with zeros, to ``samples``; what is kept or shown is its "start", "center" or "end"."""
    _positive("fit_length", samples=samples)
    extra = len(wave) - samples
    first = int(_share("fit_length", align) * abs(extra))
    if extra >= 0:
        return wave[first : first + samples]
    return np.pad(wave, (first, -extra - first))


def log_mel(
    waves: np.ndarray,
    *,
    sample_rate: int,
    n_mels: int,
    n_fft: int,
    hop_length: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    floor_db: float = -40.0,
    ceiling_db: float = 20.0,
) -> np.ndarray:
    """Waveforms as log-mel pictures, what :class:`Audio` takes (after ``torch.from_numpy``).

    Power spectra of Hann windows centred on multiples of ``hop_length`` (the ends are padded with zeros), through
    triangular mel filters of height 1, divided by ``n_fft``, in decibels.

    Args:
        waves: [B, samples], all of one length; usually in [-1, 1]. A shorter recording is padded by you.
        sample_rate: in Hz.
        n_fft: samples in a window.
        fmin, fmax: the band in Hz that the ``n_mels`` filters divide; ``fmax`` None is half of ``sample_rate``.
        floor_db, ceiling_db: mapped to 0 and 1; what is below or above is cut off.

    Returns:
        float32 [B, n_mels, 1 + samples // hop_length] in [0, 1].

    Raises:
        ValueError, TypeError: arguments that cannot be, or waves with NaN or infinity.
        ImportError: without the ``audio`` extra.
    """
    power = _mel_power("log_mel", waves, sample_rate, n_mels, n_fft, hop_length, fmin, fmax)
    return _scaled("log_mel", power, floor_db, ceiling_db)


def mfcc(
    waves: np.ndarray,
    *,
    sample_rate: int,
    n_mels: int,
    n_fft: int,
    hop_length: int,
    n_mfcc: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    floor_db: float = -40.0,
    ceiling_db: float = 20.0,
) -> np.ndarray:
    """Mel-frequency cepstral coefficients: the first ``n_mfcc`` terms of an orthonormal cosine transform (type II) of
    every frame of :func:`log_mel`.

    Arguments as for :func:`log_mel`. A loud frame adds to the first coefficient only, and overtones show in the later
    ones. In units of ``ceiling_db - floor_db`` decibels, so coefficients are of size 1 to sqrt(n_mels), not hundreds.

    Returns:
        float32 [B, n_mfcc, 1 + samples // hop_length].

    Raises:
        ValueError, TypeError: arguments that cannot be, or waves with NaN or infinity.
        ImportError: without the ``audio`` extra.
    """
    _positive("mfcc", n_mfcc=n_mfcc)
    if n_mfcc > n_mels:
        raise ValueError(f"mfcc: n_mfcc is {n_mfcc}, expected at most n_mels, {n_mels}")
    power = _mel_power("mfcc", waves, sample_rate, n_mels, n_fft, hop_length, fmin, fmax)
    pictures = _scaled("mfcc", power, floor_db, ceiling_db)
    if not len(pictures):
        return np.zeros((0, n_mfcc, pictures.shape[-1]), dtype=np.float32)
    return require("librosa", extra="audio").feature.mfcc(S=pictures, n_mfcc=n_mfcc).astype(np.float32)


def mfcc_to_log_mel(coefficients: np.ndarray, n_mels: int) -> np.ndarray:
    """The smooth log-mel pictures [B, n_mels, frames] whose coefficients [B, n_mfcc, frames] these are.

    Raises:
        ValueError: another shape, or more coefficients than ``n_mels``.
        ImportError: without the ``audio`` extra.
    """
    _positive("mfcc_to_log_mel", n_mels=n_mels)
    if np.ndim(coefficients) != 3 or np.shape(coefficients)[1] > n_mels:
        raise ValueError(
            f"mfcc_to_log_mel: coefficients has shape {list(np.shape(coefficients))}, expected [B, n_mfcc, frames] "
            f"with at most n_mels = {n_mels} of them"
        )
    if not len(coefficients):
        return np.zeros((0, n_mels, np.shape(coefficients)[-1]), dtype=np.float32)
    fft = require("scipy.fft", extra="audio")
    return fft.idct(coefficients, axis=-2, type=2, norm="ortho", n=n_mels).astype(np.float32)


def griffin_lim(
    pictures: np.ndarray,
    *,
    sample_rate: int,
    n_fft: int,
    hop_length: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    floor_db: float = -40.0,
    ceiling_db: float = 20.0,
    samples: int | None = None,
    iterations: int = 60,
    seed: int = 0,
) -> np.ndarray:
    """A sound whose log-mel pictures are about these: the inverse of :func:`log_mel` with the same arguments.

    What the filters summed is spread over frequencies by non-negative least squares; the phases, which the picture has
    lost, come from Griffin-Lim iterations that start at random ones. A value at the floor is silence.

    Args:
        pictures: [B, n_mels, frames]; values are cut to [0, 1], so a decoder's output will do.
        samples: length of the waves; None is (frames - 1) * hop_length.
        seed: of the phases.

    Returns:
        float32 [B, samples].

    Raises:
        ValueError: arguments that cannot be, or pictures with NaN or infinity.
        ImportError: without the ``audio`` extra.

    Source: Griffin & Lim, Signal estimation from modified short-time Fourier transform, 1984; Perraudin, Balazs &
    Sondergaard, A fast Griffin-Lim algorithm, 2013.
    """
    pictures = np.asarray(pictures, dtype=np.float32)
    if pictures.ndim != 3 or not all(pictures.shape[1:]):
        raise ValueError(f"griffin_lim: pictures has shape {list(pictures.shape)}, expected [B, n_mels, frames]")
    if not np.isfinite(pictures).all():
        raise ValueError("griffin_lim: pictures holds NaN or infinite values")
    frames = pictures.shape[2]
    _positive("griffin_lim", sample_rate=sample_rate, n_fft=n_fft, hop_length=hop_length, iterations=iterations)
    top = _band("griffin_lim", sample_rate, fmin, fmax)
    _range("griffin_lim", floor_db, ceiling_db)
    length = (frames - 1) * hop_length if samples is None else samples
    librosa = require("librosa", extra="audio")
    decibel = floor_db + np.clip(pictures, 0.0, 1.0).astype(np.float64) * (ceiling_db - floor_db)
    # without the floor's own power, which would be a hiss where there was silence
    power = n_fft * (10 ** (decibel / 10) - 10 ** (floor_db / 10))
    waves = np.zeros((len(pictures), length), dtype=np.float32)
    for wave, spectrum in zip(waves, power, strict=True):
        magnitude = librosa.feature.inverse.mel_to_stft(
            spectrum, sr=sample_rate, n_fft=n_fft, power=2.0, fmin=fmin, fmax=top, norm=None
        )
        wave[:] = librosa.griffinlim(
            magnitude, n_iter=iterations, hop_length=hop_length, n_fft=n_fft, length=length, random_state=seed
        )
    return waves


def write_wav(path: str | os.PathLike, wave: np.ndarray, sample_rate: int) -> Path:
    """Write a wave [samples] as a 16-bit .wav file, atomically. One that goes beyond [-1, 1] is turned down to it.

    Raises:
        ValueError: no wave of finite samples, or a rate that is not a positive integer.
        ImportError: without the ``audio`` extra.
    """
    write_atomic(path, wav_bytes(wave, sample_rate))
    return Path(path)


def wav_bytes(wave: np.ndarray, sample_rate: int) -> bytes:
    """What :func:`write_wav` writes."""
    _positive("write_wav", sample_rate=sample_rate)
    wave = np.asarray(wave)
    if wave.ndim != 1 or wave.dtype.kind != "f" or not np.isfinite(wave).all():
        raise ValueError(f"write_wav: got {wave.dtype} of shape {list(wave.shape)}, expected finite samples [n]")
    loudest = max(1.0, float(np.abs(wave).max(initial=0.0)))
    file = io.BytesIO()
    require("soundfile", extra="audio").write(file, wave / loudest, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _mel_power(
    caller: str,
    waves: np.ndarray,
    sample_rate: int,
    n_mels: int,
    n_fft: int,
    hop_length: int,
    fmin: float,
    fmax: float | None,
) -> np.ndarray:
    """Mel power [B, n_mels, frames] of waves [B, samples], over n_fft."""
    waves = np.asarray(waves)
    if waves.dtype.kind != "f":
        raise TypeError(f"{caller}: waves is {waves.dtype}, expected floating-point samples")
    if waves.ndim != 2 or not waves.shape[1]:
        raise ValueError(f"{caller}: waves has shape {list(waves.shape)}, expected [B, samples]")
    if not np.isfinite(waves).all():
        raise ValueError(f"{caller}: waves holds NaN or infinite values")
    _positive(caller, sample_rate=sample_rate, n_mels=n_mels, n_fft=n_fft, hop_length=hop_length)
    top = _band(caller, sample_rate, fmin, fmax)
    if not len(waves):
        return np.zeros((0, n_mels, 1 + waves.shape[1] // hop_length), dtype=np.float32)
    power = require("librosa", extra="audio").feature.melspectrogram(
        y=waves, sr=sample_rate, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels, fmin=fmin, fmax=top, norm=None
    )
    return power / n_fft


def _scaled(caller: str, power: np.ndarray, floor_db: float, ceiling_db: float) -> np.ndarray:
    """Decibels of a power, of which floor and ceiling are 0 and 1, cut to that."""
    _range(caller, floor_db, ceiling_db)
    decibel = 10 * np.log10(np.maximum(power, 10 ** (floor_db / 10)))
    return np.clip((decibel - floor_db) / (ceiling_db - floor_db), 0.0, 1.0).astype(np.float32)


def _band(caller: str, sample_rate: int, fmin: float, fmax: float | None) -> float:
    top = sample_rate / 2 if fmax is None else fmax
    if not 0 <= fmin < top <= sample_rate / 2:
        raise ValueError(f"{caller}: fmin, fmax are {fmin}, {fmax}, expected 0 <= fmin < fmax <= {sample_rate / 2} Hz")
    return top


def _share(caller: str, align: str) -> float:
    """Of what is cut off or added, how much comes before."""
    shares = {"start": 0.0, "center": 0.5, "end": 1.0}
    if align not in shares:
        raise ValueError(f"{caller}: align is {align!r}, expected one of {list(shares)}")
    return shares[align]


def _range(caller: str, floor_db: float, ceiling_db: float) -> None:
    if not floor_db < ceiling_db:
        raise ValueError(f"{caller}: floor_db is {floor_db}, expected less than ceiling_db, {ceiling_db}")


def _positive(caller: str, **counts: Any) -> None:
    for what, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{caller}: {what} is {value!r}, expected a positive integer")
