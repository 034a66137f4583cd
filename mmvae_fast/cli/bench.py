"""``mmvae-fast bench``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Rows a call, repeatable; else: 1, 32, 256.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads a call may use; 0: all cores.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds that one part of the bundle may run.")] = 60.0,
    seconds: Annotated[float, typer.Option(min=0.01, help="For every line of the table.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Time a bundle on this machine, on made-up rows. Needs no torch."""
    with plain_errors():
        import json

        from mmvae_fast.onnx import Runtime

        runtime = Runtime.load(bundle, threads=threads, timeout=timeout)
        found = [row for size in batch or (1, 32, 256) for row in _rows(runtime, size, seconds)]
        if as_json:
            print(json.dumps(found, indent=1))
            return
        print(f"{'call':<28} {'rows':>5} {'median ms':>10} {'p99 ms':>10} {'rows/s':>10}")
        for row in found:
            print(f"{row['call']:<28} {row['rows']:>5} {row['median_ms']:>10.3f} {row['p99_ms']:>10.3f} "
                  f"{row['rows_per_s']:>10.0f}")  # fmt: skip


def _rows(runtime: Any, size: int, seconds: float) -> list[dict[str, Any]]:
    from mmvae_fast.onnx import values

    samples = values.example(runtime, size)
    z = runtime.encode(samples).mu
    calls: dict[str, Callable[[], Any]] = {"encode": partial(runtime.encode, samples)}
    if len(samples) > 1:
        for name, x in samples.items():
            calls[f"encode {name} alone"] = partial(runtime.encode, {name: x})
    for name in (name for name, spec in runtime.modalities.items() if spec.decodable):
        calls[f"decode {name}"] = partial(runtime.decode, z, name)
    calls["reconstruct"] = partial(runtime.reconstruct, samples)
    return [{"call": name, "rows": size, **_timed(call, size, seconds)} for name, call in calls.items()]


def _timed(call: Callable[[], Any], size: int, seconds: float) -> dict[str, float]:
    """Wall time: what whoever waits for an answer sees."""
    from time import perf_counter

    import numpy as np

    call()
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < 3 or perf_counter() < end:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    median = float(np.median(times))
    return {"median_ms": 1e3 * median, "p99_ms": 1e3 * float(np.quantile(times, 0.99)), "rows_per_s": size / median}
