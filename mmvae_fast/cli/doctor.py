"""``mmvae-fast doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from mmvae_fast.cli.app import INTERRUPTED, app, fail


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what was built, what was found, and whether the two fit. Exit code 1 if there is a problem."""
    from mmvae_fast import doctor as doctor_

    try:
        found = doctor_.examine()
    except KeyboardInterrupt:
        fail("Stopped.", code=INTERRUPTED)
    print(doctor_.as_json(found) if as_json else doctor_.as_text(found))
    if found["problems"]:
        raise typer.Exit(1)
