"""``mmvae-fast sample``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmvae_fast._english import with_article
from mmvae_fast.cli.app import app, plain_errors
from mmvae_fast.cli.runs import Temperature, TopK, TopP

if TYPE_CHECKING:
    from torch import Tensor

    from mmvae_fast.data.run import Run
    from mmvae_fast.systems import GAN


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write; one of earlier samples is replaced.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many; with --label, of each.")] = 16,
    to: Annotated[list[str] | None, typer.Option(help="A modality; may come again. Else: all.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Of a conditional GAN: a class; may come again. Else: all in turn.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same samples.")] = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
) -> None:
    """Make samples of the model's prior: one file a modality and sample, and samples.csv, which names them."""
    with plain_errors():
        from mmvae_fast.cli import runs
        from mmvae_fast.cli.progress import track
        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.export import write_samples
        from mmvae_fast.systems import GAN

        opened = runs.load(run, "sample")
        for name in to or ():
            runs.check_name(opened, name)
        runs.draw_texts(opened, to or list(opened.readers), temperature, top_k, top_p, seed)
        labels = None
        if isinstance(opened.model, GAN):
            made, labels = _of_gan(opened, opened.model, n, label or [], seed)
        elif label:
            raise ConfigError(
                f"--label: {run} holds {with_article(type(opened.model).__name__)}, which makes no classes on demand"
            )
        else:
            made = runs.vae(opened).sample(n, seed=seed, to=to or None)
        total = len(next(iter(made.values())))
        write_samples(out, opened.readers, made, lambda rows: track(rows, total, "writing"), labels)
        print(out)


def _of_gan(run: Run, gan: GAN, n: int, label: list[str], seed: int) -> tuple[dict[str, Tensor], list[str] | None]:
    """Samples by modality, and the class of each if they have one."""
    import torch

    from mmvae_fast.data.errors import ConfigError
    from mmvae_fast.data.manifest import nearest

    if gan.classes is None:
        if label:
            raise ConfigError("--label: this GAN was trained without data.label, so it has no classes")
        return {gan.name: gan.sample(n, seed=seed)}, None
    for name in label:
        if name not in run.classes:
            raise ConfigError(f"--label {name!r}: no such class{nearest(name, run.classes)}")
    classes = torch.tensor([run.classes.index(name) for name in label])
    condition = classes.repeat_interleave(n) if label else torch.arange(n) % gan.classes
    names = [run.classes[i] for i in condition.tolist()]
    return {gan.name: gan.sample(condition=condition, seed=seed)}, names
