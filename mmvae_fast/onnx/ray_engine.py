"""A folder of Parquet files to latents on a Ray cluster: Ray Data hands out the files, a Runtime in each worker embeds.

A file is the unit of work: its output is written in one step by whichever worker finishes it, so a worker that dies, a
task that Ray runs twice and a run that is started again all leave exactly one row out for every row in.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmvae_fast import _lazy
from mmvae_fast.onnx.embedding import ON_ERROR, Done, Job, embed_file
from mmvae_fast.onnx.errors import BadValue, unknown
from mmvae_fast.onnx.runtime import Runtime


class _Worker:
    """In a process of its own: opens the bundle once, then embeds file after file."""

    def __init__(self, bundle: str):
        self.runtime = Runtime.load(bundle)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        job = Job(**json.loads(row["job"]))
        try:
            return {**asdict(embed_file(self.runtime, job)), "error": ""}
        except (ValueError, OSError) as error:  # said here: Ray would wrap it in pages of its own
            return {**asdict(Done(job.source, 0, 0, False)), "error": str(error)}


def embed_folder(
    bundle: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    on_error: str = "stop",
    batch_rows: int = 256,
    workers: int | None = None,
    address: str | None = None,
) -> list[Done]:
    """Embed every .parquet file below ``data``, each to the same place below ``out``. Call again to go on.

    Args:
        bundle, data, out: folders that all workers see under these names.
        columns: modality -> column, where they are not called the same.
        keep, on_error, batch_rows: of :class:`~mmvae_fast.onnx.embedding.Job`.
        workers: processes; by default one a core of the cluster, at most one a file.
        address: of a running cluster; None starts one on this machine, unless one runs in this process.

    Returns:
        What became of each file, sorted by name.

    Raises:
        BundleError: of the bundle.
        ValueError: no files, unknown modalities, or what :func:`~mmvae_fast.onnx.embedding.embed_file` raises.
        ImportError: ray is not installed.
    """
    ray = _lazy.require("ray", extra="ray")
    ray_data = _lazy.require("ray.data", extra="ray")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is {on_error!r}, expected one of {', '.join(map(repr, ON_ERROR))}")
    runtime = Runtime.load(bundle)
    for name in columns or {}:
        if name not in runtime.modalities:
            raise BadValue("columns: " + unknown("modality", name, runtime.modalities))
    jobs = _jobs(Path(data), Path(out), {name: (columns or {}).get(name, name) for name in runtime.modalities},
                 list(keep), on_error, batch_rows)  # fmt: skip
    own = not ray.is_initialized()
    if own:
        # workers import this very package; without the log of every worker in this process's output
        ray.init(address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports every execution
    try:
        context = ray_data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        count = min(len(jobs), workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
        items = [{"job": json.dumps(asdict(job))} for job in jobs]
        dataset = ray_data.from_items(items, override_num_blocks=len(jobs))
        pool = ray_data.ActorPoolStrategy(size=count)
        dataset = dataset.map(_Worker, fn_constructor_args=(str(Path(bundle).absolute()),), compute=pool)
        done = []
        for row in dataset.iter_rows():
            if error := row.pop("error"):
                raise ValueError(error)
            done.append(Done(**row))
    finally:
        logger.setLevel(level)
        if own:
            ray.shutdown()
    return sorted(done, key=lambda one: one.source)


def _jobs(
    data: Path, out: Path, columns: Mapping[str, str], keep: list[str], on_error: str, batch_rows: int
) -> list[Job]:
    if not data.is_dir():
        raise ValueError(f"{data}: no such folder, expected one of Parquet files")
    inside = out.absolute()
    sources = [path for path in sorted(data.rglob("*.parquet")) if inside not in path.absolute().parents]
    if not sources:
        raise ValueError(f"{data}: holds no .parquet file")
    targets = [inside / path.relative_to(data) for path in sources]
    return [
        Job(os.fspath(source.absolute()), os.fspath(target), dict(columns), keep, on_error, batch_rows)
        for source, target in zip(sources, targets, strict=True)
    ]
