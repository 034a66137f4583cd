"""The one function of training."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvae_fast._checks import is_number
from mmvae_fast._english import with_article
from mmvae_fast._lazy import require
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.training import checkpoints
from mmvae_fast.training.data import Data, Shuffle, batches, count_rows, fingerprint
from mmvae_fast.training.numerics import flushed_denormals
from mmvae_fast.training.quiet import quiet_lightning
from mmvae_fast.training.seeding import preserved_random_state
from mmvae_fast.training.stopping import saying_what_is_kept

History = list[dict[str, float]]


def fit(
    model: MultimodalVAE,
    data: Data,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    warmup_epochs: float | None = None,
    first_stage_epochs: int | None = None,
    validation: Data | None = None,
    out: str | os.PathLike | None = None,
    seed: int = 0,
    resume: bool | str = "auto",
    progress: bool = True,
    num_workers: int = 0,
    gradient_clip: float | None = None,
    accelerator: str = "auto",
    callbacks: Sequence[Any] = (),
) -> History:
    """Train a model with Adam, in place.

    Not for several threads at a time: it seeds the process's random generators, sets the flushing of denormals and
    handles signals, and puts all of them back when it is done.

    Args:
        model: trained in place. A submodule in ``eval()`` inside a model in ``train()`` stays as it is; a model in
            ``eval()`` is trained as a whole. Afterwards every module is in the mode it came in.
        data: a dict of tensors with N rows by modality, and optionally under "mask" what is observed (bool [N, M], or a
            dict of bool [N] by modality); or a torch Dataset whose rows are such dicts of single samples, in which the
            keys of what a row lacks may be left out, or be None.
        epochs: how many in total; a continued run does what is missing.
        warmup_epochs: the weight of the KL divergence rises linearly, step by step, from 0 to the model's beta over so
            many epochs; 0 for none, None for the first third of ``epochs``, or of the first stage.
        first_stage_epochs: of a model that is trained in two stages (TELBO, JNF): how many epochs the first one takes,
            None for half. The second one takes the rest, with a new optimizer and a ``best/`` of its own; the model
            stays in it afterwards, what the first one trained frozen, until ``model.start_stage(1)``.
        validation: data to evaluate after every epoch, at full beta and with the same noise each time, which does not
            depend on the batches it comes in.
        out: a folder for ``last/`` (after every epoch), ``best/`` (lowest validation loss, else lowest training loss,
            once warmed up) and ``history.json``. Both are model folders for ``MultimodalVAE.load``, and hold what it
            takes to continue. Nothing else is ever replaced or removed there.
        seed: of the order of the rows and of all noise. The weights are the model's, so seed torch before you build it.
            Global random generators are left as they were.
        resume: continue from ``out``: "auto" if there is something, True to insist, False to start over. A continued
            run equals an uninterrupted one bit for bit; other data, settings or another model are an error (of a
            Dataset, only the length is compared). The first epoch of a run that starts over replaces the earlier
            ``last/`` and ``best/``; if it is stopped before that, they stay, and "auto" and True raise rather than take
            one run for the other.
        progress: show elbo, kl and the log-likelihood of every modality: a bar on a terminal, else a line an epoch.
        num_workers: processes that load a Dataset; tensors need none.
        gradient_clip: largest norm of the gradient.
        accelerator: of Lightning: "auto", "cpu", "gpu", ...; the model comes back to the device it was on.
        callbacks: more Lightning callbacks.

    Returns:
        one dict an epoch: "epoch" (and "stage", of a model with two), then "loss", "elbo", "kl" and "ll_<modality>" as
        means over rows in nats (of the training steps, so at the beta and the weights they had), and the same with
        "val_" before it.

    Raises:
        ValueError, TypeError: arguments or data that cannot be; a checkpoint of another model, other settings or data.
        FileExistsError: ``out`` has a ``last/``, ``best/`` or ``history.json`` that is not of a training run.
        FloatingPointError: the loss is not finite; ``last/`` keeps the epoch before.
        KeyboardInterrupt: on Ctrl-C; ``last/`` keeps the last complete epoch, and the message says so.
        SystemExit: on SIGTERM, likewise.
        ImportError: without the ``train`` extra.
    """
    _check(model, epochs, batch_size, lr, warmup_epochs, seed, resume, gradient_clip)
    _check_stages(model, epochs, first_stage_epochs)
    rows = count_rows("data", model, data)
    validation_rows = 0 if validation is None else count_rows("validation", model, validation)
    require("lightning.pytorch", extra="train")
    require("safetensors", extra="train")

    settings: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "lr": lr, "warmup_epochs": warmup_epochs}
    settings |= {"gradient_clip": gradient_clip, "rows": rows, "validation_rows": validation_rows}
    if model.stages > 1:
        settings["first_stage_epochs"] = first_stage_epochs
    folder = None if out is None else Path(out)
    if folder is not None:
        settings |= fingerprint("data", data) | fingerprint("validation", validation)
    state, optimizer_tensors = _start(model, folder, resume, settings, epochs)
    if state.epoch >= epochs:
        if progress:
            print(f"{folder} already holds {state.epoch} of {epochs} epochs; nothing trained", file=sys.stderr)
        return state.history

    from mmvae_fast.training.module import TrainingModule

    sampler = Shuffle(rows, seed, state.epoch)
    train = batches(data, model, rows, batch_size, sampler, num_workers)
    valid = None if validation is None else batches(validation, model, validation_rows, batch_size, None, num_workers)

    def save(optimizer: Any) -> None:
        if folder is not None:
            checkpoints.write(folder, model, optimizer, state)

    module = TrainingModule(
        model,
        state,
        optimizer_tensors,
        epochs=epochs,
        steps_per_epoch=math.ceil(rows / batch_size),
        validated=validation is not None,
        on_epoch_end=save,
    )
    device, modes = model.device, {part: part.training for part in model.modules()}
    try:
        with quiet_lightning(), preserved_random_state(), flushed_denormals(), saying_what_is_kept(state, folder):
            trainer = _trainer(epochs - state.epoch, progress, accelerator, gradient_clip, callbacks)
            if not model.training:
                model.train()
            trainer.fit(module, train_dataloaders=train, val_dataloaders=valid)
    finally:
        model.to(device)
        for part, mode in modes.items():
            part.training = mode
        model.zero_grad(set_to_none=True)
    return state.history


def _trainer(
    epochs: int, progress: bool, accelerator: str, gradient_clip: float | None, callbacks: Sequence[Any]
) -> Any:
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from mmvae_fast.training.progress import Bar, progress_callback

    shown = [progress_callback()] if progress else []
    try:
        return Trainer(
            max_epochs=epochs,
            accelerator=accelerator,
            devices=1,
            gradient_clip_val=gradient_clip,
            callbacks=[*callbacks, *shown],
            enable_progress_bar=any(isinstance(callback, Bar) for callback in shown),  # else Lightning adds its own
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:  # no ValueError, though what came is wrong
        raise ValueError(f"accelerator is {accelerator!r}: {error}") from error


def _start(
    model: MultimodalVAE, out: Path | None, resume: bool | str, settings: dict[str, Any], epochs: int
) -> tuple[checkpoints.Progress, dict[str, Any]]:
    """Where the run stands: the checkpoint in ``out`` (loaded into the model), or the beginning."""
    found = checkpoints.begin(out, model, resume)
    if found is None:
        if "first_stage_epochs" in settings and settings["first_stage_epochs"] is None:
            settings["first_stage_epochs"] = epochs // 2
        if settings["warmup_epochs"] is None:
            settings["warmup_epochs"] = settings.get("first_stage_epochs", epochs) // 3
        return checkpoints.Progress(settings), {}
    state, tensors = found
    for name in ("warmup_epochs", "first_stage_epochs"):
        if name in settings and settings[name] is None:
            settings[name] = state.settings.get(name)
    checkpoints.check_settings(out, state, settings)
    return state, tensors


def _check(
    model: Any, epochs: Any, batch_size: Any, lr: Any, warmup_epochs: Any, seed: Any, resume: Any, gradient_clip: Any
) -> None:
    if not isinstance(model, MultimodalVAE):
        raise TypeError(f"model is a {type(model).__name__}, expected a MultimodalVAE")
    check_run(epochs, batch_size, seed, resume)
    for what, value, or_none in (("lr", lr, ""), ("gradient_clip", gradient_clip, " or None")):
        if not (or_none and value is None) and not (is_number(value) and value > 0):
            raise ValueError(f"{what} is {value!r}, expected a positive number{or_none}")
    if warmup_epochs is not None and not (is_number(warmup_epochs) and warmup_epochs >= 0):
        raise ValueError(f"warmup_epochs is {warmup_epochs!r}, expected a number, 0 or more, or None")


def check_run(epochs: Any, batch_size: Any, seed: Any, resume: Any) -> None:
    """The arguments that every run has."""
    for what, value in (("epochs", epochs), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{what} is {value!r}, expected a positive integer")
    if type(seed) is not int:
        raise TypeError(f"seed is {seed!r}, expected an integer")
    if resume not in (True, False, "auto"):
        raise ValueError(f"resume is {resume!r}, expected True, False or 'auto'")


def _check_stages(model: MultimodalVAE, epochs: int, first_stage_epochs: Any) -> None:
    if first_stage_epochs is None:
        return
    if model.stages == 1:
        raise ValueError(
            f"first_stage_epochs is {first_stage_epochs!r}, but {with_article(type(model).__name__)} has one stage"
        )
    if type(first_stage_epochs) is not int or not 0 <= first_stage_epochs <= epochs:
        raise ValueError(f"first_stage_epochs is {first_stage_epochs!r}, expected 0 to {epochs}, the number of epochs")
