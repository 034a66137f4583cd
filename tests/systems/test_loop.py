"""One loop for all systems: repeatable, resumable bit for bit, and careful with what is in its folder."""

from __future__ import annotations

import json
import math
import os
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Image, Vector
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier, System, fit

ROWS = 40
OPTIONS = {"epochs": 3, "batch_size": 16, "progress": False}


def data(**extra):
    g = torch.Generator().manual_seed(0)
    return {"a": torch.rand(ROWS, 1, 4, 5, generator=g), **extra}


LABELS = torch.arange(ROWS) % 3


def gan():
    return GAN({"a": Image((1, 4, 5))}, 4, classes=3, width=2), data(label=LABELS)


def gan_with_penalty():
    networks = {"features": nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.Dropout(0.5), nn.Tanh())}
    system = GAN({"a": Image((1, 4, 5))}, 4, loss="wasserstein", penalty="gradient", networks=networks, width=2)
    return system, data()


def cyclegan():
    b = torch.randn(ROWS, 7, generator=torch.Generator().manual_seed(1))
    return CycleGAN({"a": Image((1, 4, 5)), "b": Vector(7)}, width=2, history=20, paired_weight=1.0), data(b=b)


def classifier():
    b = torch.randn(ROWS, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(ROWS) % 4 == 0, -1, LABELS)
    modalities = {"a": Image((1, 4, 5), hidden=(8,)), "b": Vector(7, hidden=(8,))}
    return FusionClassifier(modalities, 3, 4, gradient_clip=1.0), data(b=b, label=labels)


SYSTEMS = {f.__name__: f for f in (gan, gan_with_penalty, cyclegan, classifier)}


@pytest.fixture(params=SYSTEMS.values(), ids=SYSTEMS)
def make(request):
    def make():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return request.param()

    return make


def stop_at(system, epoch, error=None):
    """Ctrl-C in the second step of an epoch."""
    step, calls = system.step, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3 * epoch + 2:
            raise error or KeyboardInterrupt
        return step(*arguments)

    system.step = stopping
    return system


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_continued_is_uninterrupted(make, tmp_path):
    whole, rows = make()
    validation = {"validation": rows} if whole.validated else {}
    history = fit(whole, rows, out=tmp_path / "whole", **validation, **OPTIONS)
    assert len(history) == 3 and all(math.isfinite(v) for record in history for v in record.values())
    random = torch.get_rng_state()
    for epoch, kept in ((1, "holds the epoch before"), (0, "holds the epoch before")):
        with pytest.raises(KeyboardInterrupt, match=f"stopped in epoch .*{kept}"):
            fit(stop_at(make()[0], epoch), rows, out=tmp_path / "parts", **validation, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(77)
    again = make()[0]
    assert fit(again, rows, out=tmp_path / "parts", **validation, **OPTIONS) == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    assert json.loads((tmp_path / "whole/history.json").read_text()) == history
    assert (tmp_path / "whole/best").exists() == whole.validated
    loaded = System.load(tmp_path / "whole/last", networks=make()[0]._given)
    assert loaded.config() == whole.config() and not loaded.training


def test_repeatable_and_the_seed_matters(make):
    histories = []
    for seed in (0, 0, 1):
        system, rows = make()
        histories.append(fit(system, rows, seed=seed, **OPTIONS))
        torch.manual_seed(len(histories))
    assert histories[0] == histories[1] != histories[2]


def test_a_dataset_is_as_good_as_tensors(make):
    class Rows(torch.utils.data.Dataset):
        def __init__(self, tensors):
            self.tensors = tensors

        def __len__(self):
            return ROWS

        def __getitem__(self, i):
            return {name: x[i] for name, x in self.tensors.items()}

    (a, rows), (b, _) = make(), make()
    assert fit(a, rows, **OPTIONS) == fit(b, Rows(rows), **OPTIONS)


def test_samples_of_each_epoch(tmp_path):
    system, rows = gan()
    fit(system, rows, out=tmp_path, **OPTIONS)
    saved = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert saved == [f"epoch-000{i}-a.{end}" for i in (1, 2, 3) for end in ("npy", "png")]
    samples = np.load(tmp_path / "samples/epoch-0003-a.npy")
    assert samples.shape == (30, 1, 4, 5)
    np.testing.assert_array_equal(samples, system.sample(condition=torch.arange(3).repeat_interleave(10), seed=0))
    picture = pytest.importorskip("PIL.Image").open(tmp_path / "samples/epoch-0003-a.png")
    assert picture.size == (10 * 6 - 1, 3 * 5 - 1) and picture.mode == "L"
    pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[5:9, 6:11], (255 * samples[11, 0]).round())  # second row, second column


def test_an_epoch_without_a_step_is_an_error():
    nowhere = torch.zeros(ROWS, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="epoch 1: no step was made: no batch of 16 rows holds a by its mask"):
        fit(gan()[0], data(label=LABELS, mask=nowhere), **OPTIONS)
    system, rows = cyclegan()
    with pytest.raises(ValueError, match="epoch 1: no step was made: .* holds a and b"):
        fit(system, {**rows, "mask": {"b": nowhere[:, 0]}}, **OPTIONS)


def test_sigterm_says_what_is_kept(tmp_path):
    system, rows = gan()
    handler, step = signal.getsignal(signal.SIGTERM), system.step

    def terminating(*arguments):
        if (tmp_path / "last").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    system.step = terminating
    with pytest.raises(SystemExit, match="training stopped in epoch 2: .*last holds the epoch before"):
        fit(system, rows, out=tmp_path, **OPTIONS)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(fit(gan()[0], rows, out=tmp_path, **OPTIONS)) == 3


def test_your_own_handler_of_sigterm_stays(tmp_path):
    system, rows = gan()
    step, came = system.step, []
    system.step = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM) or step(*arguments)
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        assert len(fit(system, rows, out=tmp_path, **OPTIONS)) == 3
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(came) == 9


def test_a_handler_that_python_did_not_set_is_left_alone(tmp_path, monkeypatch):
    """Of an embedding program: getsignal gives None, which signal does not take."""
    system, rows = gan()
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    assert len(fit(system, rows, out=tmp_path, **OPTIONS)) == 3


def test_starting_over_leaves_nothing_of_the_earlier_run(tmp_path):
    """Also a best/ that the new run, without validation, never writes."""
    system, rows = classifier()
    fit(system, rows, validation=rows, out=tmp_path, **OPTIONS)
    assert (tmp_path / "best").exists()
    fit(system, rows, out=tmp_path, resume=False, **OPTIONS)
    assert not (tmp_path / "best").exists() and System.load(tmp_path / "last") is not None


def test_starting_over_leaves_no_samples_of_the_earlier_run(tmp_path):
    system, rows = gan()
    fit(system, rows, out=tmp_path, **OPTIONS)
    folder = tmp_path / "samples"
    (folder / "epoch-0002-of-mine.png").write_bytes(b"mine")
    (folder / "epoch-0001-gone.npy").write_bytes(b"of a modality that there is no longer")
    fit(gan()[0], rows, out=tmp_path, resume=False, **{**OPTIONS, "epochs": 1})
    found = {path.name for path in folder.iterdir()}
    assert found == {"epoch-0001-a.npy", "epoch-0001-a.png", "epoch-0002-of-mine.png"}
    fit(gan()[0], rows, out=tmp_path, **OPTIONS)
    assert {f"epoch-000{i}-a.npy" for i in (1, 2, 3)} < {path.name for path in folder.iterdir()}


def test_a_missing_library_is_said_before_the_first_epoch(tmp_path, monkeypatch):
    """And what happens to the pictures afterwards costs no epoch."""
    system, rows = gan()
    steps, step = [], system.step
    monkeypatch.setattr(system, "step", lambda *a: steps.append(1) or step(*a))
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "PIL", None)
        m.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(ImportError, match="PIL"):
            fit(system, rows, out=tmp_path, **OPTIONS)
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "tqdm", None)
        m.setattr(sys.stderr, "isatty", lambda: True)
        with pytest.raises(ImportError, match="tqdm"):
            fit(system, rows, **{**OPTIONS, "progress": True})
    assert not steps
    (tmp_path / "samples").write_text("a file where the folder should be")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        fit(system, rows, out=tmp_path, **OPTIONS)
    assert len(steps) == 3 and json.loads((tmp_path / "history.json").read_text())[0]["epoch"] == 1


def test_best_is_the_lowest_validation_loss(tmp_path):
    system, rows = classifier()
    history = fit(system, rows, validation=rows, out=tmp_path, **OPTIONS)
    best = min(history, key=lambda record: record["val_loss"])["epoch"]
    assert json.loads((tmp_path / "best/training/state.json").read_text())["epoch"] == best


def test_refusals(tmp_path):
    system, rows = gan()
    fit(system, rows, out=tmp_path / "run", **OPTIONS)
    before = files(tmp_path / "run")
    with pytest.raises(ValueError, match="other settings: batch_size was 16, now 8"):
        fit(gan()[0], rows, out=tmp_path / "run", **{**OPTIONS, "batch_size": 8})
    with pytest.raises(ValueError, match=r"data\.a was"):
        fit(gan()[0], {**rows, "a": rows["a"] / 2}, out=tmp_path / "run", **OPTIONS)
    other = GAN({"a": Image((1, 4, 5))}, 4, classes=3, width=4)
    with pytest.raises(ValueError, match=r"another model: options\.width is 2, expected 4"):
        fit(other, rows, out=tmp_path / "run", **OPTIONS)
    assert files(tmp_path / "run") == before
    (tmp_path / "mine/last").mkdir(parents=True)
    (tmp_path / "mine/last/thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis"):
        fit(system, rows, out=tmp_path / "mine", **OPTIONS)
    with pytest.raises(ValueError, match="no checkpoint"):
        fit(system, rows, out=tmp_path / "none", resume=True, **OPTIONS)
    for change, error in ({"epochs": 0}, ValueError), ({"batch_size": 1.5}, ValueError), ({"seed": "a"}, TypeError):
        with pytest.raises(error, match=f"{next(iter(change))} is"):
            fit(system, rows, **{**OPTIONS, **change})
    with pytest.raises(TypeError, match="models train with training.fit"):
        fit(nn.Linear(1, 1), rows, **OPTIONS)


def test_a_finished_run_is_loaded_and_more_epochs_go_on(tmp_path):
    whole, rows = gan()
    fit(gan()[0], rows, out=tmp_path, **{**OPTIONS, "epochs": 1})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        system = gan()[0]
    fit(system, rows, out=tmp_path, **{**OPTIONS, "epochs": 1})
    step = json.loads((tmp_path / "last/training/state.json").read_text())["epoch"]
    assert step == 1 and torch.equal(System.load(tmp_path / "last").sample(3, seed=0), system.sample(3, seed=0))
    assert len(fit(system, rows, out=tmp_path, **OPTIONS)) == 3
    assert len(fit(whole, rows, out=tmp_path, resume=False, **OPTIONS)) == 3


def test_a_loss_that_is_not_finite(tmp_path):
    system, rows = gan()
    with torch.no_grad():
        system.discriminator.score.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="epoch 1: generator_loss is nan"):
        fit(system, rows, out=tmp_path, **OPTIONS)
    assert not (tmp_path / "last").exists()


def test_damaged_and_foreign_folders(tmp_path):
    system, _ = gan()
    system.save(tmp_path)
    with pytest.raises(ValueError, match="holds a system 'GAN', expected CycleGAN"):
        CycleGAN.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in [
        ({"format": "x"}, "not a system"),
        ({"schema_version": 9}, "another version"),
        ({"system": "Oracle"}, "expected one of"),
        ({"options": {"classes": -1}}, "does not describe a GAN"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"networks": None}, "networks is None"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            System.load(tmp_path)


def test_networks_are_imported_where_that_is_allowed(tmp_path, monkeypatch):
    code = "from torch import nn\nclass Encoder(nn.Linear):\n    def __init__(self, d): super().__init__(7, 2 * d)\n"
    code += "    def forward(self, x): return super().forward(x).chunk(2, -1)\n"
    (tmp_path / "own_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    classifier = FusionClassifier({"b": Vector(7, encoder="own_networks:Encoder")}, 3, 4)
    classifier.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="allow_import is False: pass allow_import=True"):
        System.load(tmp_path / "saved")
    x = {"b": torch.randn(5, 7)}
    for allowed in (True, ["own_networks"]):
        again = System.load(tmp_path / "saved", allow_import=allowed)
        assert torch.equal(again.predict_proba(x), classifier.eval().predict_proba(x))


def test_progress_says_both_losses(capsys):
    system, rows = gan()
    fit(system, rows, **{**OPTIONS, "progress": True})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all("generator_loss" in line and "discriminator_loss" in line for line in lines)
