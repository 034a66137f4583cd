"""A run in a folder: trained from a configuration, and opened again to use the model on new files.

Beside what ``training.fit`` or ``systems.fit`` writes (``best/``, ``last/``, ``history.json``, ``samples/``) it holds
``readers.json``, what the readers learned, and ``run.yaml``, the configuration with absolute paths.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmvae_fast._english import with_article
from mmvae_fast._files import write_atomic
from mmvae_fast.data.config import RunConfig, read_config, write_config
from mmvae_fast.data.dataset import Labelled, ManifestDataset, check_cells, fit_readers
from mmvae_fast.data.errors import CellError, ConfigError, ManifestError
from mmvae_fast.data.manifest import Fault, Manifest, nearest
from mmvae_fast.data.reader import Reader, kinds, reader_class
from mmvae_fast.modalities import MODALITIES
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.models.checkpoint import read_json
from mmvae_fast.systems import FusionClassifier, System
from mmvae_fast.systems import fit as fit_system
from mmvae_fast.training import fit
from mmvae_fast.training.checkpoints import BEST, LAST, STARTED_OVER, short
from mmvae_fast.training.data import batches, split_mask
from mmvae_fast.training.seeding import derive

FORMAT, SCHEMA_VERSION = "mmvae_fast.readers", 1
READERS_FILE, CONFIG_FILE = "readers.json", "run.yaml"
_FREE = ("epochs", "num_workers", "accelerator")  # of training: what may change when a run goes on
_HEADER = "# Written by mmvae-fast train: the configuration of this run, with absolute paths.\n"


@dataclass
class Run:
    """A trained model or system and what it takes to read for it."""

    folder: Path
    config: RunConfig
    model: Any
    """A MultimodalVAE or a System; see :attr:`vae`."""
    readers: dict[str, Reader]
    classes: list[str] = field(default_factory=list)
    """The labels there are, sorted; a class is its place in this list."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of the manifests that it was trained on, "train" and "validation"; see :meth:`Manifest.digest`."""

    @property
    def vae(self) -> MultimodalVAE | None:
        """The model, or that of a classifier which trains one beside its head; None of what has no latent space."""
        if isinstance(self.model, FusionClassifier):
            return self.model.model if self.model.generative_weight else None
        return self.model if isinstance(self.model, MultimodalVAE) else None

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Run:
        """The run in a folder, with the best of its checkpoints, ready to use.

        Raises:
            ValueError: no run, or a damaged one.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder, expected one that mmvae-fast train wrote")
        checkpoint = next((path for name in (BEST, LAST) if (path := folder / name).is_dir()), None)
        at = _described_at(folder)
        if not (at / READERS_FILE).exists():
            raise ValueError(f"{folder} is not a folder that mmvae-fast train wrote: it has no {READERS_FILE}")
        description = _read_readers(at)
        readers = {name: Reader.from_config(config) for name, config in description["readers"].items()}
        if checkpoint is None:
            raise ValueError(f"{folder}: has neither {BEST}/ nor {LAST}/: its first epoch was never complete")
        config = read_config(at / CONFIG_FILE)
        model: MultimodalVAE | System = (System if config.is_system else MultimodalVAE).load(checkpoint)
        model.eval()
        read = {name: reader.modality().config() for name, reader in readers.items()}
        if read != {name: modality.config() for name, modality in model.modalities.items()}:
            raise ValueError(f"{folder / READERS_FILE} and {checkpoint} are of different runs; train again")
        return cls(folder, config, model, readers, description["classes"], description.get("data", {}))

    def dataset(self, manifest: str | os.PathLike | None = None, *, on_error: str | None = None) -> ManifestDataset:
        """A manifest as the model takes it; it may lack columns, and have others.

        Args:
            manifest: by default the configuration's test data, or else what was held out of training for validation.

        Raises:
            ValueError: none given and none configured, or one that cannot be read (see :class:`Manifest`); the rows
                that were held out are wanted, but the manifest they were drawn from is not what it was.
        """
        data = self.config.data
        validation = data.validation
        path = manifest or data.test or (validation if isinstance(validation, Path) else None)
        if path is None and validation is None:
            raise ValueError(f"{self.folder}: no data were held out of training; name a manifest to use")
        opened = Manifest(
            path or data.train, self.config.columns(), label=data.label, ignore="all", partial=True,
            joined=_joined(self.readers),
        )  # fmt: skip
        rows = None
        if path is None:
            if opened.digest() != self.digests.get("train"):
                raise ValueError(
                    f"{opened.path} was changed since training, so which rows were held out is not known; name a "
                    "manifest with --data"
                )
            rows = split_rows(len(opened), float(validation), self.config.training.seed)[1]  # type: ignore[arg-type]
        _check(opened, self.readers)
        return ManifestDataset(opened, self.readers, rows=rows, on_error=on_error or data.on_error)

    def batches(
        self, dataset: ManifestDataset, batch_size: int = 256, num_workers: int = 0
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """The data set in order: batches and their masks, bool [B, M].

        Raises:
            CellError: a damaged file, with ``on_error: stop``.
        """
        with _naming_cells([dataset]):
            for batch in batches(dataset, self.model, len(dataset), batch_size, None, num_workers):
                inputs, mask = split_mask(batch)
                if not isinstance(mask, Tensor):  # nothing is missing
                    mask = torch.ones(len(next(iter(inputs.values()))), len(self.readers), dtype=torch.bool)
                yield inputs, mask

    def label_ids(self, dataset: ManifestDataset) -> Tensor:
        """Each row's class, int64 [N]; -1 where it has none, or one that the training data did not."""
        return _label_ids(dataset, self.classes)

    def unknown_labels(self, dataset: ManifestDataset) -> list[Fault]:
        """The rows whose class is none that the training data had."""
        labels = dataset.manifest.labels()
        found = ((row, _unknown(labels[row], self.classes)) for row in dataset.rows)
        return [Fault(row, dataset.manifest.label or "", problem) for row, problem in found if problem is not None]


def train(
    config: RunConfig,
    *,
    resume: bool | str = "auto",
    progress: bool = True,
    report: Callable[[str], None] = print,
    callbacks: tuple[Any, ...] = (),
) -> Run:
    """Train what a configuration describes, or continue: the same call goes on where an interrupted one stopped.

    Args:
        resume, progress: of :func:`mmvae_fast.training.fit` and :func:`mmvae_fast.systems.fit`.
        callbacks: of the former; a system takes none.
        report: is told at the end which files could not be read and counted as missing.

    Raises:
        ConfigError, ManifestError: everything that is wrong with either, before training.
        CellError: a damaged file, with ``on_error: stop``.
        ValueError: ``out`` holds a run on other data or of another configuration; nothing in it has changed then.
        ValueError, FileExistsError, FloatingPointError, KeyboardInterrupt: see :func:`mmvae_fast.training.fit`.
    """
    config.model_class()
    readers = config.readers()
    data, settings = config.data, config.training
    out = config.out
    _check_out(out)
    columns = config.columns()
    options: dict[str, Any] = {"label": data.label, "ignore": data.ignore, "joined": _joined(readers)}
    manifest = Manifest(data.train, columns, **options)
    classes = _classes(config, manifest)
    rows: list[int] | None = None
    held_out: ManifestDataset | None = None
    digests = {"train": manifest.digest()}
    if isinstance(data.validation, (int, float)):
        rows, others = split_rows(len(manifest), float(data.validation), settings.seed)
    fit_readers(manifest, readers, rows=rows, on_error=data.on_error)
    if isinstance(data.validation, (int, float)):
        held_out = ManifestDataset(manifest, readers, rows=others, on_error=data.on_error, cache=data.cache)
    elif data.validation is not None:
        second = Manifest(data.validation, columns, **options)
        _check(second, readers)
        if config.takes_labels:
            _check_labels(config, second, classes)
        digests["validation"] = second.digest()
        held_out = ManifestDataset(second, readers, on_error=data.on_error, cache=data.cache)
    training = ManifestDataset(manifest, readers, rows=rows, on_error=data.on_error, augment=True, cache=data.cache)
    model = config.make_model(readers, classes)
    described = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "classes": classes,
        "data": digests,
        "readers": {name: reader.config() for name, reader in readers.items()},
    }
    if resume is not False:
        _check_same(out, described, config)

    def write() -> None:
        _keep_descriptions(out)
        write_atomic(out / READERS_FILE, json.dumps(described, indent=1, ensure_ascii=False) + "\n")
        write_atomic(out / CONFIG_FILE, _HEADER + write_config(config))

    datasets = [dataset for dataset in (training, held_out) if dataset is not None]
    try:
        with _naming_cells(datasets):
            _fit(config, model, training, held_out, classes, write, callbacks, resume=resume, progress=progress)
    finally:
        if data.on_error == "missing":
            for dataset in datasets:
                if text := dataset.report():
                    report(f"{text}\nThey counted as missing.")
    if not ((out / READERS_FILE).exists() and (out / CONFIG_FILE).exists()):  # lost, and there was nothing to train
        write()
    return Run.load(out)


def _fit(
    config: RunConfig,
    model: Any,
    training: ManifestDataset,
    held_out: ManifestDataset | None,
    classes: Sequence[str],
    write: Callable[[], None],
    callbacks: tuple[Any, ...],
    **how: Any,
) -> None:
    """Train a model or a system; ``write`` is called when nothing is left to refuse: until then the folder stays as it
    was."""
    arguments = {**config.as_json()["training"], **how, "out": config.out}
    if not isinstance(model, System):
        fit(model, training, validation=held_out, callbacks=(_at_start(write), *callbacks), **arguments)
        return
    if callbacks:
        raise ValueError(
            f"callbacks are of training.fit, and {with_article(config.model.name)} trains with systems.fit: pass none"
        )
    model.to(_device(arguments.pop("accelerator")))
    data: Dataset = training
    validation: Dataset | None = held_out
    if config.takes_labels:
        data = Labelled(training, _label_ids(training, classes))
        validation = None if held_out is None else Labelled(held_out, _label_ids(held_out, classes))
    if not model.validated:
        validation = None  # what was held out is for evaluation alone
    fit_system(model, data, validation=validation, on_start=write, **arguments)


def _device(accelerator: str) -> str:
    """Where a system trains; models leave that to Lightning, whose words these are.

    Raises:
        ConfigError: another word, or no such device here.
    """
    devices = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "auto": "cuda" if torch.cuda.is_available() else "cpu"}
    if accelerator not in devices:
        raise ConfigError(f"training.accelerator: got {accelerator!r}, expected one of {', '.join(devices)}")
    if devices[accelerator] == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"training.accelerator: {accelerator!r}, but torch finds no CUDA device")
    return devices[accelerator]


def _classes(config: RunConfig, manifest: Manifest) -> list[str]:
    """The labels there are, sorted; checked if the training takes them.

    Raises:
        ManifestError: with the rows.
    """
    found = sorted({label for label in manifest.labels() if label is not None})
    if config.takes_labels:
        _check_labels(config, manifest, found)
        if len(found) < 2:
            raise ManifestError(f"{manifest.path}, {manifest.label}: holds the classes {found}, expected two or more")
    return found


def _check_labels(config: RunConfig, manifest: Manifest, classes: Sequence[str]) -> None:
    """Refuse rows that a conditional GAN has no condition for, and classes that were not in the training data."""
    assert manifest.label is not None
    faults, gan = [], config.model.name == "GAN"
    for row, label in enumerate(manifest.labels()):
        if label is None and gan:
            faults.append(Fault(row, manifest.label, "is empty, but each row of a conditional GAN needs its class"))
        elif (problem := _unknown(label, classes)) is not None:
            faults.append(Fault(row, manifest.label, problem))
    manifest.refuse(faults)


def _unknown(label: str | None, classes: Sequence[str]) -> str | None:
    """What is wrong with a label that is not among the classes."""
    if label is None or label in classes:
        return None
    return f"{label!r} is the class of no training row{nearest(label, classes)}"


def _label_ids(dataset: ManifestDataset, classes: Sequence[str]) -> Tensor:
    """Each row's class, int64 [N]; -1 where it has none, or one that is not among these."""
    ids = {name: i for i, name in enumerate(classes)}
    labels = dataset.manifest.labels()
    return torch.tensor([ids.get(label, -1) if (label := labels[row]) is not None else -1 for row in dataset.rows])


def _at_start(write: Callable[[], None]) -> Any:
    """A Lightning callback that calls once training is about to begin."""
    from lightning.pytorch.callbacks import LambdaCallback

    return LambdaCallback(on_fit_start=lambda trainer, module: write())


@contextmanager
def _naming_cells(datasets: Sequence[ManifestDataset]) -> Iterator[None]:
    """A CellError of a worker process comes with that one's traceback; the cell is known, so say it as it is here."""
    try:
        yield
    except CellError:
        for dataset in datasets:
            for fault in dataset.faults():
                raise CellError(f"{dataset.manifest.where(fault.row, fault.name)}: {fault.problem}") from None
        raise


def split_rows(rows: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and to hold out, at least one of each; the same for the same seed.

    Raises:
        ValueError: there is only one row.
    """
    if rows < 2:
        raise ValueError(f"the data has {rows} row, expected two or more to hold some out for validation")
    count = min(max(1, round(share * rows)), rows - 1)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(derive(seed, "validation rows"))).tolist()
    return sorted(order[count:]), sorted(order[:count])


def _joined(readers: Mapping[str, Reader]) -> list[str]:
    return [name for name, reader in readers.items() if reader.n_columns is not None]


def _check(manifest: Manifest, readers: Mapping[str, Reader]) -> None:
    """Of data that no reader is fitted to: paths, and the cells that are no files."""
    manifest.check_files(readers)
    cheap = {name: reader for name, reader in readers.items() if not reader.reads_files}
    manifest.refuse([fault for name, reader in cheap.items() for fault in check_cells(manifest, name, reader)])


def _check_out(out: Path) -> None:
    """Refuse to replace a ``run.yaml`` or ``readers.json`` that no run wrote."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a folder or nothing")
    path = out / CONFIG_FILE
    if path.exists() and not path.read_bytes().startswith(_HEADER.encode()):
        raise FileExistsError(f"{path} was not written by mmvae-fast train and would be replaced; choose another out")
    if (out / READERS_FILE).exists():
        _read_readers(out)


def _keep_descriptions(out: Path) -> None:
    """Of checkpoints that this run set out to replace: until its first epoch is complete they are a run to be used, and
    go with what was learned for them."""
    if not (out / STARTED_OVER).exists() or not (out / READERS_FILE).exists():
        return
    for checkpoint in (out / LAST, out / BEST):
        if checkpoint.is_dir() and not (checkpoint / READERS_FILE).exists():
            for name in (CONFIG_FILE, READERS_FILE):
                write_atomic(checkpoint / name, (out / name).read_bytes())


def _described_at(out: Path) -> Path:
    """Where the description of a run's checkpoints is: beside them, unless they had to keep their own."""
    return next((path for name in (BEST, LAST) if (path := out / name).joinpath(READERS_FILE).exists()), out)


def _check_same(out: Path, described: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse to go on with a run of other data or another configuration; whatever training does not see may change.

    Raises:
        ValueError: naming what is different.
    """
    if not (out / READERS_FILE).exists() or not any((out / name).exists() for name in (LAST, BEST)):
        return
    otherwise = "choose another out, or start over (--start-over)"
    at = _described_at(out)
    earlier = _read_readers(at)
    for what, digest in described["data"].items():
        if earlier.get("data", {}).get(what) != digest:
            raise ValueError(
                f"{out} holds a run on other {what} data: the manifest was changed since. Bring it back, {otherwise}"
            )
    changes: list[str] = []
    if (at / CONFIG_FILE).exists():
        changes = _changes(_fixed(read_config(at / CONFIG_FILE)), _fixed(config))
    if changes:
        raise ValueError(f"{out} holds a run of another configuration: {'; '.join(changes)}. Use that, {otherwise}")
    changes = _changes(_complete(earlier), _complete(json.loads(json.dumps(described))))
    if changes:
        raise ValueError(
            f"{out} holds a run whose readers learned otherwise, so files were changed: {'; '.join(changes[:3])}. "
            f"Bring them back, {otherwise}"
        )


def _fixed(config: RunConfig) -> dict[str, Any]:
    """What of a configuration must stay when a run goes on, with the defaults that it leaves out. Where files lie may
    change: what they hold is compared."""
    content = config.as_json()
    for name, column in config.columns().items():
        modality = content["modalities"][name]
        modality = {key: value for key, value in modality.items() if key not in ("column", "columns")}
        content["modalities"][name] = {**_of_kind(modality["kind"]), **modality, "column": column}
    content["model"] = {**_defaults(*_model_class(config)), **content["model"]}
    data = {key: value for key, value in content["data"].items() if key not in ("train", "test", "cache")}
    if isinstance(config.data.validation, Path):
        data["validation"] = "a manifest"
    training = {key: value for key, value in content["training"].items() if key not in _FREE}
    return {"data": data, "modalities": content["modalities"], "model": content["model"], "training": training}


def _complete(described: Mapping[str, Any]) -> dict[str, Any]:
    """A ``readers.json`` with the defaults that its readers' options leave out."""
    readers = {name: {**_of_kind(reader.get("kind")), **reader} for name, reader in described["readers"].items()}
    return {**described, "readers": readers}


def _of_kind(kind: Any) -> dict[str, Any]:
    """The defaults of a kind's options: the reader's, and those of the modality that it passes the rest on to."""
    classes: list[type] = [reader_class(kind)] if kind in kinds() else []
    return _defaults(*classes, *([MODALITIES[kind]] if kind in MODALITIES else []))


def _model_class(config: RunConfig) -> list[type]:
    """None, if another version of the package had it."""
    try:
        return [config.model_class()]
    except ConfigError:
        return []


def _defaults(*classes: type) -> dict[str, Any]:
    """What constructors take for the arguments that are left out, as JSON; the first class that has one decides."""
    found: dict[str, Any] = {}
    for cls in (parent for given in classes for parent in given.__mro__ if "__init__" in parent.__dict__):
        for parameter in inspect.signature(cls.__init__).parameters.values():  # type: ignore[misc]
            if parameter.default is not parameter.empty:
                found.setdefault(parameter.name, parameter.default)
    return json.loads(json.dumps(found, default=repr))


def _changes(before: Any, now: Any, where: str = "") -> list[str]:
    """What two JSON values differ in, by path."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        path = f"{where}." if where else ""
        lines = [line for key in keys for line in _changes(before.get(key), now.get(key), f"{path}{key}")]
        if not lines and list(before) != list(now) and where in ("modalities", "readers"):
            lines.append(f"{where} were in the order {list(before)}, now {list(now)}")
        return lines
    return [] if before == now else [f"{where} was {short(before)}, now {short(now)}"]


def _read_readers(folder: Path) -> dict[str, Any]:
    path = folder / READERS_FILE
    description = read_json(path)
    header = (description.get("format"), description.get("schema_version"))
    if header != (FORMAT, SCHEMA_VERSION):
        raise ValueError(f"{path}: is {header}, expected {FORMAT} version {SCHEMA_VERSION}")
    if not isinstance(description.get("readers"), dict) or not isinstance(description.get("classes"), list):
        raise ValueError(f"{path}: damaged, expected readers and classes")
    return description
