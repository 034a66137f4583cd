"""What the commands share that use a run: which of them fit it, cells of the command line, and how texts are drawn."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmvae_fast._english import with_article

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mmvae_fast.data.dataset import ManifestDataset
    from mmvae_fast.data.run import Run
    from mmvae_fast.models import MultimodalVAE

_SHOWN = 10  # so many rows are named

Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0, help="Of language: draw each token, the less likely ones the more the higher it is; 1 as is."
    ),
]
TopK = Annotated[int | None, typer.Option(min=1, help="Of language: draw from the so many likeliest tokens.")]
TopP = Annotated[
    float | None, typer.Option(help="Of language: draw from the likeliest tokens that together are so probable.")
]


def commands(run: Run) -> list[str]:
    """Those that fit the model or system of a run."""
    from mmvae_fast.systems import GAN, Autoencoder, CycleGAN, FusionClassifier

    if isinstance(run.model, FusionClassifier):
        return ["evaluate", "classify", "embed", *(["translate", "interpolate"] if run.vae is not None else [])]
    if isinstance(run.model, GAN):
        return ["evaluate", "sample"]
    if isinstance(run.model, CycleGAN):
        return ["evaluate", "translate"]
    if isinstance(run.model, Autoencoder):
        return ["evaluate", "translate", "embed", "interpolate"]
    return ["evaluate", "translate", "sample", "embed", "interpolate"]


def load(folder: Path, command: str) -> Run:
    """The run in a folder, if the command fits it.

    Raises:
        ConfigError: it does not; naming those that do.
        ValueError: no run, or a damaged one.
    """
    from mmvae_fast.data.errors import ConfigError
    from mmvae_fast.data.run import Run

    run = Run.load(folder)
    if command not in (fitting := commands(run)):
        kind = with_article(type(run.model).__name__)
        raise ConfigError(f"{folder} holds {kind}, which has no {command}; it has {', '.join(fitting)}")
    return run


def vae(run: Run) -> MultimodalVAE:
    """The model with the latent space, of a command that needs one."""
    model = run.vae
    assert model is not None  # says commands()
    return model


def check_name(run: Run, name: str) -> None:
    """Refuse a modality that the run does not have."""
    from mmvae_fast.data.errors import ConfigError
    from mmvae_fast.data.manifest import nearest

    if name not in run.readers:
        raise ConfigError(f"no modality {name!r}{nearest(name, run.readers)}")


def read(run: Run, name: str, value: str, where: str) -> Tensor:
    """A value of the command line as a sample [*shape]: a path, a text, or numbers with commas between.

    Raises:
        ConfigError, ValueError, OSError: beginning with ``where``.
    """
    from mmvae_fast.data.errors import ConfigError

    columns = run.config.columns()[name]
    cell: Any = value if isinstance(columns, str) else next(csv.reader([value]))
    if isinstance(columns, list) and len(cell) != len(columns):
        got = "1 value" if len(cell) == 1 else f"{len(cell)} values"
        raise ConfigError(f"{where}: {got}, expected {len(columns)} with commas between: {', '.join(columns)}")
    try:
        return run.readers[name].read(cell)
    except (ValueError, OSError) as error:
        wrong = type(error) if run.readers[name].reads_files else ConfigError  # a file's fault, or the argument's own
        raise wrong(f"{where}: {error}") from error


def say_empty(dataset: ManifestDataset, masks: Sequence[Tensor]) -> None:
    """Say on standard error which rows have no modality, by the masks, bool [B, M], of all batches."""
    empty = [row for row, mask in zip(dataset.rows, itertools.chain(*masks), strict=True) if not mask.any()]
    if not empty:
        return
    numbers = ", ".join(str(row + 1) for row in empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
    rows = f"1 row ({numbers}) has" if len(empty) == 1 else f"{len(empty)} rows ({numbers}) have"
    print(f"{dataset.manifest.path}: {rows} nothing that the model takes, and get a guess", file=sys.stderr)


def read_given(run: Run, given: Sequence[str]) -> dict[str, Tensor]:
    """Options ``--from MODALITY=VALUE`` as a batch of one row.

    Raises:
        ConfigError, ValueError, OSError: naming the option.
    """
    from mmvae_fast.data.errors import ConfigError

    batch: dict[str, Tensor] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(f"--from {text!r}: expected MODALITY=VALUE")
        if name in batch:
            raise ConfigError(f"--from names {name!r} twice, expected once")
        check_name(run, name)
        batch[name] = read(run, name, value, f"--from {name}")[None]
    return batch


def draw_texts(
    run: Run,
    to: Sequence[str],
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
) -> None:
    """From now on the model draws the texts of the language modalities among ``to`` in this way; without any of the
    options it takes the most probable tokens.

    Raises:
        ConfigError: there are such options, but no such modality.
    """
    from mmvae_fast.data.errors import ConfigError
    from mmvae_fast.modalities import Language

    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return
    model = run.vae
    languages = [] if model is None else [m for name in to if isinstance(m := model.modalities[name], Language)]
    if not languages:
        option = next(iter(given)).replace("_", "-")
        raise ConfigError(f"--{option} is for modalities of kind language, and there is none among {', '.join(to)}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"--top-p {top_p}: expected a probability above 0")
    for language in languages:  # to draw from fewer tokens is to draw
        language.sampling = {"temperature": 1.0, **given, "seed": seed or 0}
