"""``best/`` and ``last/``: model folders with what it takes to continue training. No pickle anywhere."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast._files import check_replaceable, recover_folder, replace_folder, temporary_sibling, write_atomic
from mmvae_fast.models import checkpoint as models
from mmvae_fast.models.checkpoint import load_weights, pack, read_json, unpack
from mmvae_fast.models.trainable import Trainable

FORMAT = "mmvae_fast.training"
SCHEMA_VERSION = 1
BEST, LAST, HISTORY = "best", "last", "history.json"
STARTED_OVER = "started-over.txt"  # the checkpoints beside it are of an earlier run
STATE, OPTIMIZER = Path("training/state.json"), Path("training/optimizer.safetensors")


@dataclass
class Progress:
    """How far a run has come."""

    settings: dict[str, Any]
    """What the course of a run depends on, apart from the model."""
    epoch: int = 0
    """Completed epochs."""
    best_epoch: int | None = None
    best_loss: float | None = None
    """Lowest loss at full beta; None while no epoch has one."""
    history: list[dict[str, float]] = field(default_factory=list)


def check_out(out: Path) -> None:
    """Refuse a folder in which a run would replace something that no run wrote.

    Raises:
        FileExistsError: naming what is there.
    """
    for folder in (out / LAST, out / BEST):
        recover_folder(folder)
        check_replaceable(folder, _is_ours, "a training checkpoint of mmvae_fast")
    history = out / HISTORY
    if history.exists() and not _is_history(history):
        raise FileExistsError(f"{history} is no history of a training run and would be replaced; choose another folder")


def _is_ours(folder: Path) -> bool:
    """A checkpoint, possibly a damaged one: one of its two descriptions is enough."""
    for path, expected in ((folder / models.CONFIG, models.FORMAT), (folder / STATE, FORMAT)):
        try:
            if read_json(path).get("format") == expected:
                return True
        except (ValueError, OSError):
            continue
    return False


def _is_history(path: Path) -> bool:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False
    return isinstance(records, list) and all(isinstance(record, dict) and "epoch" in record for record in records)


def begin(
    out: Path | None,
    model: Trainable,
    resume: bool | str,
    read_config: Callable[[Path], dict[str, Any]] = models.read_config,
) -> tuple[Progress, dict[str, Tensor]] | None:
    """The checkpoint that a run goes on from, as of :func:`read`; None for the beginning, which ``out`` is ready for.

    Raises:
        ValueError, FileExistsError: nothing to continue where ``resume`` insists; of :func:`read`, :func:`check_out`.
    """
    found = None
    if out is not None:
        model.config()  # what cannot be described raises now, not after an epoch
        check_out(out)
        found = read(out, model, read_config) if resume else None
    if found is None:
        if resume is True:
            raise ValueError(f"resume is True, but there is no checkpoint in {out}")
        if out is not None:
            start_over(out)
    return found


def start_over(out: Path) -> None:
    """Note that the checkpoints in ``out``, if any, are of a run before this one; the first write removes them."""
    if (out / LAST).exists() or (out / BEST).exists():
        write_atomic(out / STARTED_OVER, f"{LAST}/ and {BEST}/ are of a run that a call of fit set out to replace.\n")


def write(out: Path, model: Trainable, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Save an epoch as ``last/``, and as ``best/`` if it is the best.

    ``best/`` goes first: if we are stopped in between, the run continues from the old ``last/`` and makes the same
    ``best/`` again. In a run that started over, which neither old one fits, they go before.
    """
    started_over = (out / STARTED_OVER).exists()
    state = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(progress)}
    with temporary_sibling(out / LAST) as last:
        model.save(last)
        write_atomic(last / OPTIMIZER, pack(optimizer_tensors(model, optimizer)))
        write_atomic(last / STATE, json.dumps(state, indent=1) + "\n")
        if started_over:
            shutil.rmtree(out / LAST, ignore_errors=True)
            shutil.rmtree(out / BEST, ignore_errors=True)
        if progress.best_epoch == progress.epoch:
            with temporary_sibling(out / BEST) as best:
                shutil.copytree(last, best, dirs_exist_ok=True)
                replace_folder(best, out / BEST)
        replace_folder(last, out / LAST)
    (out / STARTED_OVER).unlink(missing_ok=True)
    write_atomic(out / HISTORY, json.dumps(progress.history, indent=1) + "\n")


def read(
    out: Path, model: Trainable, read_config: Callable[[Path], dict[str, Any]] = models.read_config
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Load the weights of the latest checkpoint into ``model``; None if there is no checkpoint.

    If ``last/`` is damaged, ``best/`` serves: an earlier epoch of the same run, from which the later ones follow again.

    Returns:
        (progress, optimizer tensors)

    Raises:
        ValueError: the checkpoint is of another model (naming the differences), or both are damaged, or a run that
            started over was stopped before it had a checkpoint of its own.
    """
    if (out / STARTED_OVER).exists():
        raise ValueError(
            f"{out} holds a run that resume=False set out to replace, but no epoch of the new one was complete: pass "
            f"resume=False to start over again, or remove {out / STARTED_OVER} to go on with the earlier run"
        )
    damage = []
    for folder in (out / LAST, out / BEST):
        if not folder.exists():
            continue
        try:
            config = read_config(folder)
            progress, tensors = _read_state(folder), unpack(folder / OPTIMIZER)
            differences = _differences(config, model.config())
            if not differences:
                load_weights(model, folder)
        except ValueError as error:
            damage.append(str(error))
            continue
        if differences:
            raise ValueError(f"{folder} is a checkpoint of another model: {'; '.join(differences)}")
        if damage:
            warnings.warn(
                f"{damage[0]}; continuing from {folder}, epoch {progress.epoch}, instead", RuntimeWarning, stacklevel=4
            )
        return progress, tensors
    if damage:
        raise ValueError(f"{'; '.join(damage)}; pass resume=False to start over")
    return None


def check_settings(out: Path | None, state: Progress, settings: dict[str, Any]) -> None:
    """Refuse to continue a run with other settings.

    Raises:
        ValueError: naming each, as it was and as it is.
    """
    differences = [
        f"{name} was {state.settings.get(name)!r}, now {value!r}"
        for name, value in {**dict.fromkeys(state.settings), **settings}.items()
        if state.settings.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{out} holds a run with other settings: {'; '.join(differences)}. Use those, another folder, or "
            "resume=False to start over"
        )


def kept(out: Path | None) -> str:
    """What a run that is stopped leaves, as a sentence."""
    if out is None:
        return "nothing was kept, as no folder was given"
    last = out / LAST
    if (out / STARTED_OVER).exists():
        return f"nothing was kept, as no epoch was complete; {out} still holds the run before"
    if last.exists():
        return f"{last} holds the epoch before; the same call continues from there"
    return "nothing was kept, as no epoch was complete"


def _read_state(folder: Path) -> Progress:
    path = folder / STATE
    state = read_json(path)
    header = {"format": state.pop("format", None), "schema_version": state.pop("schema_version", None)}
    if header != {"format": FORMAT, "schema_version": SCHEMA_VERSION}:
        raise ValueError(f"{path}: is {header}, expected {FORMAT} version {SCHEMA_VERSION}")
    try:
        return Progress(**state)
    except TypeError as error:
        raise ValueError(f"{path}: damaged, {error}") from error


def _differences(found: Any, expected: Any, where: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(expected, dict):
        lines = []
        for key in [*expected, *(k for k in found if k not in expected)]:
            path = f"{where}.{key}" if where else key
            if key not in found:
                lines.append(f"{path} is not in the checkpoint")
            elif key not in expected:
                lines.append(f"{path} is only in the checkpoint")
            else:
                lines += _differences(found[key], expected[key], path)
        if not lines and list(found) != list(expected):
            lines.append(f"{where or 'config'} is in the order {list(found)}, expected {list(expected)}")
        return lines
    return [] if found == expected else [f"{where} is {short(found)}, expected {short(expected)}"]


def short(value: Any) -> str:
    """As a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as tensors named ``<quantity>/<parameter>``; parameters it never touched are left out."""
    return {
        f"{quantity}/{name}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo :func:`optimizer_tensors`."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    place = {id(parameter): i for i, parameter in enumerate(parameters)}
    index = {name: place[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in place}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        quantity, _, name = key.partition("/")
        if name not in index:
            raise ValueError(f"{OPTIMIZER}: holds {key!r}, which is no parameter of the model")
        state.setdefault(index[name], {})[quantity] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
