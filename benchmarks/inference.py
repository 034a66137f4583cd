"""The Runtime against torch: ``python -m benchmarks.inference``, or ``make bench-inference``.

One model of multilayer perceptrons and one of convolutions, three modalities each; reconstruct all of them from all,
from all but the image, and from batches in which every row lacks about half. torch runs the very model that was
exported, in eval mode without gradients, as it is and under ``torch.compile``; one thread each, taking turns in a run.
Figures are times of torch over the Runtime's: above 1, the Runtime is faster.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import table
from benchmarks.timing import interleaved
from mmvae_fast.modalities import Audio, Image, Text
from mmvae_fast.models import MVAE
from mmvae_fast.onnx import Runtime, export_onnx

BATCHES = (1, 32, 256)
MISSING = ("nothing", "the image", "half")
HEADER = ["networks", "missing", "rows", "Runtime ms", "eager / Runtime", "compile / Runtime", "verdict"]
_WORDS = [f"w{i}" for i in range(1000)]


def mlp(small: bool = False) -> MVAE:
    width = (16,) if small else (512, 512)
    modalities = {
        "image": Image((1, 28, 28), hidden=width),
        "text": Text(_WORDS, 16, hidden=width[:1]),
        "audio": Audio((20, 20), hidden=width[:1]),
    }
    return MVAE(modalities, 8 if small else 64)


def conv(small: bool = False) -> MVAE:
    side, frames = (16, 16) if small else (64, 64)
    modalities = {
        "image": Image((3, side, side), network="conv"),
        "text": Text(_WORDS, 16),
        "audio": Audio((20, frames), network="conv"),
    }
    return MVAE(modalities, 8 if small else 64)


MODELS: dict[str, Callable[[bool], MVAE]] = {"mlp": mlp, "conv": conv}


def _inputs(model: MVAE, rows: int, missing: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    rng = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {}
    for name, modality in model.modalities.items():
        shape = (rows, *modality.shape)
        tokens = modality.dtype == torch.int64
        batch[name] = rng.integers(0, len(_WORDS), shape) if tokens else rng.random(shape, dtype=np.float32)
    if missing == "the image":
        del batch["image"]
    if missing != "half":
        return batch, None
    mask = rng.random((rows, len(batch))) < 0.5
    mask[np.arange(rows), rng.integers(0, len(batch), rows)] = True  # something is there
    return batch, mask


def _torch_call(model: Any, batch: dict[str, np.ndarray], mask: np.ndarray | None) -> Callable[[], Any]:
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    observed = None if mask is None else torch.from_numpy(mask)

    def call() -> Any:
        with torch.no_grad():
            return model(tensors, observed)

    return call


def measure(
    networks: str, runtime: Runtime, model: MVAE, rows: int, missing: str, seconds: float, compiled: bool
) -> list[str]:
    """One line of the table; first, all three must agree."""
    batch, mask = _inputs(model, rows, missing)
    calls = {
        "runtime": lambda: runtime.reconstruct(batch, mask),
        "eager": _torch_call(model.reconstruct, batch, mask),
    }
    if compiled:
        calls["compile"] = _torch_call(torch.compile(model.reconstruct), batch, mask)
    answers = {name: call() for name, call in calls.items()}
    for name in ("image", "audio"):
        for other, found in answers.items():
            np.testing.assert_allclose(found[name], answers["eager"][name], rtol=1e-3, atol=1e-4, err_msg=other)
    spent = interleaved(calls, seconds=seconds)
    ratios = {name: spent[name] / spent["runtime"] for name in ("eager", "compile") if name in spent}
    verdict = "faster" if min(ratios.values()) > 1 else "SLOWER"
    cells = [f"{ratios[name]:.2f}" if name in ratios else "-" for name in ("eager", "compile")]
    return [networks, missing, str(rows), f"{spent['runtime'] * 1e3:.3f}", *cells, verdict]


def main(arguments: list[str] | None = None) -> list[list[str]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--missing", nargs="+", choices=MISSING, default=list(MISSING))
    parser.add_argument("--seconds", type=float, default=3.0, help="for every line")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's advice
        for networks in options.networks:
            torch.manual_seed(0)
            model = MODELS[networks](options.small).eval()
            runtime = Runtime.load(export_onnx(model, Path(folder) / networks, verify=False).folder)
            for missing in options.missing:
                for size in options.batches:
                    torch.compiler.reset()
                    rows.append(
                        measure(networks, runtime, model, size, missing, options.seconds, not options.no_compile)
                    )
                    print(*rows[-1], flush=True)
    print(table(HEADER, rows))
    return rows


if __name__ == "__main__":
    main()
