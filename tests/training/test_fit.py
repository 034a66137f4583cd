"""Training: it learns, it is reproducible, it leaves nothing behind, and it refuses what cannot be."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import mmvae_fast
from mmvae_fast.models import MoPoE, MultimodalVAE
from mmvae_fast.training import fit
from mmvae_fast.training.data import Collate
from mmvae_fast.training.warmup import warmup


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_it_learns(any_model, data, quiet):
    before = any_model(data, seed=0).loss
    history = fit(any_model, data, epochs=30, lr=1e-2, warmup_epochs=5, validation=data, **quiet)
    after = any_model(data, seed=0).loss
    assert after < before - 1
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert [r["epoch"] for r in history] == list(range(1, 31))
    names = {"loss", "elbo", "kl", "ll_vector", "ll_text"}
    assert all(set(r) == {"epoch"} | names | {f"val_{n}" for n in names} for r in history)
    assert all(type(v) is float and math.isfinite(v) for r in history for k, v in r.items() if k != "epoch")


def test_the_record_is_the_mean_over_rows(make_model, data, quiet):
    """A learning rate too small to matter: the epoch's means are those of the whole data; the last batch is smaller."""
    model = make_model()
    kl = model(data).kl
    (record,) = fit(model, data, epochs=1, lr=1e-30, warmup_epochs=0, validation=data, **quiet)
    assert record["val_kl"] == pytest.approx(float(kl), rel=1e-5)
    assert record["kl"] == pytest.approx(float(kl), rel=1e-5)
    assert record["elbo"] == pytest.approx(record["ll_vector"] + record["ll_text"] - record["kl"], rel=1e-5)


def test_validation_does_not_depend_on_its_batches(make_model, data, quiet):
    """But for rounding; nor on whether they come from a data set."""
    each = [{name: x[i] for name, x in data.items()} for i in range(len(data["vector"]))]

    def validated(batch_size, validation):
        options = {**quiet, "epochs": 1, "lr": 1e-30, "warmup_epochs": 0, "batch_size": batch_size}
        (record,) = fit(make_model(), data, validation=validation, **options)
        return {name: value for name, value in record.items() if name.startswith("val_")}

    whole = validated(40, data)
    for batch_size, form in ((7, data), (16, each), (1, data)):
        assert validated(batch_size, form) == pytest.approx(whole, rel=1e-5)


def test_same_seed_same_weights(make_model, data, quiet):
    runs = []
    for seed in (7, 7, 8):
        model = make_model()
        torch.manual_seed(random.randrange(1000))  # what happened before must not matter
        runs.append((fit(model, data, epochs=2, seed=seed, **quiet), weights(model)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


def test_global_state_is_left_alone(make_model, data, quiet):
    model = make_model().eval()
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    tiny = torch.tensor(1e-30) * torch.tensor(1e-10)
    during = []

    class Look(Callback):
        def on_train_batch_end(self, *_):
            during.append(float(torch.tensor(1e-30) * torch.tensor(1e-10)))

    fit(model, data, epochs=1, callbacks=[Look()], **quiet)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
    assert set(during) == {0.0}  # denormals are flushed while training
    assert torch.tensor(1e-30) * torch.tensor(1e-10) == tiny > 0
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_the_data_are_not_modified(make_model, data, quiet):
    data["mask"] = {"text": torch.arange(40) % 2 == 0}
    before = {"vector": data["vector"].clone(), "text": data["text"].clone()}
    fit(make_model(), data, epochs=1, validation=data, **quiet)
    assert list(data) == ["vector", "text", "mask"]
    assert list(data["mask"]) == ["text"]
    assert_same({n: data[n] for n in before}, before)


def test_masks_in_all_forms(make_model, data, quiet):
    """NaN where data are missing; a dict and a [N, M] mask, tensors and a Dataset give the same run."""
    observed = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) > 0.4
    data["vector"][~observed[:, 0]] = float("nan")
    rows = [
        {
            "vector": data["vector"][i],
            "text": data["text"][i],
            "mask": {"vector": observed[i, 0], "text": bool(observed[i, 1])},
        }
        for i in range(40)
    ]
    forms = [
        {**data, "mask": observed},
        {**data, "mask": {"vector": observed[:, 0], "text": observed[:, 1]}},
        rows,
    ]
    results = []
    for form in forms:
        model = make_model()
        results.append((fit(model, form, epochs=2, validation=form, **quiet), weights(model)))
        assert all(torch.isfinite(t).all() for t in results[-1][1].values())
    for history, state in results[1:]:
        assert history == results[0][0]
        assert_same(state, results[0][1])


def test_rows_of_a_data_set_may_lack_keys(make_model, data, quiet):
    """The same run as with tensors and a mask, whatever is missing where; and a row's own mask counts too."""
    observed = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) > 0.4
    observed[:16] = torch.tensor([True, False])  # without validation's shuffling, a batch in which nobody has text
    said = torch.arange(40) % 3 > 0  # text that is there, but not to be used
    rows = []
    for i in range(40):
        row = {"vector": data["vector"][i].numpy(), "text": data["text"][i].tolist()}
        row = {name: x if observed[i, m] else None for m, (name, x) in enumerate(row.items())}
        if i % 2:
            row = {name: x for name, x in row.items() if x is not None}
        row["mask"] = {"text": bool(said[i])} if i % 4 else torch.tensor([True, said[i]])
        rows.append(row)
    mask = observed & torch.stack([torch.ones_like(said), said], dim=1)
    runs = []
    for form in ({**data, "mask": mask}, rows):
        model = make_model()
        runs.append((fit(model, form, epochs=2, validation=form, **quiet), weights(model)))
    assert runs[1][0] == runs[0][0]
    assert_same(runs[1][1], runs[0][1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"smell": torch.zeros(3)}, "row 1 of a batch of the data names the modality 'smell', expected some of"),
        ({"mask": {"smell": True}}, "row 1 of a batch of the data's mask names the modality 'smell'"),
        (
            {"mask": torch.ones(3).bool()},
            r"row 1 .* has a mask of torch.bool \[3\], expected a bool for every modality",
        ),
        ({"mask": {"text": 0.5}}, r"row 1 .* has a mask of torch.float32 \[2\]"),
        ({"mask": {"text": torch.ones(2).bool()}}, r"row 1 .* has a mask of torch.bool \[0\]"),
        (
            {"vector": torch.zeros(5)},
            r"row 1 .*: modality 'vector' is torch.float32 \[5\], expected torch.float32 \[6\]",
        ),
        ({"vector": np.zeros(6)}, r"row 1 .*: modality 'vector' is torch.float64 \[6\], expected torch.float32"),
    ],
)
def test_bad_rows_of_a_data_set(make_model, data, row, message):
    good = {"vector": data["vector"][0], "text": data["text"][0]}
    with pytest.raises(ValueError, match=message):
        Collate(make_model())([good, {**good, **row}])


def test_modules_keep_their_modes(make_model, data, quiet):
    """A part that is frozen in eval() stays so while the rest trains, through validation too."""
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            model = module.model
            seen.append((model.training, model.encoders["vector"].training, model.decoders["vector"].training))

    model = make_model().train()
    model.encoders["vector"].eval()
    fit(model, data, epochs=2, validation=data, callbacks=[Look()], **quiet)
    assert set(seen) == {(True, False, True)}
    assert model.training
    assert model.decoders["text"].training
    assert not any(part.training for part in model.encoders["vector"].modules())
    seen.clear()
    model.eval().decoders["vector"].train()
    fit(model, data, epochs=1, callbacks=[Look()], **quiet)
    assert set(seen) == {(True, True, True)}  # a model in eval() is trained as a whole
    assert [part.training for part in (model, model.encoders, model.decoders["vector"])] == [False, False, True]


def test_a_modality_that_is_never_there_is_not_trained(make_model, data, quiet):
    model = make_model()
    before = weights(model)
    history = fit(model, {"vector": data["vector"]}, epochs=1, warmup_epochs=0, **quiet)
    assert "ll_text" not in history[0]
    for name, tensor in weights(model).items():
        assert torch.equal(tensor, before[name]) == (".text." in name), name


def test_kl_warm_up_is_linear_per_step(make_model, data, quiet):
    model = make_model(beta=2.0)
    betas = []
    forward = model.forward
    model.forward = lambda *a, beta=None, **k: betas.append(beta) or forward(*a, beta=beta, **k)
    fit(model, data, epochs=3, warmup_epochs=2, **quiet)  # 3 steps an epoch
    assert betas == pytest.approx([0, 2 / 6, 4 / 6, 1, 8 / 6, 10 / 6, 2, 2, 2])


def test_warm_up():
    assert [warmup(s, 4) for s in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert warmup(0, 0) == 1


def test_warm_up_defaults_to_a_third(make_model, data, quiet):
    assert fit(make_model(), data, epochs=3, **quiet) == fit(make_model(), data, epochs=3, warmup_epochs=1, **quiet)


def test_checkpoints_are_models_without_pickle(make_model, data, quiet, tmp_path):
    model, out = make_model(), tmp_path / "out"
    history = fit(model, data, epochs=6, lr=1e-2, out=out, validation=data, **quiet)
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    inside = ["config.json", "model.safetensors", "training/optimizer.safetensors", "training/state.json"]
    assert found == sorted(["history.json", *(f"{f}/{i}" for f in ("best", "last") for i in inside)])
    assert all(not p.read_bytes().startswith((b"\x80", b"PK")) for p in out.rglob("*") if p.is_file())
    assert_same(dict(MultimodalVAE.load(out / "last").state_dict()), weights(model))
    assert json.loads((out / "history.json").read_text()) == history
    state = json.loads((out / "best/training/state.json").read_text())
    best = min(history, key=lambda r: r["val_loss"])
    assert state["epoch"] == state["best_epoch"] == best["epoch"]
    assert state["best_loss"] == best["val_loss"]
    assert len(state["history"]) == best["epoch"]


def test_best_keeps_an_earlier_epoch(make_model, data, quiet, tmp_path):
    """Ruin the model after epoch 2: best stays there."""

    class Ruin(Callback):
        def on_train_epoch_start(self, trainer, module):
            if module.progress.epoch == 2:
                for p in module.model.decoders.parameters():
                    p.data.mul_(30)

    model = make_model()
    history = fit(model, data, epochs=3, warmup_epochs=0, out=tmp_path, callbacks=[Ruin()], **quiet)
    assert history[2]["loss"] > history[1]["loss"] > 0
    again = MoPoE.load(tmp_path / "best")
    assert again(data, seed=0).loss < MoPoE.load(tmp_path / "last")(data, seed=0).loss


def test_a_loss_that_is_not_finite_stops_the_run(make_model, data, quiet, tmp_path):
    class Poison(Callback):
        def on_train_epoch_start(self, trainer, module):
            if module.progress.epoch == 1:
                next(module.model.decoders.parameters()).data.fill_(math.nan)

    with pytest.raises(FloatingPointError, match="epoch 2: loss is nan"):
        fit(make_model(), data, epochs=3, out=tmp_path, callbacks=[Poison()], **quiet)
    assert all(torch.isfinite(t).all() for t in MoPoE.load(tmp_path / "last").state_dict().values())


def test_gradients_are_clipped(make_model, data, quiet):
    norms = []

    class Norm(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))

    fit(make_model(), data, epochs=1, gradient_clip=0.01, callbacks=[Norm()], **quiet)
    fit(make_model(), data, epochs=1, callbacks=[Norm()], **quiet)
    clipped, free = norms[:3], norms[3:]
    assert all(n <= 0.0101 for n in clipped)
    assert all(n > 0.02 for n in free)


def test_silence(make_model, data, quiet, capfd, recwarn):
    fit(make_model(), data, epochs=1, validation=data, **quiet)
    out, err = capfd.readouterr()
    assert out == err == ""
    assert len(recwarn) == 0


def test_progress_in_a_log_is_a_line_an_epoch(make_model, data, quiet, capfd):
    fit(make_model(), data, epochs=2, validation=data, **{**quiet, "progress": True})
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  elbo -")
    for name in ("kl", "ll_vector", "ll_text", "val_elbo"):
        assert f" {name} " in lines[1]


def test_progress_on_a_terminal_is_a_bar(make_model, data, quiet, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(make_model(), data, epochs=2, **{**quiet, "progress": True})
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
    for name in ("elbo=", "kl=", "ll_vector=", "ll_text="):
        assert name in err


class Rows(torch.utils.data.Dataset):
    """Augments from all three generators, as users' data sets do."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 40

    def __getitem__(self, i):
        noise = 0.01 * (torch.randn(6) + random.gauss(0, 1) + float(np.random.randn()))  # noqa: NPY002
        return {"vector": self.data["vector"][i] + noise, "text": self.data["text"][i]}


def test_data_sets_with_random_augmentation_are_reproducible(make_model, data, quiet):
    a = fit(make_model(), Rows(data), epochs=2, **quiet)
    assert fit(make_model(), Rows(data), epochs=2, **quiet) == a


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs is 0, expected a positive integer"),
        ({"epochs": 1.5}, ValueError, "epochs is 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"lr": 0.0}, ValueError, "lr is 0.0, expected a positive number"),
        ({"lr": math.nan}, ValueError, "lr is nan"),
        ({"lr": "fast"}, ValueError, "lr is 'fast'"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs is -1"),
        ({"gradient_clip": 0}, ValueError, "gradient_clip is 0, expected a positive number or None"),
        ({"seed": "x"}, TypeError, "seed is 'x'"),
        ({"resume": "yes"}, ValueError, "resume is 'yes', expected True, False or 'auto'"),
        ({"data": {}}, ValueError, "data: batch is empty"),
        ({"data": 3}, TypeError, "data is a int, expected a dict"),
        ({"data": []}, ValueError, "data has no rows"),
        ({"data": iter([])}, TypeError, "data is a list_iterator"),
        ({"data": {"vector": torch.zeros(0, 6)}}, ValueError, "data has no rows"),
        ({"data": {"vector": torch.zeros(3, 5)}}, ValueError, r"data: modality 'vector': got shape \[3, 5\]"),
        ({"data": {"vector": torch.full((3, 6), math.nan)}}, ValueError, "data: modality 'vector': holds NaN"),
        ({"data": {"text": torch.full((3, 2), 9)}}, ValueError, "data: modality 'text': token ids from 9 to 9"),
        ({"data": {"smell": torch.zeros(3)}}, ValueError, "data: batch names the modality 'smell'"),
        (
            {"data": {"text": torch.zeros(3, 2).long(), "mask": torch.ones(3, 1).bool()}},
            ValueError,
            "data: mask has shape",
        ),
        ({"data": [torch.zeros(6)] * 3}, TypeError, "row 0 of a batch of the data is a Tensor, expected a dict"),
        ({"validation": {"vector": torch.zeros(3, 5)}}, ValueError, "validation: modality 'vector'"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "model is a Linear, expected a MultimodalVAE"),
    ],
)
def test_bad_arguments(make_model, data, quiet, change, error, message, tmp_path):
    arguments = {"model": make_model(), "data": data, "epochs": 1, "out": tmp_path / "out", **quiet, **change}
    with pytest.raises(error, match=message):
        fit(arguments.pop("model"), arguments.pop("data"), **arguments)
    assert not (tmp_path / "out").exists()


def test_importing_the_package_does_not_import_lightning():
    code = (
        "import sys, mmvae_fast.models, mmvae_fast.modalities, mmvae_fast.training; "
        "sys.exit(any(m.split('.')[0] in ('lightning', 'safetensors', 'rich', 'torchmetrics') for m in sys.modules))"
    )
    root = Path(mmvae_fast.__file__).parents[1]
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, check=False).returncode == 0
