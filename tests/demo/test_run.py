"""The whole path, tiny (quick) and as users get it (slow)."""

import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="needs the 'train' extra")
pytest.importorskip("onnxscript", reason="needs the 'onnx' extra")
pytest.importorskip("librosa", reason="needs the 'audio' extra")
pytest.importorskip("matplotlib", reason="needs the 'plots' extra")
pytest.importorskip("sklearn", reason="needs the 'demo' extra")
pytest.importorskip("rich", reason="needs the 'cli' extra")

from rich.console import Console

from mmvae_fast.demo import data, report
from mmvae_fast.demo import run as demo
from mmvae_fast.demo.evaluate import TARGETS
from mmvae_fast.models import MoPoE, MultimodalVAE
from mmvae_fast.onnx import ExportVerificationError, Runtime

TINY = demo.Settings(seed=5, epochs=2, draws=200)
WRITTEN = {
    "checkpoint", "onnx", "metrics.json", "timings.json", "report.html",
    "training.png", "grid.png", "latent.png", "samples.png",
}  # fmt: skip


def run(out: Path, settings: demo.Settings = TINY) -> demo.Result:
    return demo.run(out, settings, Console(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> demo.Result:
    return run(tmp_path_factory.mktemp("demo") / "out")


def test_everything_is_written_and_nothing_else(finished):
    assert {path.name for path in finished.out.iterdir()} == WRITTEN
    assert {path.name for path in finished.out.parent.iterdir()} == {"out"}
    for name in ("training", "grid", "latent", "samples"):
        assert (finished.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_hold_every_figure_and_no_timing(finished):
    metrics = json.loads((finished.out / "metrics.json").read_text())
    assert metrics == finished.metrics
    assert set(TARGETS) <= set(metrics["figures"])
    assert len(metrics["directions"]) == 9
    assert all(0 <= share <= 1 for share in (*metrics["figures"].values(), *metrics["directions"].values()))
    assert metrics["onnx"]["passed"] is True
    assert 0 < metrics["onnx"]["worst"] <= 1e-4
    assert metrics["onnx"]["without_torch_worst"] <= 1e-4
    assert metrics["likelihood"]["log_p_x"] > metrics["likelihood"]["elbo"]
    assert "seconds" not in json.dumps(metrics)


def test_after_two_epochs_targets_are_missed_and_said_to_be(finished):
    assert finished.missed
    html = (finished.out / "report.html").read_text(encoding="utf-8")
    assert "missed" in html.split("</style>")[1]
    shown = Console(width=120, file=io.StringIO())
    shown.print(demo.summary(finished))
    assert shown.file.getvalue().count("missed") == len(finished.missed)


def test_report_is_self_contained(finished):
    html = (finished.out / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*['"]([^'"]{0,30})""", html)
    assert len(sources) == 4 + 10  # pictures and tones
    assert all(source.startswith("data:") for source in sources)
    assert "://" not in html
    assert "synthetic" in html


def test_checkpoint_and_bundle_are_the_same_model(finished):
    model = MultimodalVAE.load(finished.out / "checkpoint" / "best")
    assert isinstance(model, MoPoE)
    runtime = Runtime.load(finished.out / "onnx")
    for name, x in model.sample(4, seed=1).items():
        assert np.allclose(runtime.sample(4, seed=1)[name], x.numpy(), atol=1e-5)


def test_the_report_says_how_to_use_it_and_that_works(finished, monkeypatch):
    monkeypatch.chdir(finished.out)
    names: dict = {}
    exec(report.USE, names)
    assert names["image"].shape == (1, 1, 8, 8)


@pytest.fixture
def quick_export(finished, monkeypatch):
    """Exporting takes most of a tiny run: take the finished run's bundle, which is right if the model is the same.

    So the "onnx" figures of such a run are copies; that an export repeats them too is seen in the slow
    test_two_whole_runs_write_the_same_metrics.
    """

    def export(model, folder):
        shutil.copytree(finished.out / "onnx", folder)
        return {key: value for key, value in finished.metrics["onnx"].items() if key != "without_torch_worst"}

    monkeypatch.setattr(demo, "_export", export)


def test_same_seed_again_into_the_same_folder_gives_the_same_metrics(finished, quick_export):
    files = [finished.out / name for name in ("metrics.json", "checkpoint/last/model.safetensors")]
    before = [path.read_bytes() for path in files]
    written = files[0].stat().st_mtime_ns
    (finished.out / "notes.txt").write_text("mine")
    run(finished.out)
    assert [path.read_bytes() for path in files] == before
    assert files[0].stat().st_mtime_ns > written
    assert (finished.out / "notes.txt").read_text() == "mine"
    assert {path.name for path in finished.out.iterdir()} == {*WRITTEN, "notes.txt"}


def test_the_bundle_of_another_model_is_found_out_and_leaves_the_folder_alone(tmp_path, quick_export):
    with pytest.raises(ExportVerificationError, match=r"without torch, .* differs by"):
        run(tmp_path / "out", replace(TINY, seed=6, epochs=1))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        run(tmp_path / "out")


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(demo, "_run", lambda *_: pytest.fail("refused too late"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["onnx/thesis.tex", "checkpoint/thesis.tex", "metrics.json/thesis.tex", "onnx"])
def test_what_is_not_an_earlier_demos_is_refused_before_training(tmp_path, no_work, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=str(tmp_path / name.split("/")[0])):
        run(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def of_another_model(folder: Path) -> None:
    """The same files, of a model that never heard of our captions."""
    words = {word: f"another{i}" for i, word in enumerate(data.VOCABULARY)}
    for path in (folder / "onnx/manifest.json", *folder.glob("checkpoint/*/config.json")):
        path.write_text(re.sub(r'"(\w+)"', lambda found: f'"{words.get(found[1], found[1])}"', path.read_text()))


def with_notes(folder: Path) -> None:
    for name in ("onnx", "checkpoint/best"):
        (folder / name / "notes.txt").write_text("mine")


@pytest.mark.parametrize("change", [of_another_model, with_notes])
@pytest.mark.parametrize("name", ["onnx", "checkpoint"])
def test_bundles_and_checkpoints_of_ones_own_are_refused_too(finished, tmp_path, no_work, name, change):
    for other in ("onnx", "checkpoint"):
        shutil.copytree(finished.out / other, tmp_path / other)
    demo._check_replaceable(tmp_path)
    change(tmp_path)
    shutil.rmtree(tmp_path / ({"onnx", "checkpoint"} - {name}).pop())
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"{name} is not the {name} folder of an earlier demo"):
        run(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk fell out")])
@pytest.mark.parametrize("call", range(1, 13))
def test_a_failure_while_publishing_leaves_everything_as_it_was(tmp_path, monkeypatch, error, call):
    stage, out, rename, calls = tmp_path / "stage", tmp_path / "out", os.rename, []
    for folder, text, names in ((stage, "new", WRITTEN), (out, "old", {"onnx", "metrics.json", "report.html"})):
        for name in names:
            path = folder / name if "." in name else folder / name / "file"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    before = contents(out)

    def fail(source, target):
        calls.append(target)
        if len(calls) == call:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises((KeyboardInterrupt, OSError)):
        demo._publish(stage, out)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("draws", 10), ("threads", 0), ("seed", -1), ("epochs", 1.5)]
)
def test_settings_that_cannot_be_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        demo.Settings(**{name: value})


@pytest.mark.slow
def test_two_whole_runs_write_the_same_metrics(finished, tmp_path):
    again = run(tmp_path / "out")
    assert (again.out / "metrics.json").read_bytes() == (finished.out / "metrics.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_reaches_its_targets(tmp_path, seed):
    result = run(tmp_path / "out", demo.Settings(seed=seed))
    assert result.missed == []
