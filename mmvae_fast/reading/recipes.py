"""How a kind of data is read and shown, as plain data: what a bundle keeps of a reader of ``mmvae_fast.data``.

A recipe may come from outside: whatever it says is checked when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from mmvae_fast.features import audio
from mmvae_fast.reading import documents, pictures, series, sound
from mmvae_fast.reading.cells import without_torch
from mmvae_fast.reading.numbers import counts, numbers
from mmvae_fast.reading.scale import Scale

_MAX_RATE, _MAX_WINDOW, _MAX_FILTERS, _MAX_ITERATIONS = 2**22, 2**20, 2**26, 10_000
TOO_LONG = ("cut", "error")


class Recipe:
    """Of one modality, whose samples have the shape ``shape`` and, of documents, stand for ``words``."""

    numeric: ClassVar[bool] = False
    """Whether plain numbers are raw values; else they are what the model takes."""

    scale: ClassVar[Scale]
    """Of those that have means and standard deviations."""

    def check(self, shape: Sequence[int], words: Sequence[str] | None) -> None:
        """Raises ValueError where this is no recipe for such samples."""

    def read(self, cell: Any, shape: Sequence[int]) -> np.ndarray:
        """A raw value as a sample [*shape].

        Raises:
            ValueError, OSError: what is wrong with it.
        """
        raise NotImplementedError

    def show(self, sample: np.ndarray) -> Any:
        """A sample as a raw value."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses


@dataclass(frozen=True)
class Pictures(Recipe):
    """As :class:`mmvae_fast.data.ImageReader`."""

    fit: str = "stretch"
    background: float = 1.0

    def __post_init__(self) -> None:
        _one_of("fit", self.fit, pictures.FITS)
        _number("background", self.background, 0, 1)
        object.__setattr__(self, "background", float(self.background))

    def check(self, shape: Sequence[int], words: Sequence[str] | None) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"pictures of shape {list(shape)}, expected [1 or 3, height, width]")

    def read(self, cell: Any, shape: Sequence[int]) -> np.ndarray:
        return pictures.read(cell, shape, self.fit, self.background)

    def show(self, sample: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C]."""
        return (np.clip(sample, 0, 1) * np.float32(255)).round().astype(np.uint8).transpose(1, 2, 0)


@dataclass(frozen=True)
class Texts(Recipe):
    """As :class:`mmvae_fast.data.TextReader` and ``LanguageReader``; vocabulary or tokenizer are the modality's."""

    too_long: str = "error"

    def __post_init__(self) -> None:
        _one_of("too_long", self.too_long, TOO_LONG)


@dataclass(frozen=True)
class Columns(Recipe):
    """As :class:`mmvae_fast.data.VectorReader`: numbers in their own units."""

    numeric = True

    mean: Sequence[float]
    sd: Sequence[float]
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _scale(self.mean, self.sd))  # no field: it is what mean and sd say
        _names(self.names, len(self.mean))

    def check(self, shape: Sequence[int], words: Sequence[str] | None) -> None:
        _fits(shape, (len(self.mean),), "numbers with these means")

    def read(self, cell: Any, shape: Sequence[int]) -> np.ndarray:
        row = numbers(cell)
        if len(row) != len(self.mean):
            raise ValueError(f"has {len(row)} numbers, expected {len(self.mean)}")
        return _float32(self.scale.scaled(row))

    def show(self, sample: np.ndarray) -> np.ndarray:
        """float64 [n] in the columns' own units."""
        return self.scale.unscaled(sample)


@dataclass(frozen=True)
class Series(Recipe):
    """As :class:`mmvae_fast.data.SequenceReader`: the path of a table, or numbers [T, channels] or [T]."""

    numeric = True

    mean: Sequence[float]
    sd: Sequence[float]
    fit: str = "resample"
    names: Sequence[str] | None = None
    align_to: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _scale(self.mean, self.sd))  # no field: it is what mean and sd say
        _names(self.names, len(self.mean))
        _one_of("fit", self.fit, series.FITS)
        _text_or_none("align_to", self.align_to)

    def check(self, shape: Sequence[int], words: Sequence[str] | None) -> None:
        _fits(shape[1:], (len(self.mean),), "channels with these means")

    def read(self, cell: Any, shape: Sequence[int]) -> np.ndarray:
        _refuse_pairs(self.align_to)
        steps = series.series(cell)
        if steps.shape[1] != len(self.mean):
            raise ValueError(f"has {steps.shape[1]} channels, expected {len(self.mean)}")
        return _float32(self.scale.scaled(series.of_length(steps, shape[0], self.fit)))

    def show(self, sample: np.ndarray) -> np.ndarray:
        """float64 [length, channels] in the channels' own units."""
        return self.scale.unscaled(sample)


@dataclass(frozen=True)
class WholeNumbers(Recipe):
    """As :class:`mmvae_fast.data.CountsReader`."""

    numeric = True

    names: Sequence[str] | None = None

    def check(self, shape: Sequence[int], words: Sequence[str] | None) -> None:
        _fits(shape, (math.prod(shape),), "counts")
        _names(self.names, shape[0])

    def read(self, cell: Any, shape: Sequence[int]) -> np.ndarray:
        row = counts(cell)
        if row.shape != tuple(shape):
            raise ValueError(f"has {len(row)} counts, expected {shape[0]}")
        return _float32(row)

    def show(self, sample: np.ndarray) -> np.ndarray:
        """float64 [n]."""
        return sample.astype(np.float64)


@dataclass(frozen=True)
class Documents(Recipe):
    """As :class:`mmvae_fast.data.BagOfWordsReader`; the words are the modality's."""

    weighting: str = "counts"
    tokenizer: str = "treebank"
    lowercase: bool = True
    stop_words: str | Sequence[str] = ()
    idf: Sequence[float] | None = None
    top: int = 10

    def __post_init__(self) -> None:
        _one_of("weighting", self.weighting, ("counts", "tfidf"))
        _one_of("tokenizer", self.tokenizer, documents.TOKENIZERS)
        if not isinstance(self.lowercase, bool):
            raise ValueError(f"lowercase is {self.lowercase!r}, expected true or false")
        if self.stop_words != "english":
            _texts("stop_words", self.stop_words)
        _integer("top", self.top, 2**20)
        if (self.idf is None) != (self.weighting == "counts"):
            raise ValueError(f"idf is {'not ' * (self.idf is None)}given, with weighting {self.weighting!r}")
        if self.idf is not None:
            _reals("idf", self.idf)

    def check(self, shape: Sequence[int], words: Sequence[str] | None) -> None:
        if words is None or len(shape) != 1 or len(words) != shape[0]:
            raise ValueError("documents without a vocabulary, expected one word for every number")
        if len(set(words)) < len(words):
            raise ValueError("a vocabulary that holds a word twice")
        if self.idf is not None:
            _fits((len(self.idf),), shape, "idf")

    def vectorizer(self, words: Sequence[str]) -> Any:
        """Of scikit-learn; not to be pickled."""
        split = documents.analyzer(self.tokenizer, self.lowercase, documents.stops(self.stop_words))
        return documents.vectorizer(list(words), self.weighting, self.idf, split)

    def top_words(self, sample: np.ndarray, words: Sequence[str]) -> str:
        """Those that weigh most, most first; none that weighs 0."""
        places = np.argsort(-sample, kind="stable")[: self.top]
        return " ".join(words[i] for i in places if sample[i] > 0)


@dataclass(frozen=True)
class Sounds(Recipe):
    """As :class:`mmvae_fast.data.AudioReader`: a file, its bytes, or (waveform, rate)."""

    sample_rate: int
    seconds: float
    n_fft: int
    hop_length: int
    n_mels: int
    features: str = "log_mel"
    n_mfcc: int = 20
    align: str = "start"
    fmin: float = 0.0
    fmax: float | None = None
    floor_db: float = -40.0
    ceiling_db: float = 20.0
    iterations: int = 60
    align_to: str | None = None
    mean: Sequence[float] | None = None
    sd: Sequence[float] | None = None

    def __post_init__(self) -> None:
        _one_of("features", self.features, sound.FEATURES)
        _one_of("align", self.align, sound.ALIGNED)
        _integer("sample_rate", self.sample_rate, _MAX_RATE)
        for name in ("n_fft", "hop_length", "n_mels", "n_mfcc"):
            _integer(name, getattr(self, name), _MAX_WINDOW)
        _integer("iterations", self.iterations, _MAX_ITERATIONS)
        if self.n_mels * self.n_fft > _MAX_FILTERS:
            raise ValueError(f"n_mels * n_fft is {self.n_mels * self.n_fft}, expected at most {_MAX_FILTERS}")
        _number("seconds", self.seconds, 0, 1e6)
        for name in ("fmin", "floor_db", "ceiling_db"):
            _number(name, getattr(self, name), -1e9, 1e9)
        if self.fmax is not None:
            _number("fmax", self.fmax, 0, 1e9)
        if not 0 <= self.fmin < (self.sample_rate / 2 if self.fmax is None else self.fmax) <= self.sample_rate / 2:
            raise ValueError(f"fmin, fmax are {self.fmin}, {self.fmax}, expected a band below half the sample rate")
        if not self.floor_db < self.ceiling_db:
            raise ValueError(f"floor_db is {self.floor_db}, expected less than ceiling_db, {self.ceiling_db}")
        _text_or_none("align_to", self.align_to)
        if (self.mean is None) != (self.features == "log_mel") or (self.sd is None) != (self.mean is None):
            raise ValueError("mean and sd are expected of cepstra, and of nothing else")
        if self.mean is not None:
            object.__setattr__(self, "scale", _scale(self.mean, self.sd))

    @property
    def samples(self) -> int:
        """Of a waveform."""
        return round(self.seconds * self.sample_rate)

    @property
    def spectra(self) -> dict[str, Any]:
        names = ("sample_rate", "n_fft", "hop_length", "fmin", "fmax", "floor_db", "ceiling_db")
        return {name: getattr(self, name) for name in names}

    def check(self, shape: Sequence[int], words: Sequence[str] | None) -> None:
        rows = self.n_mels if self.features == "log_mel" else self.n_mfcc
        if self.samples < 1 or rows > self.n_mels:
            raise ValueError(f"{self.samples} samples, {rows} rows of {self.n_mels} filters")
        _fits(shape, (rows, 1 + self.samples // self.hop_length), "recordings")
        if self.mean is not None:
            _fits((len(self.mean),), (rows,), "means")

    def read(self, cell: Any, shape: Sequence[int]) -> np.ndarray:
        _refuse_pairs(self.align_to)
        wave = sound.wave_of(cell, self.sample_rate, self.samples, self.align)
        found = sound.features_of(wave[None], self.features, self.n_mels, self.n_mfcc, self.spectra)[0]
        return found if self.mean is None else _float32(self.scale.scaled(found.T).T)

    def show(self, sample: np.ndarray) -> tuple[np.ndarray, int]:
        """(waveform float32 [samples], rate in Hz)."""
        if self.mean is not None:
            cepstra = self.scale.unscaled(sample.T).T
            sample = audio.mfcc_to_log_mel(cepstra[None], self.n_mels)[0]
        made = audio.griffin_lim(sample[None], samples=self.samples, iterations=self.iterations, **self.spectra)
        return made[0], self.sample_rate


KINDS: dict[str, type[Recipe]] = {
    "image": Pictures,
    "text": Texts,
    "language": Texts,
    "vector": Columns,
    "sequence": Series,
    "counts": WholeNumbers,
    "bag_of_words": Documents,
    "audio": Sounds,
}
"""By kind of the modality."""

_READERS = {"lag": "vector"}  # kinds of readers whose samples are another kind's: a lag is a number


def is_readable(reader: Any) -> bool:
    """Whether there are recipes for what readers of this kind read."""
    return _READERS.get(reader, reader) in KINDS


def make(kind: str, how: Mapping[str, Any], shape: Sequence[int], words: Sequence[str] | None = None) -> Recipe:
    """The recipe that ``config()`` described.

    Raises:
        ValueError: none of this kind of data, or for such samples.
    """
    if kind not in KINDS:
        raise ValueError(f"a recipe for the kind {kind!r}, expected one of {', '.join(KINDS)}")
    known = [field.name for field in fields(KINDS[kind])]  # type: ignore[arg-type]  # they are dataclasses
    if unknown := sorted(map(str, set(how) - set(known))):
        raise ValueError(f"{unknown[0]!r} is unknown, expected some of {', '.join(known)}")
    needed = [f.name for f in fields(KINDS[kind]) if f.default is MISSING]  # type: ignore[arg-type]
    if missing := [name for name in needed if name not in how]:
        raise ValueError(f"{missing[0]!r} is missing")
    made = KINDS[kind](**how)
    made.check(shape, words)
    return made


def of_reader(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Of what a reader's ``config()`` says, what a recipe for the modality's kind holds.

    Raises:
        ValueError: there is no recipe of its kind, it is another than the modality's, or it was not fitted.
    """
    reader = config.get("kind", kind)
    if not is_readable(reader):
        raise ValueError(f"a bundle cannot read as a reader of kind {reader!r} does")
    if _READERS.get(reader, reader) != kind:
        raise ValueError(f"a reader of kind {reader!r}, expected one of kind {kind!r}")
    found = dict(config)
    fitted = found.pop("fitted", None)
    if reader == "lag":
        found["names"] = ["lag"]
    if kind in ("vector", "sequence", "audio") and isinstance(fitted, Mapping):
        found |= {"mean": fitted.get("mean"), "sd": fitted.get("sd")}
    if kind == "bag_of_words" and isinstance(fitted, Mapping):
        found["idf"] = fitted.get("idf")
    if kind in ("vector", "sequence", "bag_of_words") and fitted is None and "mean" not in found:
        raise ValueError(f"a {reader} reader that was not fitted")
    known = {field.name for field in fields(KINDS[kind])}  # type: ignore[arg-type]
    return {name: without_torch(value) for name, value in found.items() if name in known}


# --- checks -----------------------------------------------------------------------------------------------------------


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # inf is refused by whoever takes the sample
        return np.ascontiguousarray(values, dtype=np.float32)


def _refuse_pairs(align_to: str | None) -> None:
    if align_to is not None:
        raise ValueError(
            f"was brought into step with {align_to!r}, row by row, in training, which a bundle does not do; "
            "pass what the model takes, as an array"
        )


def _reals(what: str, values: Any) -> np.ndarray:
    if not isinstance(values, (list, tuple)) or not all(type(v) in (int, float) and abs(v) < 1e308 for v in values):
        raise ValueError(f"{what} is expected to be a list of finite numbers")
    return np.array(values, dtype=np.float64)


def _scale(mean: Any, sd: Any) -> Scale:
    return Scale(_reals("mean", mean), _reals("sd", sd))


def _fits(found: Sequence[int], expected: Sequence[int], what: str) -> None:
    if tuple(found) != tuple(expected):
        raise ValueError(f"{what}: shape {list(found)}, expected {list(expected)}")


def _one_of(what: str, value: Any, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{what} is {_short(value)}, expected one of {', '.join(map(repr, allowed))}")


def _number(what: str, value: Any, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{what} is {_short(value)}, expected a number from {low:g} to {high:g}")


def _integer(what: str, value: Any, high: int) -> None:
    if type(value) is not int or not 1 <= value <= high:
        raise ValueError(f"{what} is {_short(value)}, expected a whole number from 1 to {high}")


def _texts(what: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{what} is {_short(value)}, expected a list of texts")


def _text_or_none(what: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{what} is {_short(value)}, expected a text or null")


def _names(value: Any, n: int) -> None:
    if value is not None:
        _texts("names", value)
        if len(value) != n:
            raise ValueError(f"names holds {len(value)}, expected {n}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
