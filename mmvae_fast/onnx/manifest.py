"""``manifest.json``: everything a bundle's user must know to feed it, and the SHA-256 of every file in it.

Read and written without torch and onnx. A bundle comes from outside: nothing in a manifest is believed before it is
checked, file names must be plain names inside the folder, and every error names the file and what was expected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mmvae_fast.onnx import noise
from mmvae_fast.onnx.errors import BundleError

FORMAT = "mmvae_fast.onnx"
SCHEMA = 1
FILE_NAME = "manifest.json"
METADATA_KEY = "mmvae_fast"
_MAX_BYTES = 256 * 2**20  # of manifest.json: far above any vocabulary


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a part: name, NumPy dtype name and shape; a string in the shape is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class IO(NamedTuple):
    """What a part takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class PartSpec:
    """One .onnx file of the bundle."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def io(self) -> IO:
        return IO(self.inputs, self.outputs)


@dataclass(frozen=True)
class ModalitySpec:
    """One modality, in the order of the mask's columns. Shapes are of one sample, without the batch dimension."""

    name: str
    kind: str
    shape: tuple[int, ...]
    param_shape: tuple[int, ...]
    dtype: str
    likelihood: str
    scale: float
    vocabulary_size: int | None = None
    vocabulary: tuple[str, ...] | None = None
    gaps: bool = False  # NaN in an observed row is a missing entry


@dataclass(frozen=True)
class Manifest:
    """The whole of ``manifest.json``; ``files`` maps every other file of the bundle to its SHA-256 (hexadecimal)."""

    model: str
    latent_dim: int
    modalities: tuple[ModalitySpec, ...]
    parts: Mapping[str, PartSpec]
    opset: int
    ir_version: int
    versions: Mapping[str, str]
    noise: Mapping[str, Any] = field(default_factory=lambda: dict(noise.SPEC))
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the mask's columns."""
        return tuple(m.name for m in self.modalities)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "schema": SCHEMA, **asdict(self)}

    def dumps(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_json(), indent=indent, ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(data: Any, source: str = FILE_NAME) -> Manifest:
        """Check ``data`` and build the manifest; ``source`` names it in errors."""
        reader = _Reader(source)
        top = reader.mapping(data, "the manifest")
        if top.get("format") != FORMAT:
            raise BundleError(
                f"{source}: format is {top.get('format')!r}, expected {FORMAT!r}: not a bundle of mmvae_fast"
            )
        if top.get("schema") != SCHEMA:
            raise BundleError(
                f"{source}: schema version {top.get('schema')!r}, expected {SCHEMA}: "
                "the bundle was written by another version of mmvae_fast; export it again or use that version"
            )
        manifest = Manifest(
            model=reader.get(top, "model", str),
            latent_dim=reader.positive(top, "latent_dim"),
            modalities=tuple(reader.modality(m) for m in reader.get(top, "modalities", list)),
            parts={name: reader.part(name, p) for name, p in reader.get(top, "parts", dict).items()},
            opset=reader.positive(top, "opset"),
            ir_version=reader.positive(top, "ir_version"),
            versions=reader.get(top, "versions", dict),
            noise=reader.get(top, "noise", dict),
            files=reader.get(top, "files", dict),
        )
        reader.check(manifest)
        return manifest


def encoder_part(modality: str) -> str:
    return f"encoder_{modality}"


def decoder_part(modality: str) -> str:
    return f"decoder_{modality}"


FUSION_PART = "fusion"


def expected_io(latent_dim: int, modalities: Sequence[ModalitySpec]) -> dict[str, IO]:
    """For every part of a bundle, what it takes and gives: all that exporter, manifest and Runtime agree on."""

    def real(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name, "float32", shape)

    experts = ("batch", len(modalities), latent_dim)
    joint = ("batch", latent_dim)
    parts = {
        FUSION_PART: IO(
            (
                real("mu", *experts),
                real("logvar", *experts),
                TensorSpec("mask", "bool", experts[:2]),
                real("eps", "samples", *joint),
            ),
            (real("z", "samples", *joint), real("joint_mu", *joint), real("joint_logvar", *joint), real("kl", "batch")),
        )
    }
    for m in modalities:
        x: tuple[int | str, ...] = ("batch", *m.shape)
        parts[encoder_part(m.name)] = IO((TensorSpec("x", m.dtype, x),), (real("mu", *joint), real("logvar", *joint)))
        parts[decoder_part(m.name)] = IO(
            (real("z", *joint),), (real("params", "batch", *m.param_shape), TensorSpec("prediction", m.dtype, x))
        )
    return parts


def mismatch(found: IO, expected: IO) -> str | None:
    """Where two descriptions of a part differ, in words."""
    for kind, ours, theirs in zip(IO._fields, found, expected, strict=True):
        if ours != theirs:
            is_, should = ([(t.name, t.dtype, list(t.shape)) for t in side] for side in (ours, theirs))
            return f"{kind} are {is_}, expected {should}"
    return None


class _Reader:
    """Typed access to parsed JSON; every complaint starts with the file's name."""

    def __init__(self, source: str):
        self.source = source

    def fail(self, text: str) -> BundleError:
        return BundleError(f"{self.source}: {text}")

    def mapping(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(f"{what} is a {type(value).__name__}, expected an object")
        return value

    def get(self, value: Any, key: str, kind: type | tuple[type, ...]) -> Any:
        found = self.mapping(value, f"the object around {key!r}").get(key)
        if not isinstance(found, kind) or isinstance(found, bool):
            expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise self.fail(f"{key!r} is {_short(found)}, expected {expected}")
        return found

    def positive(self, value: Any, key: str) -> int:
        found = self.get(value, key, int)
        if found < 1:
            raise self.fail(f"{key!r} is {found}, expected 1 or more")
        return found

    def sizes(self, value: Any, key: str) -> tuple[int, ...]:
        found = self.get(value, key, list)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in found):
            raise self.fail(f"{key!r} is {_short(found)}, expected a list of positive ints")
        return tuple(found)

    def modality(self, value: Any) -> ModalitySpec:
        words = self.mapping(value, "a modality").get("vocabulary")
        if words is not None and not (isinstance(words, list) and all(isinstance(w, str) for w in words)):
            raise self.fail(f"'vocabulary' is {_short(words)}, expected a list of strings or null")
        size = value.get("vocabulary_size")
        gaps = value.get("gaps", False)  # older bundles say nothing
        if not isinstance(gaps, bool):
            raise self.fail(f"'gaps' is {_short(gaps)}, expected true or false")
        return ModalitySpec(
            name=self.get(value, "name", str),
            kind=self.get(value, "kind", str),
            shape=self.sizes(value, "shape"),
            param_shape=self.sizes(value, "param_shape"),
            dtype=self.get(value, "dtype", str),
            likelihood=self.get(value, "likelihood", str),
            scale=float(self.get(value, "scale", (int, float))),
            vocabulary_size=None if size is None else self.positive(value, "vocabulary_size"),
            vocabulary=None if words is None else tuple(words),
            gaps=gaps,
        )

    def tensors(self, value: Any, key: str) -> tuple[TensorSpec, ...]:
        specs = []
        for t in self.get(value, key, list):
            shape = self.get(t, "shape", list)
            if not all(isinstance(n, (int, str)) for n in shape):
                raise self.fail(f"'shape' is {_short(shape)}, expected a list of ints and names")
            specs.append(TensorSpec(self.get(t, "name", str), self.get(t, "dtype", str), tuple(shape)))
        return tuple(specs)

    def part(self, name: str, value: Any) -> PartSpec:
        self.mapping(value, f"part {name!r}")
        file = self.file_name(self.get(value, "file", str))
        return PartSpec(file, self.tensors(value, "inputs"), self.tensors(value, "outputs"))

    def file_name(self, name: str) -> str:
        """A bundle is flat: a name with a separator, a drive or dots could only point out of it."""
        if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
            raise self.fail(
                f"file name {name!r} leaves the bundle's folder, expected a plain name such as 'fusion.onnx'"
            )
        return name

    def check(self, manifest: Manifest) -> None:
        """What the fields owe to each other."""
        if not manifest.modalities:
            raise self.fail("'modalities' is empty, expected at least one")
        if len(set(manifest.names)) != len(manifest.names):
            raise self.fail(f"'modalities' names one twice: {list(manifest.names)}")
        for m in manifest.modalities:
            if m.dtype not in ("float32", "int64"):
                raise self.fail(f"modality {m.name!r} has dtype {m.dtype!r}, expected 'float32' or 'int64'")
            if m.dtype == "int64" and m.vocabulary_size is None:
                raise self.fail(f"modality {m.name!r} has no 'vocabulary_size', expected one for token ids")
            if m.dtype == "int64" and m.param_shape != (*m.shape, m.vocabulary_size):
                raise self.fail(
                    f"modality {m.name!r} has 'param_shape' {list(m.param_shape)}, expected 'shape' and then "
                    f"'vocabulary_size': {[*m.shape, m.vocabulary_size]}"
                )
            if m.vocabulary is not None and len(m.shape) != 1:
                raise self.fail(f"modality {m.name!r} of words has shape {list(m.shape)}, expected [length]")
            if m.vocabulary is not None and len(m.vocabulary) != m.vocabulary_size:
                raise self.fail(
                    f"modality {m.name!r} has {len(m.vocabulary)} words, expected 'vocabulary_size' {m.vocabulary_size}"
                )
        if manifest.noise != noise.SPEC:
            raise self.fail(f"'noise' is {_short(manifest.noise)}, expected the one this version makes: {noise.SPEC}")
        expected = expected_io(manifest.latent_dim, manifest.modalities)
        if set(manifest.parts) != set(expected):
            raise self.fail(f"'parts' holds {sorted(manifest.parts)}, expected {sorted(expected)}")
        for name, part in manifest.parts.items():
            if wrong := mismatch(part.io, expected[name]):
                raise self.fail(f"part {name!r}: {wrong} by 'latent_dim' and 'modalities'")
        for name, digest in manifest.files.items():
            self.file_name(name)
            if not isinstance(digest, str) or len(digest) != 64:
                raise self.fail(
                    f"'files' gives {_short(digest)} for {name!r}, expected a SHA-256 of 64 hexadecimal digits"
                )
        for name, part in manifest.parts.items():
            if part.file not in manifest.files:
                raise self.fail(f"'files' has no SHA-256 for {part.file!r} of part {name!r}")


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def with_hashes(manifest: Manifest, folder: Path, files: Sequence[str]) -> Manifest:
    return replace(manifest, files={name: sha256(folder / name) for name in sorted(files)})


def write(manifest: Manifest, folder: Path) -> None:
    (folder / FILE_NAME).write_text(manifest.dumps() + "\n", encoding="utf-8")


def read(folder: str | Path) -> Manifest:
    """The checked manifest of a bundle; its files are looked at by :func:`check_files`.

    Raises:
        BundleError: no folder, no manifest, broken JSON, another format or schema version, or inconsistent content.
    """
    path = Path(folder) / FILE_NAME
    if not Path(folder).is_dir():
        raise BundleError(f"{folder}: no such folder, expected a bundle written by mmvae_fast.onnx.export_onnx")
    if not path.is_file():
        raise BundleError(f"{path}: missing, expected a bundle written by mmvae_fast.onnx.export_onnx")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise BundleError(f"{path}: {size} bytes, expected at most {_MAX_BYTES}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise BundleError(f"{path}: not valid JSON ({error})") from error
    return Manifest.from_json(data, str(path))


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle and nothing else: what may be replaced by another one."""
    try:
        files = read(folder).files
    except BundleError:
        return False
    return {path.name for path in folder.iterdir()} <= {*files, FILE_NAME}


def check_files(manifest: Manifest, folder: str | Path) -> None:
    """Every file is there and holds what was exported.

    Raises:
        BundleError: a file is missing or its SHA-256 differs.
    """
    for name, expected in manifest.files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise BundleError(f"{path}: missing, but {FILE_NAME} lists it")
        found = sha256(path)
        if found != expected:
            raise BundleError(
                f"{path}: SHA-256 is {found[:16]}..., expected {expected[:16]}...: "
                "the file is damaged or belongs to another bundle"
            )
