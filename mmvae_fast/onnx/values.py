"""Values as people and other programs have them (files, texts, numbers) as arrays for the Runtime, and back.

Everything comes from outside, so nothing is believed: sizes are checked before memory is taken, nothing is unpickled,
and every error names the modality, what came and what was expected. NumPy only; Pillow for pictures.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_fast import _files, _lazy
from mmvae_fast.features import audio
from mmvae_fast.onnx.errors import BadDtype, BadShape, BadValue, InputError
from mmvae_fast.onnx.manifest import ModalitySpec
from mmvae_fast.onnx.runtime import Runtime
from mmvae_fast.reading import pictures
from mmvae_fast.reading.numbers import names_of, write_table
from mmvae_fast.reading.recipes import KINDS
from mmvae_fast.reading.series import parse_table

MAX_PIXELS = 2**25
"""Of a picture, before it is decoded: a file of a few kB can hold gigapixels."""

_OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NPY = b"\x93NUMPY"


def from_text(runtime: Runtime, name: str, text: str) -> np.ndarray:
    """One sample [1, *shape] from a command line: the path of a file, words, or numbers with commas, an empty place
    being a missing one.

    Raises:
        InputError: what was given makes no sample of this modality.
        OSError: a file that cannot be read.
    """
    spec = runtime.modalities[name]
    if takes_text(spec) and not text.endswith(".npy"):
        return runtime.read(name, [text])
    if len(spec.shape) == 1 and (line := _numbers(text)) is not None:
        return from_list(runtime, name, [line])
    path = Path(text)
    if path.is_file() and _is_table(spec, path):
        return runtime.read(name, [path])
    if not path.is_file():
        raise InputError(f"modality {name!r}: {text!r} is no file; expected {expected(spec)}")
    return from_bytes(runtime, name, path.read_bytes(), text)


def from_bytes(runtime: Runtime, name: str, data: bytes, source: str, max_pixels: int | None = None) -> np.ndarray:
    """Samples [B, *shape] from the content of a file: .npy (one sample or several), a picture, a sound, text, JSON or
    CSV. Numbers are in their own units where the bundle says how vectors, series or counts were read.

    Raises:
        InputError: what is wrong with it; ``source`` names it.
    """
    spec = runtime.modalities[name]
    where = f"modality {name!r}: {source}"
    if data.startswith(_NPY):
        return _batch(runtime, name, _npy(data, where))
    if spec.kind == "image":
        return _picture(data, spec, where, MAX_PIXELS if max_pixels is None else max_pixels)[None]
    if spec.kind == "audio" and spec.preprocessing is not None and not data.lstrip().startswith(b"["):
        try:
            return runtime.read(name, [data])
        except BadValue as error:
            raise BadValue(f"{error} (from {source})") from error
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise BadDtype(f"{where}: {len(data)} bytes of no known format, expected {expected(spec)}") from None
    if takes_text(spec):
        return runtime.read(name, [text])
    if text.startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadValue(f"{where}: not valid JSON ({error})") from None
        return _batch(runtime, name, _array(spec, value, where))
    line = _numbers(text)
    if _is_numeric(spec) and (line is None or len(line) != spec.shape[0] or len(spec.shape) > 1):
        try:
            return _batch(runtime, name, parse_table(text, ",").values)
        except InputError:
            raise
        except ValueError as error:
            raise BadValue(f"{where}: {error}, expected {expected(spec)}") from None
    if line is None:
        raise BadValue(f"{where}: expected {expected(spec)}")
    return from_list(runtime, name, [line])


def from_list(runtime: Runtime, name: str, rows: Any) -> np.ndarray:
    """Samples [B, *shape] from plain Python data, such as parsed JSON: nested lists of numbers (as :func:`from_bytes`),
    or texts. A text is never taken for a path.

    Raises:
        InputError: ragged, of another shape, or not numbers.
    """
    spec = runtime.modalities[name]
    where = f"modality {name!r}"
    if not isinstance(rows, list):
        raise BadShape(f"{where} is a {type(rows).__name__}, expected a list of samples")
    if rows and all(isinstance(row, str) for row in rows):
        if not takes_text(spec):
            raise BadDtype(f"{where} holds texts, expected {expected(spec)}")
        return runtime.read(name, rows)
    if not _is_numeric(spec):
        return _array(spec, rows, where)
    return runtime.read(name, [np.atleast_1d(_array(spec, row, f"{where}, row {i}")) for i, row in enumerate(rows)])


def numbers(value: Any, dtype: Any = np.float32) -> np.ndarray:
    """Nested lists as an array; None is NaN. Neither texts nor True are numbers.

    Raises:
        ValueError, TypeError, OverflowError, RecursionError: ragged, or other things than numbers.
    """
    with np.errstate(over="ignore"):  # what does not fit becomes inf
        found = np.array(value, dtype=dtype)
    kinds = set(map(type, np.array(value, dtype=object).ravel().tolist()))
    if wrong := sorted(kind.__name__ for kind in kinds if kind in (str, bytes, bool)):
        raise TypeError(f"holds {' and '.join(wrong)}, expected numbers")
    return found


def as_text(runtime: Runtime, name: str, sample: np.ndarray) -> str | None:
    """A sample [*shape] as a line for a person: words, or numbers in their own units; None where a file is needed."""
    spec = runtime.modalities[name]
    if takes_text(spec):
        return runtime.show(name, sample[None])[0]
    if len(spec.shape) == 1:
        return ",".join(f"{value:g}" for value in runtime.show(name, sample[None])[0].tolist())
    return None


def plain(runtime: Runtime, name: str, samples: np.ndarray) -> Any:
    """Samples [B, *shape] for JSON: texts, numbers in their own units, else as the model gives them."""
    spec = runtime.modalities[name]
    return runtime.show(name, samples) if is_text(spec) or _is_numeric(spec) else samples


def write(runtime: Runtime, name: str, sample: np.ndarray, path: str | Path) -> Path:
    """Write a sample [*shape] as .png (images), .wav (sounds), .txt (words), .csv (numbers; with a header where the
    bundle says how they were read) or, where the path says so or nothing else fits, .npy; the suffix is added unless it
    is there. The file is there when it is complete."""
    spec, path = runtime.modalities[name], Path(path)
    suffix, known = path.suffix.lower(), spec.preprocessing is not None
    if suffix != ".npy" and spec.kind == "audio" and known:
        path = _files.with_ending(path, ".wav")
        _files.write_atomic(path, wav(runtime, name, sample))
        return path
    if suffix != ".npy" and _is_numeric(spec):
        rows = np.atleast_2d(runtime.show(name, sample[None])[0])
        return write_table(path, names_of((spec.preprocessing or {}).get("names"), rows.shape[1], spec.kind), rows)
    line = as_text(runtime, name, sample)
    if is_picture(spec) and suffix in _OTHER_PICTURES:
        raise BadValue(f"{path}: pictures are written as .png or .npy, expected a path that ends so")
    if suffix != ".npy" and is_picture(spec):
        path, data = _files.with_ending(path, ".png"), png(sample)
    elif suffix != ".npy" and line is not None:
        path, data = _files.with_ending(path, ".txt" if takes_text(spec) else ".csv"), f"{line}\n".encode()
    else:
        file = io.BytesIO()
        np.save(file, runtime.show(name, sample[None])[0] if _is_numeric(spec) else sample, allow_pickle=False)
        path, data = _files.with_ending(path, ".npy"), file.getvalue()
    _files.write_atomic(path, data)
    return path


def example(runtime: Runtime, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of every modality, of numbers that mean nothing: to try or time a bundle, whatever its model is."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for name, spec in runtime.modalities.items():
        shape = (rows, *spec.shape)
        tokens = spec.dtype == "int64"
        made[name] = rng.integers(0, spec.vocabulary_size or 1, shape) if tokens else rng.random(shape, np.float32)
    return made


def is_text(spec: ModalitySpec) -> bool:
    """Token ids that the bundle can turn into words."""
    return spec.dtype == "int64" and (spec.vocabulary is not None or spec.tokens is not None)


def takes_text(spec: ModalitySpec) -> bool:
    """Words in an order, or documents of which the bundle knows how their words are counted."""
    return is_text(spec) or (spec.kind == "bag_of_words" and spec.preprocessing is not None)


def is_picture(spec: ModalitySpec) -> bool:
    return spec.kind == "image" and len(spec.shape) == 3 and spec.shape[0] in (1, 3)


def png(sample: np.ndarray) -> bytes:
    """An image [C, H, W] in [0, 1] as a PNG file."""
    pillow = _lazy.require("PIL.Image", extra="image")
    pixels = (np.clip(np.nan_to_num(sample), 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
    return file.getvalue()


def wav(runtime: Runtime, name: str, sample: np.ndarray) -> bytes:
    """A sound [*shape] as a WAV file.

    Raises:
        BadValue: the bundle does not say how the sounds were read.
    """
    spec = runtime.modalities[name]
    if spec.kind != "audio" or spec.preprocessing is None:
        raise BadValue(f"modality {name!r} is no sound, or the bundle does not say how its sounds were read")
    return audio.wav_bytes(*runtime.show(name, sample[None])[0])


def expected(spec: ModalitySpec) -> str:
    """What can be given for a modality, in words."""
    array = f"a .npy array of shape {list(spec.shape)}"
    if is_picture(spec):
        return f"a picture or {array}"
    if takes_text(spec):
        return f"a text or {array}"
    if spec.kind == "audio" and spec.preprocessing is not None:
        return f"a sound file or {array}"
    if spec.kind == "sequence" and spec.preprocessing is not None:
        return f"a table of [T, {spec.shape[-1]}] numbers"
    if len(spec.shape) == 1:
        return f"{spec.shape[0]} numbers with commas between them or {array}"
    return array


def _numbers(text: str) -> list[float] | None:
    try:
        cells = text.replace("\n", ",").split(",")
        return [float(cell) if cell.strip() else math.nan for cell in cells] if any(map(str.strip, cells)) else None
    except ValueError:
        return None


def _array(spec: ModalitySpec, value: Any, where: str) -> np.ndarray:
    """Nested lists as float32 (null is NaN) or int64; never by way of strings, which NumPy would make as long as the
    longest of them."""
    try:
        exact = spec.dtype != "float32" or _is_numeric(spec)
        found = numbers(value, np.float64 if exact else np.float32)  # what is inf is refused by the Runtime by name
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadShape(f"{where} is no array of numbers ({error}), expected {expected(spec)}") from None
    if spec.dtype == "float32":
        return found
    if not (np.isfinite(found) & (found == np.floor(found)) & (np.abs(found) < 2**53)).all():
        raise BadDtype(f"{where} holds other things than whole numbers, expected token ids")
    return found.astype(np.int64)


def _batch(runtime: Runtime, name: str, found: np.ndarray) -> np.ndarray:
    """An array of one sample or several as samples; of what has units, in these."""
    spec = runtime.modalities[name]
    if _is_numeric(spec):
        return runtime.read(name, found if found.ndim > len(spec.shape) else found[None])
    return found[None] if found.shape == spec.shape else found


def _is_numeric(spec: ModalitySpec) -> bool:
    """Numbers of which the bundle knows the units."""
    return spec.preprocessing is not None and KINDS[spec.kind].numeric


def _is_table(spec: ModalitySpec, path: Path) -> bool:
    return spec.kind == "sequence" and _is_numeric(spec) and path.suffix.lower() in (".csv", ".tsv", ".txt", ".npy")


def _npy(data: bytes, where: str) -> np.ndarray:
    """An array from a .npy file that is exactly as long as its header says."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](file)
    except (ValueError, KeyError, EOFError, OverflowError, RecursionError, MemoryError) as error:
        raise BadValue(f"{where}: a damaged .npy file ({error})") from None
    if dtype.kind not in "biuf":
        raise BadDtype(f"{where}: a .npy file of {dtype}, expected numbers")
    if len(shape) > 32 or any(type(n) is not int for n in shape):  # NumPy 1 ends at 32 dimensions; True is an int
        raise BadValue(f"{where}: a .npy file of {len(shape)} dimensions {str(shape)[:60]}, expected at most 32 sizes")
    size = dtype.itemsize
    for n in shape:
        size *= n  # in Python's integers, which do not overflow
    rest = data[file.tell() :]
    if size != len(rest) or any(n < 0 for n in shape):
        raise BadValue(f"{where}: a .npy file with {len(rest)} bytes of data, expected {size} for {list(shape)}")
    try:
        return np.frombuffer(rest, dtype=dtype).reshape(shape, order="F" if fortran else "C").copy()
    except (ValueError, OverflowError) as error:  # no numbers, in more rows than there are addresses
        raise BadValue(f"{where}: a .npy file that is no array of shape {list(shape)} ({error})") from None


def _picture(data: bytes, spec: ModalitySpec, where: str, max_pixels: int) -> np.ndarray:
    """Float32 [C, H, W] in [0, 1], made to fit as the bundle says."""
    if not is_picture(spec):
        raise BadDtype(f"{where}: expected {expected(spec)}")
    pillow = _lazy.require("PIL.Image", extra="image")
    how = spec.preprocessing or {}
    try:
        with pillow.open(io.BytesIO(data), formats=pictures.FORMATS) as image:
            pixels = image.width * image.height
        if pixels > max_pixels:
            raise BadShape(f"{where}: a picture of {pixels} pixels, expected at most {max_pixels}")
        return pictures.read(data, spec.shape, how.get("fit", "stretch"), how.get("background", 1.0))
    except InputError:
        raise
    except pillow.UnidentifiedImageError:
        raise BadDtype(f"{where}: {len(data)} bytes of no known format, expected {expected(spec)}") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsing ran into
        raise BadValue(f"{where}: a damaged picture ({error})") from None
