"""The one loop that trains systems. It draws, saves and resumes as :func:`mmvae_fast.training.fit` does."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mmvae_fast._lazy import require
from mmvae_fast.systems.base import System, read_config
from mmvae_fast.systems.samples import is_drawn, write_preview
from mmvae_fast.training import checkpoints
from mmvae_fast.training.data import Collate, Data, Shuffle, batches, count_rows, fingerprint
from mmvae_fast.training.fit import History, check_run
from mmvae_fast.training.means import Means
from mmvae_fast.training.numerics import flushed_denormals
from mmvae_fast.training.seeding import derive, preserved_random_state, seed_all
from mmvae_fast.training.stopping import saying_what_is_kept


def fit(
    system: System,
    data: Data,
    *,
    epochs: int,
    batch_size: int = 64,
    validation: Data | None = None,
    out: str | os.PathLike | None = None,
    seed: int = 0,
    resume: bool | str = "auto",
    progress: bool = True,
    num_workers: int = 0,
    on_start: Callable[[], None] | None = None,
) -> History:
    """Train a system in place.

    Not for several threads at a time: it seeds the process's random generators, sets the flushing of denormals and
    handles signals, and puts all of them back when it is done.

    Args:
        data: a dict of tensors with N rows by modality, optionally "mask" (bool [N, M], or a dict of bool [N]), and
            what else the system wants, such as "label"; or a torch Dataset whose rows are such dicts of single samples.
        epochs: how many in total; a continued run does what is missing.
        validation: to evaluate after every epoch, where the system can (the classifier).
        out: a folder for ``last/`` (after every epoch), ``best/`` (lowest validation loss, where there is validation),
            ``history.json`` and ``samples/`` (what the system generates after each epoch: ``.npy``, and ``.png`` of
            what can be looked at). ``System.load`` reads the first two. Nothing else is ever replaced there.
        seed: of the order of the rows and of all noise. The weights are the system's, so seed torch before you make it.
            Global random generators are left as they were.
        resume: continue from ``out``: "auto" if there is something, True to insist, False to start over. A continued
            run equals an uninterrupted one bit for bit; other data, settings or another system are an error.
        progress: a bar on a terminal, else a line an epoch.
        num_workers: processes that load a Dataset; tensors need none.
        on_start: called once, when nothing is left to refuse and the first epoch is about to begin.

    Returns:
        one dict an epoch: "epoch", then the means over rows of what the system reports, and the same of the validation
        with "val_" before it.

    Raises:
        ValueError, TypeError: arguments or data that cannot be; a checkpoint of another system, other settings or data;
            an epoch without a batch to make a step on.
        FileExistsError: ``out`` holds something in our place that is not ours.
        FloatingPointError: a loss is not finite; ``last/`` keeps the epoch before.
        KeyboardInterrupt: on Ctrl-C; ``last/`` keeps the last complete epoch, and the message says so.
        SystemExit: on SIGTERM, likewise.
        ImportError: without the ``systems`` extra.
    """
    _check(system, epochs, batch_size, seed, resume)
    if validation is not None and not system.validated:
        raise ValueError(f"validation: a {type(system).__name__} has no loss that tells one epoch from a better one")
    rows = _rows("data", system, data)
    validation_rows = 0 if validation is None else _rows("validation", system, validation)
    folder = None if out is None else Path(out)
    _require(system, folder, progress)
    settings: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "rows": rows}
    settings["validation_rows"] = validation_rows
    if folder is not None:
        settings |= fingerprint("data", data) | fingerprint("validation", validation)
    state, tensors = _start(system, folder, resume, settings)
    if state.epoch >= epochs:
        if progress:
            print(f"{folder} already holds {state.epoch} of {epochs} epochs; nothing trained", file=sys.stderr)
        return state.history
    optimizer = system.optimizer()
    checkpoints.restore_optimizer(system, optimizer, tensors)
    modes = {part: part.training for part in system.modules()}
    try:
        with preserved_random_state(), flushed_denormals(), saying_what_is_kept(state, folder):
            if on_start is not None:
                on_start()
            while state.epoch < epochs:
                _epoch(system, optimizer, state, data, validation, num_workers, epochs if progress else None)
                if folder is not None:
                    _save(system, optimizer, state, folder)
    finally:
        for part, mode in modes.items():
            part.training = mode
    return state.history


def _epoch(
    system: System,
    optimizer: torch.optim.Optimizer,
    state: checkpoints.Progress,
    data: Data,
    validation: Data | None,
    num_workers: int,
    shown_epochs: int | None,
) -> None:
    seed, epoch = state.settings["seed"], state.epoch
    seed_all(derive(seed, "epoch", epoch))  # for dropout in networks of yours; what is ours has seeds of its own
    system.train()
    rows, batch_size = state.settings["rows"], state.settings["batch_size"]
    collate = SystemCollate(system)
    train = batches(data, system, rows, batch_size, Shuffle(rows, seed, epoch), num_workers, collate)
    means = Means()
    for i, batch in enumerate(_bar(train, epoch, shown_epochs)):
        step_seed = derive(seed, "step", epoch, i)
        if isinstance(data, Mapping):
            batch = system.complete(batch, data, step_seed)
        means.add(system.step(_to(batch, system.device), optimizer, step_seed))
    if not means:
        raise ValueError(
            f"epoch {epoch + 1}: no step was made: no batch of {batch_size} rows holds "
            f"{' and '.join(system.modalities)} by its mask; expected such rows"
        )
    record = {"epoch": epoch + 1, **system.figures(means.read())}
    if validation is not None:
        system.eval()
        means = Means()
        held_out_rows = state.settings["validation_rows"]
        held_out = batches(validation, system, held_out_rows, batch_size, None, num_workers, collate)
        with torch.no_grad():
            for i, batch in enumerate(held_out):
                # the same noise in every epoch, so that epochs differ by the system alone
                means.add(system.evaluate(_to(batch, system.device), derive(seed, "validation", i)))
        record |= {f"val_{name}": value for name, value in system.figures(means.read()).items()}
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"epoch {epoch + 1}: {', '.join(f'{name} is {record[name]}' for name in bad)}; try a lower learning rate, "
            "or look for extreme values in the data"
        )
    loss = record.get("val_loss")
    if loss is not None and (state.best_loss is None or loss < state.best_loss):
        state.best_epoch, state.best_loss = epoch + 1, loss
    state.epoch += 1
    state.history.append(record)
    if shown_epochs is not None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "epoch")
        print(f"epoch {epoch + 1}/{shown_epochs}  {figures}", file=sys.stderr, flush=True)


def _save(system: System, optimizer: torch.optim.Optimizer, state: checkpoints.Progress, out: Path) -> None:
    system.eval()
    with torch.no_grad():
        preview = system.preview()
    checkpoints.write(out, system, optimizer, state)  # first: no picture is worth an epoch
    write_preview(out / "samples", state.epoch, preview)


def _require(system: System, out: Path | None, progress: bool) -> None:
    """What the run will need, before its first epoch."""
    require("safetensors", extra="systems")
    if out is not None and any(is_drawn(system.modalities[name].shape) for name in system.previewed()):
        require("PIL.Image", extra="systems")
    if progress and sys.stderr.isatty():
        require("tqdm", extra="systems")


def _bar(batches: Any, epoch: int, epochs: int | None) -> Any:
    if epochs is None or not sys.stderr.isatty():
        return batches
    tqdm = require("tqdm", extra="systems").tqdm
    return tqdm(batches, desc=f"epoch {epoch + 1}/{epochs}", leave=False, dynamic_ncols=True, file=sys.stderr)


# --- data -------------------------------------------------------------------------------------------------------------


def _rows(what: str, system: System, data: Data) -> int:
    """How many rows the data has, checked; see :func:`mmvae_fast.training.data.count_rows`."""
    if not isinstance(data, Mapping):
        return count_rows(what, system, data)
    modalities, extras = split_extras(system, data)
    rows = count_rows(what, system, modalities)
    for key in system.extras:
        system.check_extra(f"{what}: {key}", key, extras.get(key), rows)
    return rows


def split_extras(system: System, batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The modalities and mask of a batch, and what else the system has use for."""
    extras = {key: batch[key] for key in system.extras if key in batch}
    return {key: value for key, value in batch.items() if key not in extras}, extras


class SystemCollate:
    """Rows of a Dataset -> a batch with the system's extras."""

    def __init__(self, system: System) -> None:
        self.extras, self.collate = tuple(system.extras), Collate(system)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate([{k: v for k, v in row.items() if k not in self.extras} for row in rows])
        present = [key for key in self.extras if key in rows[0]]
        return batch | {key: default_collate([torch.as_tensor(row[key]) for row in rows]) for key in present}


def _to(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: _to(v, device) if isinstance(v, Mapping) else v.to(device) for k, v in batch.items()}


# --- beginning, end and arguments -------------------------------------------------------------------------------------


def _start(
    system: System, out: Path | None, resume: bool | str, settings: dict[str, Any]
) -> tuple[checkpoints.Progress, dict[str, Tensor]]:
    """Where the run stands: the checkpoint in ``out`` (loaded into the system), or the beginning."""
    found = checkpoints.begin(out, system, resume, read_config)
    if found is None:
        return checkpoints.Progress(settings), {}
    state, tensors = found
    checkpoints.check_settings(out, state, settings)
    return state, tensors


def _check(system: Any, epochs: Any, batch_size: Any, seed: Any, resume: Any) -> None:
    if not isinstance(system, System):
        raise TypeError(f"system is a {type(system).__name__}, expected a System; models train with training.fit")
    check_run(epochs, batch_size, seed, resume)
