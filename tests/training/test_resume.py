"""An interrupted and continued run is the uninterrupted one, bit for bit; anything else in the folder is an error."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mmvae_fast._files import check_replaceable, recover_folder, replace_folder, temporary_sibling, write_atomic
from mmvae_fast.modalities import Vector
from mmvae_fast.models import MVAE, MoPoE, MultimodalVAE
from mmvae_fast.training import checkpoints, fit

EPOCHS = 4
OPTIONS = {"epochs": EPOCHS, "batch_size": 16, "lr": 1e-2, "progress": False, "accelerator": "cpu"}


class Stop(Callback):
    """Ctrl-C, or any other end, in the middle of an epoch."""

    def __init__(self, epoch, end=None):
        self.epoch, self.end = epoch, end

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (module.progress.epoch, batch_idx) == (self.epoch, 1):
            if self.end is None:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise self.end


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture(params=[{}, {"with_validation": True}], ids=["", "validated"])
def run(request, data):
    """fit with the options of this file, with and without validation."""
    extra = {"validation": data} if request.param else {}

    def run(model, out=None, **changes):
        return fit(model, changes.pop("data", data), out=out, **{**OPTIONS, **extra, **changes})

    return run


def folders_equal(a, b):
    names = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    assert names
    return all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


@pytest.mark.parametrize("stops", [[0], [2], [1, 3]])
def test_continued_is_uninterrupted(make_model, run, tmp_path, stops):
    whole = make_model()
    history = run(whole, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out"
    for epoch in stops:
        with pytest.raises(KeyboardInterrupt, match=f"training stopped in epoch {epoch + 1}"):
            run(make_model(), out, callbacks=[Stop(epoch)])
        assert signal.getsignal(signal.SIGINT) is handler
        assert (out / "last").exists() == (epoch > 0)
        if epoch:
            assert json.loads((out / "last/training/state.json").read_text())["epoch"] == epoch
    torch.manual_seed(99)
    model = make_model(beta=1.0)
    assert run(model, out) == history
    assert_same(state(model), state(whole))
    assert folders_equal(out, tmp_path / "whole")


def test_the_message_of_an_interruption_says_what_is_kept(make_model, run, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="nothing was kept, as no folder was given"):
        run(make_model(), callbacks=[Stop(1)])
    with pytest.raises(KeyboardInterrupt, match="nothing was kept, as no epoch was complete"):
        run(make_model(), tmp_path, callbacks=[Stop(0)])
    with pytest.raises(KeyboardInterrupt, match=r"last holds the epoch before; the same call continues from there"):
        run(make_model(), tmp_path, callbacks=[Stop(1)])


def test_a_random_model_and_random_data_continue_exactly(data, tmp_path):
    """Dropout, random subsets, and a data set that augments."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            noise = 0.1 * (torch.randn(6) + random.gauss(0, 1) + float(np.random.randn()))  # noqa: NPY002
            return {"a": data["vector"][i] + noise, "b": data["vector"][i], "c": data["vector"][i]}

    def model():
        torch.manual_seed(0)
        decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 6))
        return MVAE({"a": Vector(6, decoder=decoder), "b": Vector(6), "c": Vector(6)}, 2, n_random_subsets=1)

    whole, parts = model(), model()
    history = fit(whole, Rows(), **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), Rows(), out=tmp_path, **OPTIONS, callbacks=[Stop(2)])
    assert fit(parts, Rows(), out=tmp_path, **OPTIONS) == history
    assert_same(state(parts), state(whole))


def test_workers_continue_exactly(make_model, data, tmp_path):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return {"vector": data["vector"][i] + torch.randn(6), "text": data["text"][i]}

    options = {**OPTIONS, "epochs": 2, "num_workers": 1}
    history = fit(make_model(), Rows(), **options, warmup_epochs=0)
    fit(make_model(), Rows(), **{**options, "epochs": 1}, warmup_epochs=0, out=tmp_path)
    assert fit(make_model(), Rows(), **options, out=tmp_path) == history


def test_other_ends_of_a_run(make_model, run, tmp_path):
    with pytest.raises(OSError, match="disk"):
        run(make_model(), tmp_path, callbacks=[Stop(2, OSError("disk"))])
    with pytest.raises(SystemExit, match="7"):
        run(make_model(), tmp_path, callbacks=[Stop(3, SystemExit(7))])
    assert [r["epoch"] for r in run(make_model(), tmp_path)] == [1, 2, 3, 4]


def test_a_finished_run_is_loaded_not_repeated(make_model, run, tmp_path):
    model, again = make_model(), make_model()
    history = run(model, tmp_path)
    assert run(again, tmp_path, callbacks=[Stop(0, AssertionError("trained"))]) == history
    assert_same(state(again), state(model))


def test_more_epochs_go_on(make_model, run, tmp_path):
    run(make_model(), tmp_path, epochs=2, warmup_epochs=1)
    model, whole = make_model(), make_model()
    assert run(model, tmp_path) == run(whole, warmup_epochs=1)
    assert_same(state(model), state(whole))


def test_starting_over(make_model, run, tmp_path):
    first = run(make_model(), tmp_path, seed=1)
    second = run(make_model(), tmp_path, seed=2, resume=False)
    assert len(second) == EPOCHS
    assert second != first
    assert json.loads((tmp_path / "history.json").read_text()) == second


def folder_contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FOREIGN = {
    "last": lambda out: ((out / "last").mkdir(), (out / "last/thesis.txt").write_text("mine")),
    "best": lambda out: ((out / "best").mkdir(), (out / "best/config.json").write_text('{"format": "theirs"}')),
    "last is a file": lambda out: (out / "last").write_text("mine"),
    "history": lambda out: (out / "history.json").write_text('[{"when": "1066"}]'),
}


@pytest.mark.parametrize("resume", ["auto", False])
@pytest.mark.parametrize("put", FOREIGN.values(), ids=FOREIGN)
def test_nothing_of_others_is_replaced(make_model, data, tmp_path, put, resume):
    out = tmp_path / "out"
    out.mkdir()
    put(out)
    before = folder_contents(out)
    never = Stop(0, AssertionError("trained"))
    with pytest.raises(FileExistsError, match=r"last.*thesis.txt|best.*config.json|last is a file|history.json is no"):
        fit(make_model(), data, out=out, resume=resume, callbacks=[never], **OPTIONS)
    assert folder_contents(out) == before


def test_what_others_have_beside_a_run_stays(make_model, data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best").mkdir()  # empty: nobody loses anything
    for _ in range(2):
        fit(make_model(), data, out=tmp_path, resume=False, **{**OPTIONS, "epochs": 1})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "cwd", "history.json", "last", "notes.txt"]


def test_starting_over_and_stopped_in_the_first_epoch(make_model, data, stopped):
    """The earlier run stays, and is not taken for the new one."""
    before = folder_contents(stopped)
    with pytest.raises(KeyboardInterrupt, match=r"in epoch 1: nothing was kept.*still holds the run before"):
        fit(make_model(), data, out=stopped, resume=False, callbacks=[Stop(0)], **OPTIONS)
    after = folder_contents(stopped)
    marker = [p for p in after if p not in before]
    assert [p.name for p in marker] == ["started-over.txt"]
    assert {p: content for p, content in after.items() if p in before} == before
    for resume in ("auto", True):
        with pytest.raises(ValueError, match=r"resume=False set out to replace.*remove .*started-over.txt to go on"):
            fit(make_model(), data, out=stopped, resume=resume, **OPTIONS)
    shutil.copytree(stopped, stopped.with_name("copy"))
    (stopped / marker[0]).unlink()
    assert len(fit(make_model(), data, out=stopped, **OPTIONS)) == EPOCHS  # the earlier run goes on
    whole, again = make_model(), make_model()
    history = fit(whole, data, seed=9, **OPTIONS)
    assert fit(again, data, out=stopped.with_name("copy"), resume=False, seed=9, **OPTIONS) == history
    assert "started-over.txt" not in os.listdir(stopped.with_name("copy"))


def test_starting_over_and_killed_in_the_first_write(make_model, data, stopped, monkeypatch):
    """With the new best/ in place and not yet the new last/, the old last/ must not go on."""
    real = checkpoints.replace_folder

    def killed_before_last(temp, target):
        if target.name == "last":
            raise OSError("killed")
        real(temp, target)

    monkeypatch.setattr(checkpoints, "replace_folder", killed_before_last)
    with pytest.raises(OSError, match="killed"):
        fit(make_model(), data, out=stopped, resume=False, seed=9, **OPTIONS)
    monkeypatch.setattr(checkpoints, "replace_folder", real)
    (stopped / "started-over.txt").unlink()
    history = fit(make_model(), data, out=stopped, seed=9, warmup_epochs=1, **OPTIONS)
    assert history == fit(make_model(), data, seed=9, warmup_epochs=1, **OPTIONS)


def test_other_data_of_the_same_shape(make_model, data, stopped):
    other = {**data, "vector": data["vector"] + 1}
    for epochs in (3, EPOCHS):
        with pytest.raises(ValueError, match=r"other settings: data.vector was 'float32 \[40, 6\] .*', now 'float32 "):
            fit(make_model(), other, out=stopped, **{**OPTIONS, "epochs": epochs})
    masked = {**data, "mask": {"text": torch.arange(40) > 3}}
    with pytest.raises(ValueError, match=r"data.mask.text was None, now 'bool \[40\]"):
        fit(make_model(), masked, out=stopped, **OPTIONS)
    with pytest.raises(ValueError, match=r"data.text was 'int64 \[40, 2\] .*', now None"):
        fit(make_model(), {"vector": data["vector"]}, out=stopped, **OPTIONS)
    copies = {name: x.t().contiguous().t() for name, x in reversed(data.items())}  # the same data, laid out otherwise
    assert len(fit(make_model(), copies, out=stopped, **OPTIONS)) == EPOCHS


def test_a_finished_run_says_so(make_model, data, stopped, capfd):
    options = {**OPTIONS, "epochs": 3}
    fit(make_model(), data, out=stopped, **{**options, "progress": True})
    assert capfd.readouterr().err == f"{stopped} already holds 3 of 3 epochs; nothing trained\n"
    fit(make_model(), data, out=stopped, **options)
    assert capfd.readouterr().err == ""


def test_sigterm_says_what_is_kept(make_model, data, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)

    class Terminate(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if module.progress.epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="training stopped in epoch 2: .*last holds the epoch before"):
        fit(make_model(), data, out=tmp_path, callbacks=[Terminate()], **OPTIONS)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(fit(make_model(), data, out=tmp_path, **OPTIONS)) == EPOCHS


def test_a_modality_without_a_kind_is_refused_before_training(data, tmp_path):
    class Nameless(Vector):
        pass

    model = MoPoE({"vector": Nameless(6)}, 2)
    with pytest.raises(TypeError, match="Nameless has no kind of its own"):
        fit(model, {"vector": data["vector"]}, out=tmp_path, callbacks=[Stop(0, AssertionError("trained"))], **OPTIONS)


def test_insisting_on_a_checkpoint(make_model, run, tmp_path):
    with pytest.raises(ValueError, match="resume is True, but there is no checkpoint in"):
        run(make_model(), tmp_path, resume=True)


def test_a_write_that_is_killed_continues_exactly(make_model, run, tmp_path, monkeypatch):
    """Between best/ and last/, and between the two renames of a replacement."""
    whole = make_model()
    history = run(whole, tmp_path / "whole")
    out, real = tmp_path / "out", checkpoints.replace_folder

    def killed_before_last(temp, target):
        if target.name == "last" and json.loads((temp / "training/state.json").read_text())["epoch"] == 3:
            raise OSError("killed")
        real(temp, target)

    monkeypatch.setattr(checkpoints, "replace_folder", killed_before_last)
    with pytest.raises(OSError, match="killed"):
        run(make_model(), out)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "cwd")
    os.rename(out / "last", out / ".last.old")
    model = make_model()
    assert run(model, out) == history
    assert_same(state(model), state(whole))
    assert folders_equal(out, tmp_path / "whole")


@pytest.fixture
def stopped(make_model, data, tmp_path):
    """A run of which epochs 1 to 3 are done, the best one being the third."""
    out = tmp_path / "out"
    fit(make_model(), data, out=out, **{**OPTIONS, "epochs": 3}, warmup_epochs=3)
    return out


DAMAGE = {
    "weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:100]),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "config": lambda f: (f / "config.json").write_text("{"),
    "no state": lambda f: (f / "training/state.json").unlink(),
    "state": lambda f: (f / "training/state.json").write_text('{"format": "mmvae_fast.training"}'),
    "foreign state": lambda f: (f / "training/state.json").write_text("{}"),
    "no optimizer": lambda f: (f / "training/optimizer.safetensors").unlink(),
    "optimizer": lambda f: (f / "training/optimizer.safetensors").write_bytes(b""),
    "everything": lambda f: [shutil.rmtree(f), f.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint(make_model, data, stopped, damage):
    damage(stopped / "last")
    model, whole = make_model(), make_model()
    with pytest.warns(RuntimeWarning, match=r"continuing from .*best, epoch 3, instead"):
        history = fit(model, data, out=stopped, **OPTIONS)
    assert history == fit(whole, data, warmup_epochs=3, **OPTIONS)
    assert_same(state(model), state(whole))


def test_two_damaged_checkpoints(make_model, data, stopped):
    for folder in ("last", "best"):
        DAMAGE["weights"](stopped / folder)
    with pytest.raises(
        ValueError, match=r"last.model.safetensors: damaged.*best.model.safetensors: damaged.*resume=False"
    ):
        fit(make_model(), data, out=stopped, **OPTIONS)
    assert len(fit(make_model(), data, out=stopped, resume=False, **OPTIONS)) == EPOCHS


def test_a_checkpoint_of_another_model(make_model, data, stopped):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    others = {
        "model is 'MoPoE', expected 'MVAE'": make_model(MVAE),
        r"options.beta is 1.0, expected 2.0": make_model(beta=2.0),
        "modalities.text is only in the checkpoint": MoPoE({"vector": Vector(6, hidden=(16,))}, 3),
        r"modalities.vector.shape is \[6\], expected \[5\]": MoPoE({"vector": Vector(5), "x": Vector(1)}, 3),
    }
    for message, model in others.items():
        ours = {n: x for n, x in data.items() if n in model.modalities and model.modalities[n].shape == x.shape[1:]}
        untouched = state(model)
        with pytest.raises(ValueError, match=f"last is a checkpoint of another model: .*{message}"):
            fit(model, ours or {"x": torch.zeros(4, 1)}, out=stopped, **OPTIONS)
        assert_same(state(model), untouched)
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before


def test_the_order_of_modalities_is_part_of_a_model(make_model, data, stopped):
    swapped = make_model()
    other = MoPoE(dict(reversed(swapped.modalities.items())), 3)
    with pytest.raises(
        ValueError, match=r"modalities is in the order \['vector', 'text'\], expected \['text', 'vector'\]"
    ):
        fit(other, data, out=stopped, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"lr": 0.1}, "lr was 0.01, now 0.1"),
        ({"batch_size": 8}, "batch_size was 16, now 8"),
        ({"warmup_epochs": 2}, "warmup_epochs was 3, now 2"),
        ({"gradient_clip": 1.0}, "gradient_clip was None, now 1.0"),
        ({"rows": 30}, r"rows was 40, now 30; data.vector was 'float32 \[40, 6\] \w{8}', now .*"),
        ({"validation": True}, "validation_rows was 0, now 40; validation.vector was None, now .*"),
    ],
)
def test_a_run_with_other_settings(make_model, data, stopped, change, message):
    rows = change.pop("rows", 40)
    change |= {"validation": data} if change.get("validation") else {}
    with pytest.raises(ValueError, match=f"holds a run with other settings: {message}. Use those, another folder, or"):
        fit(make_model(), {n: x[:rows] for n, x in data.items()}, out=stopped, **{**OPTIONS, **change})


def test_a_plain_model_folder_is_no_training_checkpoint(make_model, data, tmp_path):
    make_model().save(tmp_path / "last")
    with pytest.raises(ValueError, match=r"state.json: no such file.*resume=False"):
        fit(make_model(), data, out=tmp_path, **OPTIONS)


def test_best_and_last_are_loadable_models(stopped):
    for name in ("best", "last"):
        assert isinstance(MultimodalVAE.load(stopped / name), MoPoE)


# --- the file helpers underneath --------------------------------------------------------------------------------------


def test_write_atomic(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomic(path, "ä")
    assert path.read_bytes() == "ä".encode()
    write_atomic(path, b"b")
    assert path.read_bytes() == b"b"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_replace_folder_puts_the_old_one_back_if_it_fails(tmp_path, monkeypatch):
    target = tmp_path / "target"
    with temporary_sibling(target) as temp:
        (temp / "old").touch()
        replace_folder(temp, target)
    assert [p.name for p in target.iterdir()] == ["old"]
    real = os.rename

    def fail_second(a, b):
        if ".tmp" in str(a):
            raise OSError("no")
        real(a, b)

    monkeypatch.setattr(os, "rename", fail_second)
    with temporary_sibling(target) as temp:
        (temp / "new").touch()
        with pytest.raises(OSError, match="no"):
            replace_folder(temp, target)
    monkeypatch.undo()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir() if p.name != "cwd"] == ["target"]


def test_recover_folder(tmp_path):
    (tmp_path / ".t.old").mkdir()
    recover_folder(tmp_path / "t")
    assert (tmp_path / "t").exists()
    (tmp_path / ".t.old").mkdir()
    recover_folder(tmp_path / "t")
    assert not (tmp_path / ".t.old").exists()
    recover_folder(tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_check_replaceable(tmp_path):
    def is_ours(folder):
        return (folder / "mark").exists()

    check_replaceable(tmp_path / "absent", is_ours, "a thing of ours")
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", is_ours, "a thing of ours")
    full = tmp_path / "full"
    full.mkdir()
    for name in "edcba":
        (full / name).touch()
    with pytest.raises(FileExistsError, match=r"full is not a thing of ours .*it holds a, b, c and 2 more; choose"):
        check_replaceable(full, is_ours, "a thing of ours")
    (full / "mark").touch()
    check_replaceable(full, is_ours, "a thing of ours")
    with pytest.raises(FileExistsError, match="a is a file, expected a thing of ours or nothing"):
        check_replaceable(full / "a", is_ours, "a thing of ours")


def test_what_killed_processes_left_is_swept(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    left = [f".t.{process.pid}-0.tmp", f".t.{os.getpid()}-999999.tmp"]  # the second: a container gives pids again
    stay = [f".t.{os.getppid()}-0.tmp", f".other.{process.pid}-0.tmp", ".t.tmp", "t.x.tmp", ".t.notes.tmp"]

    def leave():
        for i, name in enumerate([*left, *stay]):
            (tmp_path / name).mkdir(exist_ok=True) if i % 2 else (tmp_path / name).touch()

    def write():
        with temporary_sibling(tmp_path / "t") as mine, temporary_sibling(tmp_path / "t") as other:
            assert mine.exists()  # a second one does not sweep the first
            assert other.exists()

    for action in (write, lambda: recover_folder(tmp_path / "t"), lambda: write_atomic(tmp_path / "t", b"")):
        leave()
        action()
        assert {p.name for p in tmp_path.iterdir()} - {"cwd", "t"} == set(stay)


def test_a_finished_folder_has_the_usual_permissions(tmp_path):
    with temporary_sibling(tmp_path / "t") as temp:
        replace_folder(temp, tmp_path / "t")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "t").stat().st_mode == (tmp_path / "usual").stat().st_mode
