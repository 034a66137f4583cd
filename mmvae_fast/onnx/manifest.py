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
from mmvae_fast.reading import recipes

FORMAT = "mmvae_fast.onnx"
SCHEMA = 2  # 1 knew one shared Gaussian latent and its noise only
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
class NoiseSpec:
    """An input that holds noise: how the Runtime makes it from a seed, the same that the model draws.

    ``kind`` is "normal" or "laplace" (scale 1), "uniform" (which component a sample is drawn of) or
    "uniform_of_samples" (the same, its counter's dimension being the sample); see :mod:`mmvae_fast.onnx.noise`. The
    seed is the caller's plus ``branch`` odd strides, so that draws are independent.
    """

    name: str
    kind: str
    branch: int = 0


@dataclass(frozen=True)
class PartSpec:
    """One .onnx file of the bundle."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    noise: tuple[NoiseSpec, ...] = ()  # of the inputs, those that hold noise

    @property
    def io(self) -> IO:
        return IO(self.inputs, self.outputs)


@dataclass(frozen=True)
class LanguageSpec:
    """What a text that is generated token by token needs: the tokenizer's file, and the ids it leaves to us."""

    file: str
    pad: int
    begin: int
    end: int
    offset: int
    """Added to the tokenizer's ids."""
    cache: tuple[int, ...]
    """[2 * layers, heads, width of a head] of the keys and values remembered; empty for what is never generated."""


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
    expert_dim: int | None = None  # of what its encoder gives, private latent included; None: the bundle's latent_dim
    code_dim: int | None = None  # of what its decoder takes; None: the bundle's latent_dim
    decodable: bool = True  # False for what a model is only ever given
    features: bool = False  # a second encoder, for rows in which everything is observed
    own_code: bool = False  # the fusion says what its decoder takes: the latent alone does not
    lifted: bool = False  # a network of its own leads from the latent to what its decoder takes
    tokens: LanguageSpec | None = None
    preprocessing: Mapping[str, Any] | None = None
    """How raw values become samples: what a recipe of :mod:`mmvae_fast.reading.recipes` for this kind holds."""


@dataclass(frozen=True)
class Manifest:
    """The whole of ``manifest.json``; ``files`` maps every other file of the bundle to its SHA-256 (hexadecimal)."""

    model: str
    """Name of the class."""
    latent_dim: int
    modalities: tuple[ModalitySpec, ...]
    parts: Mapping[str, PartSpec]
    opset: int
    ir_version: int
    versions: Mapping[str, str]
    system: str = "model"
    """"model", "classifier" (one around a model), "gan" or "cyclegan"."""
    posterior: str = "gaussian"
    """"gaussian", "mixture" or "flow"."""
    prior: str = "standard normal"
    """"standard normal", "none", or the name of the class whose draws the part ``prior`` makes."""
    sampling: str = "eps"
    """"eps": noise is an input; "philox": a seed is."""
    context_dim: int = 0
    """Of what decoders see of a condition, beside the latent."""
    condition_dim: int = 0
    """Of a GAN's condition that is no class."""
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    """Where the bundle serves something else than the model, in words."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the exporter was told to keep."""
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
            system=reader.one_of(top, "system", SYSTEMS),
            condition_dim=reader.count(top, "condition_dim"),
            posterior=reader.one_of(top, "posterior", POSTERIORS),
            prior=reader.get(top, "prior", str),
            sampling=reader.one_of(top, "sampling", SAMPLINGS),
            context_dim=reader.count(top, "context_dim"),
            classes=reader.words(top, "classes"),
            notes=reader.words(top, "notes") or (),
            metadata=reader.get(top, "metadata", dict),
            noise=reader.get(top, "noise", dict),
            files=reader.get(top, "files", dict),
        )
        reader.check(manifest)
        return manifest


def encoder_part(modality: str) -> str:
    return f"encoder_{modality}"


def decoder_part(modality: str) -> str:
    return f"decoder_{modality}"


def features_part(modality: str) -> str:
    return f"features_{modality}"


def lift_part(modality: str) -> str:
    return f"lift_{modality}"


def begin_part(modality: str) -> str:
    return f"{decoder_part(modality)}_begin"


def step_part(modality: str) -> str:
    return f"{decoder_part(modality)}_step"


def code_output(modality: str) -> str:
    return f"code_{modality}"


def private_noise(modality: str) -> str:
    return f"eps_{modality}"


def translator_part(modality: str) -> str:
    return f"translator_to_{modality}"


MODEL_SYSTEM, CLASSIFIER_SYSTEM, GAN_SYSTEM, CYCLEGAN_SYSTEM = "model", "classifier", "gan", "cyclegan"
SYSTEMS = (MODEL_SYSTEM, CLASSIFIER_SYSTEM, GAN_SYSTEM, CYCLEGAN_SYSTEM)
GENERATOR_PART = "generator"
FUSION_PART, PRIOR_PART, CLASSIFIER_PART = "fusion", "prior", "classifier"
POSTERIORS = ("gaussian", "mixture", "flow")
NO_PRIOR, STANDARD_NORMAL = "none", "standard normal"
SAMPLINGS = ("eps", "philox")
SEEDED_INPUTS = (
    TensorSpec("seed", "int64", ()),
    TensorSpec("count", "int64", ()),
    TensorSpec("noise_scale", "float32", ()),
)
"""What a graph with its own noise takes: a seed, the number of samples (of the prior: rows), and 1 or, for none, 0."""
NOISE_KINDS = ("normal", "laplace", "uniform", "uniform_of_samples")


@dataclass(frozen=True)
class Interface:
    """What decides which parts a bundle has, and what each takes and gives."""

    latent_dim: int
    modalities: Sequence[ModalitySpec]
    prior: str = STANDARD_NORMAL
    context_dim: int = 0
    classes: int = 0
    fusion_noise: Sequence[NoiseSpec] = (NoiseSpec("eps", "normal"),)
    prior_noise: Sequence[NoiseSpec] = ()
    sampling: str = "eps"
    system: str = MODEL_SYSTEM
    condition_dim: int = 0

    @property
    def widest(self) -> int:
        """What experts are padded to, to be one array."""
        return max(m.expert_dim or self.latent_dim for m in self.modalities)

    def io(self) -> dict[str, IO]:
        if self.system == GAN_SYSTEM:
            return {GENERATOR_PART: self._generator()}
        if self.system == CYCLEGAN_SYSTEM:
            pairs = zip(self.modalities, reversed(self.modalities), strict=True)
            return {
                translator_part(to.name): IO((_data("x", source),), (_data("prediction", to),)) for to, source in pairs
            }
        parts: dict[str, IO] = {}
        for m in self.modalities:
            parts |= self._of_modality(m)
        experts = ("batch", len(self.modalities), self.widest)
        joint = ("batch", self.latent_dim)
        given = [_real("mu", *experts), _real("logvar", *experts), TensorSpec("mask", "bool", experts[:2])]
        if self.classes:
            parts[CLASSIFIER_PART] = IO(tuple(given), (_real("probabilities", "batch", self.classes),))
        if any(m.features for m in self.modalities):
            features = ("batch", len(self.modalities), self.latent_dim)
            given += [_real("features_mu", *features), _real("features_logvar", *features)]
        seeded = list(SEEDED_INPUTS) if self.sampling == "philox" else None
        given += seeded or [self._noise(n, sampled=True) for n in self.fusion_noise]
        codes = [_real(code_output(m.name), "batch", m.code_dim or self.latent_dim) for m in self._own()]
        found = [_real("z", "samples", *joint), *(_real(n, *joint) for n in ("joint_mu", "joint_logvar"))]
        found += [_real("kl", "batch"), _real("point", *joint), *codes]
        if self.context_dim:
            found += [_real("context", "batch", self.context_dim)]
            found += [_real(name, *joint) for name in ("prior_mu", "prior_logvar")]
        parts[FUSION_PART] = IO(tuple(given), tuple(found))
        if self.prior_noise:
            drawn = seeded or [self._noise(n, sampled=False) for n in self.prior_noise]
            parts[PRIOR_PART] = IO(tuple(drawn), (_real("z", *joint), *codes))
        return parts

    def _generator(self) -> IO:
        label = [TensorSpec("label", "int64", ("batch",))] if self.classes else []
        condition = [_real("condition", "batch", self.condition_dim)] if self.condition_dim else []
        noise = SEEDED_INPUTS if self.sampling == "philox" else (_real("eps", "batch", self.latent_dim),)
        return IO((*label, *condition, *noise), (_data("prediction", self.modalities[0]),))

    def _of_modality(self, m: ModalitySpec) -> dict[str, IO]:
        x: tuple[int | str, ...] = ("batch", *m.shape)
        code = _real("z", "batch", m.code_dim or self.latent_dim)
        expert = ("batch", m.expert_dim or self.latent_dim)
        parts = {
            encoder_part(m.name): IO((TensorSpec("x", m.dtype, x),), (_real("mu", *expert), _real("logvar", *expert)))
        }
        if m.features:
            joint = ("batch", self.latent_dim)
            parts[features_part(m.name)] = IO(
                (TensorSpec("x", m.dtype, x),), (_real("mu", *joint), _real("logvar", *joint))
            )
        if m.lifted:
            latent = _real("z", "batch", self.latent_dim)
            parts[lift_part(m.name)] = IO((latent,), (_real("code", "batch", m.code_dim or self.latent_dim),))
        if m.tokens is not None and m.decodable:
            pairs, heads, width = m.tokens.cache
            past, longer = (
                _real(n, pairs, "batch", heads, t, width) for n, t in (("past", "past"), ("present", "seen"))
            )
            parts[begin_part(m.name)] = IO((code,), (_real("present", pairs, "batch", heads, 1, width),))
            tokens = (TensorSpec("last", "int64", ("batch",)), TensorSpec("t", "int64", ()))
            logits = _real("logits", "batch", m.vocabulary_size or 0)
            parts[step_part(m.name)] = IO((code, *tokens, past), (logits, longer))
        elif m.decodable:
            outputs = (_real("params", "batch", *m.param_shape), TensorSpec("prediction", m.dtype, x))
            parts[decoder_part(m.name)] = IO((code,), outputs)
        return parts

    def _own(self) -> list[ModalitySpec]:
        return [m for m in self.modalities if m.own_code and m.decodable]

    def _noise(self, noise: NoiseSpec, *, sampled: bool) -> TensorSpec:
        """Of z every sample has its own; of a private latent every row."""
        private = {private_noise(m.name): (m.code_dim or 0) - self.latent_dim for m in self.modalities}
        if noise.name in private:
            return _real(noise.name, "batch", private[noise.name])
        leading = ("samples", "batch") if sampled else ("batch",)
        return _real(noise.name, *leading, *(() if noise.kind.startswith("uniform") else (self.latent_dim,)))


def _data(name: str, m: ModalitySpec) -> TensorSpec:
    return TensorSpec(name, m.dtype, ("batch", *m.shape))


def _real(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def interface(manifest: Manifest) -> Interface:
    """Of a manifest, whose parts name their noise themselves."""
    parts = manifest.parts
    fusion, prior = (parts[p].noise if p in parts else () for p in (FUSION_PART, PRIOR_PART))
    if manifest.system == GAN_SYSTEM and GENERATOR_PART in parts:
        prior = parts[GENERATOR_PART].noise
    return Interface(
        manifest.latent_dim,
        manifest.modalities,
        manifest.prior,
        manifest.context_dim,
        len(manifest.classes or ()),
        fusion,
        prior,
        manifest.sampling,
        manifest.system,
        manifest.condition_dim,
    )


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

    def count(self, value: Any, key: str) -> int:
        found = self.get(value, key, int)
        if found < 0:
            raise self.fail(f"{key!r} is {found}, expected 0 or more")
        return found

    def real(self, value: Any, key: str) -> float:
        found = self.get(value, key, (int, float))
        try:
            return float(found)
        except OverflowError:  # of an integer with hundreds of digits
            raise self.fail(f"{key!r} is {_short(found)}, expected a number that float64 holds") from None

    def one_of(self, value: Any, key: str, allowed: Sequence[str]) -> str:
        found = self.get(value, key, str)
        if found not in allowed:
            raise self.fail(f"{key!r} is {_short(found)}, expected one of {', '.join(map(repr, allowed))}")
        return found

    def flag(self, value: Any, key: str) -> bool:
        found = value.get(key, False)
        if not isinstance(found, bool):
            raise self.fail(f"{key!r} is {_short(found)}, expected true or false")
        return found

    def words(self, value: Any, key: str) -> tuple[str, ...] | None:
        found = value.get(key)
        if found is not None and not (isinstance(found, list) and all(isinstance(w, str) for w in found)):
            raise self.fail(f"{key!r} is {_short(found)}, expected a list of strings or null")
        return None if found is None else tuple(found)

    def sizes(self, value: Any, key: str) -> tuple[int, ...]:
        found = self.get(value, key, list)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in found):
            raise self.fail(f"{key!r} is {_short(found)}, expected a list of positive ints")
        return tuple(found)

    def modality(self, value: Any) -> ModalitySpec:
        words = self.words(self.mapping(value, "a modality"), "vocabulary")
        size, expert, code = (
            None if value.get(key) is None else self.positive(value, key)
            for key in ("vocabulary_size", "expert_dim", "code_dim")
        )
        return ModalitySpec(
            name=self.get(value, "name", str),
            kind=self.get(value, "kind", str),
            shape=self.sizes(value, "shape"),
            param_shape=self.sizes(value, "param_shape"),
            dtype=self.get(value, "dtype", str),
            likelihood=self.get(value, "likelihood", str),
            scale=self.real(value, "scale"),
            vocabulary_size=size,
            vocabulary=words,
            gaps=self.flag(value, "gaps"),
            expert_dim=expert,
            code_dim=code,
            decodable=value.get("decodable") is None or self.flag(value, "decodable"),
            features=self.flag(value, "features"),
            own_code=self.flag(value, "own_code"),
            lifted=self.flag(value, "lifted"),
            preprocessing=None if value.get("preprocessing") is None else self.preprocessing(value),
            tokens=None if value.get("tokens") is None else self.language(value["tokens"]),
        )

    def preprocessing(self, modality: Any) -> dict[str, Any]:
        """Of a modality."""
        name, kind, shape = (
            self.get(modality, "name", str),
            self.get(modality, "kind", str),
            self.sizes(modality, "shape"),
        )
        how = self.mapping(modality["preprocessing"], "'preprocessing'")
        try:
            return recipes.make(kind, how, shape, self.words(modality, "vocabulary")).config()
        except (ValueError, TypeError, OverflowError) as error:
            raise self.fail(f"'preprocessing' of modality {_short(name)}: {error}") from None

    def language(self, value: Any) -> LanguageSpec:
        pad, begin, end, offset = (self.count(value, key) for key in ("pad", "begin", "end", "offset"))
        cache = self.sizes(value, "cache")
        if len(cache) not in (0, 3):
            raise self.fail(f"'cache' is {list(cache)}, expected three sizes, or none")
        return LanguageSpec(self.file_name(self.get(value, "file", str)), pad, begin, end, offset, cache)

    def noises(self, value: Any) -> tuple[NoiseSpec, ...]:
        return tuple(
            NoiseSpec(self.get(n, "name", str), self.one_of(n, "kind", NOISE_KINDS), self.count(n, "branch"))
            for n in self.get(value, "noise", list)
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
        return PartSpec(file, self.tensors(value, "inputs"), self.tensors(value, "outputs"), self.noises(value))

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
            if m.tokens is not None and m.tokens.file not in manifest.files:
                raise self.fail(f"'files' has no SHA-256 for {m.tokens.file!r}, the tokenizer of modality {m.name!r}")
            if m.tokens is not None and m.decodable and not m.tokens.cache:
                raise self.fail(f"modality {m.name!r} is generated, but its 'cache' is empty, expected three sizes")
            if m.vocabulary is not None and len(m.shape) != 1:
                raise self.fail(f"modality {m.name!r} of words has shape {list(m.shape)}, expected [length]")
            if m.vocabulary is not None and len(m.vocabulary) != m.vocabulary_size:
                raise self.fail(
                    f"modality {m.name!r} has {len(m.vocabulary)} words, expected 'vocabulary_size' {m.vocabulary_size}"
                )
        if manifest.noise != noise.SPEC:
            raise self.fail(f"'noise' is {_short(manifest.noise)}, expected the one this version makes: {noise.SPEC}")
        if manifest.system in (GAN_SYSTEM, CYCLEGAN_SYSTEM):
            count = 1 if manifest.system == GAN_SYSTEM else 2
            if len(manifest.modalities) != count:
                raise self.fail(
                    f"'modalities' holds {len(manifest.modalities)}, expected {count} of a {manifest.system}"
                )
        expected = interface(manifest).io()
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
