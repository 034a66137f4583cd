"""The main job: embedded data -> trained MoPoE -> figures -> ONNX bundle -> answers without torch -> report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvae_fast import _files
from mmvae_fast._lazy import require
from mmvae_fast.demo import data, report, serve
from mmvae_fast.demo.evaluate import TARGETS, evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from mmvae_fast.models import MultimodalVAE

LATENT_DIM = 16
_WRITTEN_FILES = (
    "metrics.json", "timings.json", "training.png", "grid.png", "latent.png", "samples.png", "report.html",
)  # fmt: skip
ONNX_LIMIT = 1e-4  # largest absolute difference from torch, of the bundle and of what it computes without torch


@dataclass(frozen=True)
class Settings:
    """The recipe. Same settings, same ``metrics.json`` (on one machine, with the same packages)."""

    seed: int = 0
    epochs: int = 30
    draws: int = 4000
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("epochs", 1), ("draws", 100), ("threads", 1)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise ValueError(f"{name} is {value!r}, expected an integer, {least} or more")

    @property
    def warmup_epochs(self) -> int:
        return self.epochs // 3

    @property
    def promises_targets(self) -> bool:
        """Whether the targets must be reached: they were set for the default epochs and draws, whatever the seed."""
        default = Settings()
        return (self.epochs, self.draws) == (default.epochs, default.draws)


@dataclass(frozen=True)
class Result:
    """What a run found, and where it wrote it."""

    out: Path
    settings: Settings
    metrics: dict[str, Any]
    timings: dict[str, float]

    @property
    def broken_promise(self) -> bool:
        """A target was missed that this recipe must reach: something is wrong with code, packages or machine."""
        return bool(self.missed) and self.settings.promises_targets

    @property
    def missed(self) -> list[str]:
        """The figures that did not reach their target."""
        return [name for name, target in TARGETS.items() if self.metrics["figures"][name] < target]


def run(out: str | os.PathLike, settings: Settings | None = None, console: Console | None = None) -> Result:
    """Do everything, and write it to the folder ``out``: ``checkpoint/``, ``onnx/``, ``metrics.json``,
    ``timings.json``, four PNGs and ``report.html``.

    It is all built aside and put in place at the end, so a run that fails or is interrupted leaves an earlier one as it
    was. Other files in ``out`` are not touched.

    Raises:
        NotADirectoryError: ``out`` is a file.
        FileExistsError: what stands where the demo writes is not an earlier demo's; nothing was done yet.
        mmvae_fast.onnx.ExportVerificationError: the bundle, or what it computes without torch, is not the model.
        ImportError: a package is missing; names the extra.
    """
    out, settings = Path(out), settings or Settings()
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file, expected a folder to write the demo to")
    _check_replaceable(out)
    steps = _Steps(console or require("rich.console", extra="cli").Console())
    existed = out.exists()
    try:
        with _files.temporary_sibling(out / "demo") as stage, _torch_threads(settings.threads):
            metrics = _run(stage, settings, steps)
            _check_replaceable(out)  # somebody may have put something there meanwhile
            _publish(stage, out)
    except BaseException:
        if not existed:
            _remove_if_empty(out)
        raise
    return Result(out, settings, metrics, steps.seconds)


def _run(stage: Path, settings: Settings, steps: _Steps) -> dict[str, Any]:
    with steps("data", "real digits, their captions and keypad tones"):
        demo_set = data.build(settings.seed, settings.draws)
    with steps("train", f"MoPoE on {settings.draws} draws, {settings.epochs} epochs"):
        model, history = train(demo_set, settings, stage / "checkpoint")
    with steps("evaluate", f"{len(demo_set.test)} held-out images"):
        found, latents = evaluate(model, demo_set.train, demo_set.test, seed=settings.seed)
    with steps("export", "ONNX bundle, compared with torch whatever is missing"):
        bundle = _export(model, stage / "onnx")
    with steps("serve", "the bundle, in a process that cannot import torch"):
        served, latency = serve_without_torch(model, demo_set.test, stage / "onnx", settings.seed)
    metrics = {
        "settings": _recipe(settings),
        "targets": TARGETS,
        **found,
        "onnx": {**bundle, "without_torch_worst": served},
    }
    with steps("report", "pictures and report.html"):
        pictures = draw(model, demo_set.test, history, latents["gmm"], settings)
        for name, png in pictures.items():
            (stage / f"{name}.png").write_bytes(png)
    steps.seconds["total"] = sum(steps.seconds.values())
    timings = {"seconds": steps.seconds, "without_torch": latency, "environment": environment()}
    _write_json(stage / "metrics.json", metrics)
    _write_json(stage / "timings.json", timings)
    (stage / "report.html").write_text(report.write(metrics, timings, pictures, demo_set.test), encoding="utf-8")
    return metrics


# --- the steps --------------------------------------------------------------------------------------------------------


def train(demo_set: data.DemoSet, settings: Settings, out: Path) -> tuple[MultimodalVAE, list[dict[str, float]]]:
    """Train, and return the best epoch by the validation loss."""
    import torch

    from mmvae_fast.models import MoPoE
    from mmvae_fast.training import fit

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = MoPoE(data.modalities(), LATENT_DIM, likelihood_weights="dimension")
    history = fit(
        model,
        demo_set.train.batch(model.modalities),
        epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        validation=demo_set.validation.batch(model.modalities),
        out=out,
        seed=settings.seed,
        accelerator="cpu",  # where the figures are reproducible; these networks would not fill a GPU anyway
    )
    return MoPoE.load(out / "best").eval(), history


def _export(model: MultimodalVAE, folder: Path) -> dict[str, Any]:
    from mmvae_fast.onnx import ExportVerificationError, export_onnx

    found = export_onnx(model, folder).report
    assert found is not None
    if found.worst > ONNX_LIMIT:
        raise ExportVerificationError(f"the bundle differs from torch by {found.worst:.3g}, expected {ONNX_LIMIT:g}")
    return {"passed": found.passed, "checks": len(found.checks), "worst": found.worst}


def serve_without_torch(
    model: MultimodalVAE, test: data.Split, bundle: Path, seed: int
) -> tuple[float, dict[str, float]]:
    """Let another process answer with the bundle alone, and compare with torch.

    Returns:
        (worst absolute difference, timings)
    """
    import torch

    from mmvae_fast.onnx import ExportVerificationError

    batch = test.batch(model.modalities)
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.npz"), Path(folder, "answer.npz")
        np.savez(request, **{name: x.numpy() for name, x in batch.items()})  # type: ignore[arg-type]
        command = [sys.executable, "-m", serve.__name__, str(bundle), str(request), str(answer), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportVerificationError(f"the bundle does not run without torch:\n{done.stderr.strip()}")
        with np.load(answer) as file:
            answers = dict(file)
    with torch.no_grad():
        expected = {f"sample/{name}": x for name, x in model.sample(serve.SAMPLES, seed=seed).items()}
        for observed in serve.patterns(list(batch)):
            some, key = {name: batch[name] for name in observed}, "+".join(observed)
            expected[f"{key}/mu"] = mu = model.encode(some).mu
            expected.update({f"{key}/{name}": x for name, x in model.decode(mu, params=True).items()})
    differences = {key: _difference(x.numpy(), answers[key]) for key, x in expected.items()}
    worst = max(differences, key=differences.__getitem__)
    if not differences[worst] <= ONNX_LIMIT:
        raise ExportVerificationError(
            f"without torch, {worst} differs by {differences[worst]:.3g}, expected {ONNX_LIMIT:g}"
        )
    return differences[worst], json.loads(done.stdout)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    return float(np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max())


def draw(
    model: MultimodalVAE, test: data.Split, history: list[dict[str, float]], gmm_z: Any, settings: Settings
) -> dict[str, bytes]:
    """The pictures as PNG, by name."""
    import torch

    from mmvae_fast.demo import plots

    batch = test.batch(model.modalities)
    one_each = [int(np.flatnonzero(test.labels == digit)[0]) for digit in range(10)]
    shown = {name: x[one_each] for name, x in batch.items()}
    sentences = model.modalities["text"].detokenize  # type: ignore[attr-defined]

    def row(title: str, modality: str, values: Any) -> plots.Row:
        return plots.Row(title, modality, sentences(values) if modality == "text" else list(values.numpy()))

    called = data.SHOWN_AS
    rows = [row(f"original\n{called[name]}", name, x) for name, x in shown.items()]
    rows += [row(f"reconstructed\n{called[name]}", name, x) for name, x in model.reconstruct(shown).items()]
    for target in shown:
        for source in shown:
            if source != target:
                decoded = model.translate({source: shown[source]}, to=target)
                rows.append(row(f"{called[source]}\n→ {called[target]}", target, decoded))
    seen = {"everything": batch, **{f"{called[name]} only": {name: x} for name, x in batch.items()}}
    with torch.no_grad():
        posteriors = {title: model.encode(some).mu.numpy() for title, some in seen.items()}
        sampled = model.decode(gmm_z[_spread(gmm_z)])
    samples = [row(f"sampled\n{called[name]}", name, x) for name, x in sampled.items()]
    return {
        "training": _png(plots.training_curve(history, settings.warmup_epochs)),
        "grid": _png(plots.grid(rows, test.labels[one_each])),
        "latent": _png(plots.latent_space(posteriors, test.labels, axes_of="caption only")),
        "samples": _png(plots.grid(samples)),
    }


def _spread(gmm_z: Any) -> np.ndarray:
    """Ten of the samples, evenly spaced: scikit-learn sorts them by component."""
    return np.linspace(0, len(gmm_z) - 1, 10).astype(int)


def _png(figure: Figure) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# --- what is written --------------------------------------------------------------------------------------------------


def _recipe(settings: Settings) -> dict[str, Any]:
    fixed = {
        "model": "MoPoE",
        "latent_dim": LATENT_DIM,
        "likelihood_weights": "dimension",
        "warmup_epochs": settings.warmup_epochs,
        "test_rows": data.N_TEST,
        "validation_rows": data.N_VALIDATION,
    }
    return {**asdict(settings), **fixed}


def environment() -> dict[str, str]:
    """Versions a figure may depend on."""
    from importlib.metadata import version

    import torch

    from mmvae_fast import __version__, kernels_available

    packages = ("numpy", "lightning", "scikit-learn", "librosa", "onnx", "onnxruntime")
    return {
        "mmvae_fast": __version__,
        "kernels": "native" if kernels_available() else "plain PyTorch",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        **{name: version(name) for name in packages},
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _publish(stage: Path, out: Path) -> None:
    """Move what was built into ``out``, the report, which speaks of all the others, last; or leave ``out`` as it was.

    What stands there steps aside into ``stage``, which its owner removes.
    """
    names = sorted((path.name for path in stage.iterdir()), key="report.html".__eq__)
    out.mkdir(parents=True, exist_ok=True)
    old = stage / "replaced"
    old.mkdir()
    try:
        for name in names:
            if (out / name).exists():
                os.rename(out / name, old / name)
            os.rename(stage / name, out / name)
    except BaseException:
        for name in names:
            if not (stage / name).exists():
                os.rename(out / name, stage / name)
            if (old / name).exists():
                os.rename(old / name, out / name)
        raise


def _check_replaceable(out: Path) -> None:
    """Refuse to replace anything but what an earlier demo wrote: people call their own folders checkpoint and onnx."""
    for name, is_ours in (("checkpoint", _is_checkpoint), ("onnx", _is_bundle)):
        _files.check_replaceable(out / name, is_ours, f"the {name} folder of an earlier demo")
    for name in _WRITTEN_FILES:
        if (out / name).is_dir():
            raise FileExistsError(f"{out / name} is a folder, expected a file of an earlier demo or nothing")


def _is_bundle(folder: Path) -> bool:
    from mmvae_fast.onnx import manifest

    return manifest.is_bundle(folder) and any(
        set(data.VOCABULARY) <= set(m.vocabulary or ()) for m in manifest.read(folder).modalities
    )


def _is_checkpoint(folder: Path) -> bool:
    """What ``fit`` writes, of a model that knows the words of our captions."""
    from mmvae_fast.models import checkpoint as models
    from mmvae_fast.training import checkpoints as training

    ours = {models.CONFIG, models.WEIGHTS, training.STATE.name, training.OPTIMIZER.name, training.HISTORY}
    if not {path.name for path in folder.rglob("*") if not path.is_dir()} <= ours:
        return False
    try:
        configs = [models.read_config(folder / part) for part in (training.BEST, training.LAST)]
        return all(set(data.VOCABULARY) <= set(c["modalities"]["text"]["vocabulary"]) for c in configs)
    except (ValueError, KeyError, TypeError):  # no model, or one of other modalities
        return False


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


# --- around the steps -------------------------------------------------------------------------------------------------


class _Steps:
    """Says which step runs, and how long it took."""

    def __init__(self, console: Console) -> None:
        self.console, self.seconds = console, {}  # type: ignore[var-annotated]

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[None]:
        self.console.print(f"[bold]{name:<9}[/bold] {what}", highlight=False)
        began = perf_counter()
        yield
        self.seconds[name] = perf_counter() - began
        self.console.print(f"{'':<9} [dim]{self.seconds[name]:.1f} s[/dim]", highlight=False)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """The networks are small: a second thread costs more than it brings."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summary(result: Result) -> Any:
    """The closing table: figures against targets, and what to open."""
    title = "mmvae_fast demo: share of held-out rows that show the right digit"
    table = require("rich.table", extra="cli").Table(title=title)
    for heading, justify in (("", "left"), ("reached", "right"), ("target", "right"), ("", "left")):
        table.add_column(heading, justify=justify)
    for name, label in report.FIGURES.items():
        value = result.metrics["figures"][name]
        verdict = {True: "[green]reached[/green]", False: "[red]missed[/red]", None: ""}[report.verdict(name, value)]
        table.add_row(label, f"{value:.3f}", report.target(name), verdict)
    worst = max(result.metrics["onnx"]["worst"], result.metrics["onnx"]["without_torch_worst"])
    table.add_section()
    table.add_row("ONNX against torch, worst difference", f"{worst:.1e}", f"{ONNX_LIMIT:.0e}", "[green]reached[/green]")
    return table
