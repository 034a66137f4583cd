"""The YAML file of a run: what it may say, checked before anything is read."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from mmvae_fast._english import with_article
from mmvae_fast._lazy import require
from mmvae_fast.data.errors import ConfigError
from mmvae_fast.data.manifest import nearest
from mmvae_fast.data.reader import Reader, kinds, reader_class

require("pydantic", extra="data")
from pydantic import (  # noqa: E402
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Number = StrictInt | StrictFloat
Count = Annotated[StrictInt, Field(ge=1)]


class DataConfig(_Strict):
    """``data:`` - where the rows come from."""

    train: Path
    validation: Number | Path | None = None
    """A manifest, or the share of the training rows to hold out; the seed says which."""
    test: Path | None = None
    """A manifest for ``evaluate``."""
    on_error: Literal["stop", "missing"] = "stop"
    """What a damaged file does: stop the run, or count as missing."""
    label: StrictStr | None = None
    """The column of each row's class."""
    ignore: list[StrictStr] | Literal["all"] = []
    """Columns that are no modality's; "all" for whatever is left."""
    cache: StrictBool = False
    """Keep in memory what was read, before augmentation; for data that fits. A worker process forgets it after an
    epoch, so this goes with ``num_workers: 0``."""

    @model_validator(mode="after")
    def _share(self) -> DataConfig:
        if isinstance(self.validation, (int, float)) and not 0 < self.validation < 1:
            raise ValueError(
                f"validation is {self.validation}, expected a share of the rows between 0 and 1, or a path"
            )
        return self


class ModalityConfig(BaseModel):
    """One of ``modalities:`` - its kind, its column or columns, and the options of its reader and modality."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: StrictStr
    column: StrictStr | None = None
    columns: list[StrictStr] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> ModalityConfig:
        if self.column is not None and self.columns is not None:
            raise ValueError("has both column and columns, expected one of them")
        return self

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ModelConfig(BaseModel):
    """``model:`` - a name of ``mmvae_fast.models.MODELS`` or ``mmvae_fast.systems``, the size of z, and its own
    arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: StrictStr = "MoPoE"
    latent_dim: Count | None = None
    """None: the system's own, or 32 of a model."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrainingConfig(_Strict):
    """``training:`` - arguments of ``mmvae_fast.training.fit``, of which a system takes those of ``OF_SYSTEMS``."""

    epochs: Count = 30
    batch_size: Count = 64
    lr: Annotated[Number, Field(gt=0)] = 1e-3
    seed: StrictInt = 0
    warmup_epochs: Annotated[Number, Field(ge=0)] | None = None
    first_stage_epochs: Annotated[StrictInt, Field(ge=0)] | None = None
    gradient_clip: Annotated[Number, Field(gt=0)] | None = None
    num_workers: Annotated[StrictInt, Field(ge=0)] = 0
    accelerator: StrictStr = "auto"


OF_SYSTEMS = ("epochs", "batch_size", "seed", "num_workers", "accelerator")
_LATENT_DIM = 32  # of a model, unless told
_NOT_YAML = {"modalities", "networks", "classes", "condition_dim"}  # comes from the data, or is code


class RunConfig(_Strict):
    """A whole file. Paths are absolute once it is read."""

    data: DataConfig
    modalities: dict[StrictStr, ModalityConfig] = Field(min_length=1)
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    out: Path

    def columns(self) -> dict[str, str | list[str]]:
        """Of each modality: one of its own name, unless told."""
        return {name: self._columns(name) for name in self.modalities}

    def _columns(self, name: str) -> str | list[str]:
        modality = self.modalities[name]
        other = modality.options.get("align_to")
        if other is None:
            return modality.columns or modality.column or name
        where = f"modalities.{name}.align_to"
        if modality.columns is not None:
            raise ConfigError(f"{where}: is {other!r} where there are columns already, expected one column")
        others = {n: m for n, m in self.modalities.items() if n != name and m.columns is None}
        if other not in others:
            raise ConfigError(f"{where}: no other modality {other!r} of one column{nearest(str(other), others)}")
        return [modality.column or name, others[other].column or other]

    def readers(self) -> dict[str, Reader]:
        """New readers, not fitted.

        Raises:
            ConfigError: an unknown kind, or options it does not have.
        """
        readers = {}
        for name, modality in self.modalities.items():
            where = f"modalities.{name}"
            try:
                cls = reader_class(modality.kind)
            except ValueError:
                raise ConfigError(f"{where}.kind: no {modality.kind!r}{nearest(modality.kind, kinds())}") from None
            _check_options(where, modality.options, known_options(cls))
            try:
                readers[name] = cls(**modality.options)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{where}: {error}") from error
            count, of = readers[name].n_columns, self._columns(name)
            if count is not None and (isinstance(of, str) or len(of) != count):
                raise ConfigError(
                    f"{where}: {with_article(modality.kind)} is made of {count} columns, expected columns: [.., ..]"
                )
        return readers

    def model_class(self) -> Any:
        """The class of the model or system, with what else depends on it checked.

        Raises:
            ConfigError: an unknown one, or what it does not have: options, latent_dim, keys of ``training:``, a label.
        """
        from mmvae_fast.models import MODELS
        from mmvae_fast.systems import SYSTEMS, Autoencoder

        known: dict[str, type] = {**MODELS, "Autoencoder": Autoencoder, **SYSTEMS}
        name = self.model.name
        if name not in known:
            raise ConfigError(f"model.name: {name!r} is no model{nearest(name, known)}")
        cls = known[name]
        # those with an underscore are the models' own business
        options = {option for option in _parameters(cls) if not option.startswith("_")}
        if "latent_dim" not in options and self.model.latent_dim is not None:
            raise ConfigError(f"model.latent_dim: {with_article(name)} has none, expected no such key")
        if name in SYSTEMS:
            self._check_system(name, options)
        _check_options("model", self.model.options, (options | {"name"}) - _NOT_YAML)
        return cls

    def _check_system(self, name: str, options: set[str]) -> None:
        """What of the file only models have a use for, and what a system needs."""
        if "classes" in self.model.options and "classes" in options:
            raise ConfigError(
                f"model.classes: {with_article(name)} has those of the column that data.label names, no such key"
            )
        rates = [option for option in sorted(options) if option.startswith(("lr", "gradient_clip"))]
        for key in sorted(self.training.model_fields_set - set(OF_SYSTEMS)):
            instead = [f"model.{option}" for option in rates if option.startswith(key)]
            hint = f"; see {', '.join(instead)}" if instead else f", expected some of {', '.join(OF_SYSTEMS)}"
            raise ConfigError(f"training.{key}: {with_article(name)} has no use for it{hint}")
        if name == "FusionClassifier" and self.data.label is None:
            raise ConfigError("data.label: is missing, expected the column with the classes of a FusionClassifier")

    @property
    def is_system(self) -> bool:
        """Whether it trains with ``mmvae_fast.systems.fit``."""
        from mmvae_fast.systems import SYSTEMS

        return self.model.name in SYSTEMS

    @property
    def takes_labels(self) -> bool:
        """Whether each row's class is part of the training."""
        return self.data.label is not None and self.model.name in ("FusionClassifier", "GAN")

    def make_model(self, readers: Mapping[str, Reader], classes: Sequence[str] = ()) -> Any:
        """The model or system, its weights drawn from the seed; the readers are fitted.

        Args:
            classes: of the label, in order.

        Raises:
            ConfigError: an unknown model, options it does not have, or values it refuses.
        """
        import torch

        model_class, modalities = self.model_class(), {}
        for name, reader in readers.items():
            try:
                modalities[name] = reader.modality()
            except (ValueError, TypeError) as error:
                raise ConfigError(f"modalities.{name}: {error}") from error
        options = dict(self.model.options)
        if (latent_dim := self._latent_dim()) is not None:
            options["latent_dim"] = latent_dim
        if self.takes_labels:
            options["classes"] = len(classes) if self.model.name == "GAN" else list(classes)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(self.training.seed)
                return model_class(modalities, **options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model: {error}") from error

    def _latent_dim(self) -> int | None:
        """The one given, or else a model's default; None leaves a system's own."""
        given = self.model.latent_dim
        return _LATENT_DIM if given is None and not self.is_system else given

    def as_json(self) -> dict[str, Any]:
        """All that counts, defaults written out; of ``training:``, what the model or system has a use for."""
        content = self.model_dump(mode="json", exclude_none=True)
        if (latent_dim := self._latent_dim()) is not None:
            options = {key: value for key, value in content["model"].items() if key not in ("name", "latent_dim")}
            content["model"] = {"name": self.model.name, "latent_dim": latent_dim, **options}
        if self.is_system:
            content["training"] = {key: content["training"][key] for key in OF_SYSTEMS}
        return content


def read_config(path: str | os.PathLike) -> RunConfig:
    """A YAML file, checked; its relative paths are from its own folder.

    Raises:
        ConfigError: naming every key that is wrong.
        ImportError: without the ``data`` extra.
    """
    path = Path(path)
    yaml = require("yaml", extra="data")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _loader(yaml))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return check_config(content, path.parent, str(path))


def check_config(content: Any, folder: Path, where: str = "config") -> RunConfig:
    """What a YAML file held, checked; relative paths are from ``folder``."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: holds a {type(content).__name__}, expected {', '.join(RunConfig.model_fields)}")
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_sentence(e)}" for e in error.errors())) from None
    data = config.data
    paths = {key: _from(folder, value) for key in ("train", "validation", "test") if (value := getattr(data, key))}
    data = data.model_copy(update=paths)
    return config.model_copy(update={"data": data, "out": _from(folder, config.out)})


def write_config(config: RunConfig) -> str:
    """As YAML."""
    return require("yaml", extra="data").safe_dump(config.as_json(), sort_keys=False, allow_unicode=True)


def _loader(yaml: Any) -> Any:
    """YAML 1.2 where people notice: 1e-3 is a number; and a key that comes twice is an error."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for i, key in enumerate(keys):
                if key in keys[:i]:
                    line = node.value[i][0].start_mark.line + 1
                    raise yaml.YAMLError(f"the key {key!r} is there twice, again in line {line}")
            return super().construct_mapping(node, deep)

    exponent = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    return Loader


def _from(folder: Path, value: Any) -> Any:
    return Path(os.path.abspath(folder / value.expanduser())) if isinstance(value, Path) else value


def known_options(cls: type[Reader]) -> set[str]:
    """Of a reader, and of the modality that it passes the rest on to."""
    from mmvae_fast.modalities import MODALITIES

    names = _parameters(cls)
    takes_more = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())
    kind = cls.modality_kind or cls.kind
    if takes_more and kind in MODALITIES:
        # what a reader sets itself, and what no YAML can hold
        learned = {"shape", "n", "channels", "vocabulary", "tokenizer"}
        names |= _parameters(MODALITIES[kind]) - learned - {"encoder", "decoder"}
    return names


def _parameters(cls: type) -> set[str]:
    """The named arguments of a class's constructor, and of those that take the rest of them."""
    names: set[str] = set()
    for parent in cls.__mro__:
        if "__init__" not in parent.__dict__ or parent is object:
            continue
        parameters = inspect.signature(parent.__init__).parameters.values()  # type: ignore[misc]
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        names |= named - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _check_options(where: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    known = sorted(known)
    unknown = [f"{where}.{key}: no such key{nearest(key, known)}" for key in options if key not in known]
    if unknown:
        raise ConfigError("\n".join(unknown))


def _sentence(error: Any) -> str:
    """One of pydantic's errors; of an unknown key, with what it may have meant."""
    unknown = error["type"] == "extra_forbidden"
    # what pydantic calls its own steps, such as "function-after[...]", is left out; a name that the file has is not
    location = [
        part
        for i, part in enumerate(error["loc"])
        if isinstance(part, int)
        or part.isidentifier()
        or error["loc"][:i] == ("modalities",)
        or (unknown and i == len(error["loc"]) - 1)
    ]
    key = ".".join(map(str, location)) or "config"
    if unknown:
        return f"{key}: no such key{nearest(str(error['loc'][-1]), _keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{key}: is missing"
    value = error["input"]
    got = "" if isinstance(value, (dict, BaseModel)) else f", got {value!r}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}{got}"


def _keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
