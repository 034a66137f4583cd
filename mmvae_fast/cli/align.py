"""``mmvae-fast align``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def align(
    files: Annotated[list[Path], typer.Argument(help="Series: .csv, .tsv, .txt, .npy, or sounds; two or more.")],
    out: Annotated[Path, typer.Option(help="Table to write: time, and the columns of all; .csv is added if it lacks.")],
    rate: Annotated[
        list[float] | None, typer.Option(help="In Hz; comes once for all files, or once for each, in their order.")
    ] = None,
    times: Annotated[bool, typer.Option("--times", help="The first column of each file is the time of a row.")] = False,
    max_lag: Annotated[float | None, typer.Option(help="Largest lag to look for, in the unit of time.")] = None,
) -> None:
    """Bring series that were sampled at different times onto the clock of the first; print how much each lags behind
    it, and how far they are correlated then (near 0, there is no lag to speak of). Time is in seconds; without --rate
    or --times (sounds know their rates), in rows. Sounds beside tables need --rate once for each."""
    with plain_errors():
        from mmvae_fast.data._streams import align_files
        from mmvae_fast.data.errors import ConfigError

        if len(files) < 2:
            raise ConfigError("align: got one file, expected two or more")
        if times and rate:
            raise ConfigError("align: got --rate and --times, expected one of them")
        if rate and len(rate) not in (1, len(files)):
            raise ConfigError(f"align: --rate comes {len(rate)} times, expected once or {len(files)} times")
        rates = None if not rate else rate * len(files) if len(rate) == 1 else rate
        lags, correlations, written = align_files(files, out, rates=rates, times=times, max_lag=max_lag)
        for path, lag, correlation in zip(files[1:], lags, correlations, strict=True):
            print(f"{path} lags {lag:g} behind {files[0]} (correlation {correlation:.2f})")
        print(written)
