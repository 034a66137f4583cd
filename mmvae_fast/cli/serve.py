"""``mmvae-fast serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import FAILED, WRONG_USAGE, app, fail, plain_errors


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Calls of the model that may run at the same time.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads a call may use; 0: all cores.")] = 1,
    max_body: Annotated[float, typer.Option(min=0.001, help="MiB of a request.")] = 16.0,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a request.")] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 256,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture that is uploaded.")] = 2**22,
    max_connections: Annotated[int, typer.Option(min=1, help="Open at the same time; others get 503.")] = 512,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds until an answer must be there.")] = 30.0,
    body_timeout: Annotated[float, typer.Option(min=0.01, help="Seconds until a request must have arrived.")] = 10.0,
    log_level: Annotated[str, typer.Option(help="critical, error, warning, info or debug.")] = "info",
) -> None:
    """Serve a bundle over HTTP until Ctrl-C or SIGTERM; /docs describes the routes. Needs no torch."""
    with plain_errors():
        from mmvae_fast._lazy import require

        levels = ("critical", "error", "warning", "info", "debug")
        if log_level not in levels:
            fail(f"--log-level {log_level}: expected one of {', '.join(levels)}", WRONG_USAGE)
        uvicorn = require("uvicorn", extra="serve")
        for module in ("fastapi", "orjson", "prometheus_client", "python_multipart"):
            require(module, extra="serve")
        from mmvae_fast.serve import Limits, create_app

        limits = Limits(
            body_bytes=int(max_body * 2**20), rows=max_rows, queue=max_waiting, seconds=timeout,
            body_seconds=body_timeout, pixels=max_pixels,
        )  # fmt: skip
        application = create_app(bundle, limits, workers=workers, threads=threads)
        try:
            uvicorn.run(
                application, host=host, port=port, log_level=log_level, server_header=False, access_log=False,
                limit_concurrency=max_connections,  # one that never reads its answer holds it in memory
                timeout_graceful_shutdown=int(timeout) + 1,
            )  # fmt: skip
        except SystemExit as stop:  # its own number for what it has logged: an address in use, a bundle that cannot run
            raise typer.Exit(FAILED if stop.code else 0) from None
