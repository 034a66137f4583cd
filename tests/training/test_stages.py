"""Models that are trained in two stages, in one fit."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mmvae_fast.models import JNF, TELBO, MultimodalVAE
from mmvae_fast.training import fit

OPTIONS = {"epochs": 4, "batch_size": 16, "lr": 1e-2, "progress": False, "accelerator": "cpu"}
MODELS = {TELBO: {"joint_hidden": (8,)}, JNF: {"joint_hidden": (8,), "flow_hidden": (8,)}}


class Stop(Callback):
    """In the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (module.progress.epoch, batch_idx) == (self.epoch, 1):
            raise KeyboardInterrupt


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(params=MODELS)
def make(request, make_model):
    return lambda **options: make_model(request.param, **MODELS[request.param], **options)


def first_trained(model):
    return {n: p for n, p in state(model).items() if n.startswith(("joint.", "decoders."))}


def test_both_stages_learn(make, data):
    model = make()
    history = fit(model, data, validation=data, warmup_epochs=2, **{**OPTIONS, "epochs": 40})
    assert [record["stage"] for record in history] == [1] * 20 + [2] * 20
    for stage in (history[:20], history[20:]):
        assert stage[-1]["val_loss"] < stage[2]["val_loss"] - 0.3
    assert model.stage == 2
    complete, single = model.encode(data), model.encode({"vector": data["vector"]})
    before = make().encode({"vector": data["vector"]})
    assert (single.point - complete.mu).square().mean() < (before.point - complete.mu).square().mean()


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("stops", [[0], [1], [2], [3], [1, 2, 4]])
def test_continued_is_uninterrupted(make, data, tmp_path, stops, validated):
    options = {**OPTIONS, "epochs": 5, "first_stage_epochs": 2, "validation": data if validated else None}
    whole = make()
    history = fit(whole, data, out=tmp_path / "whole", **options)
    out = tmp_path / "out"
    for epoch in stops:
        with pytest.raises(KeyboardInterrupt, match=f"training stopped in epoch {epoch + 1}"):
            fit(make(), data, out=out, **options, callbacks=[Stop(epoch)])
    model = make()
    assert fit(model, data, out=out, **options) == history
    assert_same(state(model), state(whole))
    assert contents(out) == contents(tmp_path / "whole")
    assert model.stage == 2


def test_the_second_stage_has_a_new_optimizer_and_a_best_of_its_own(make, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    fit(make(), data, out=one, **{**OPTIONS, "epochs": 2}, first_stage_epochs=2)
    first = MultimodalVAE.load(one / "last")
    assert first.stage == 1
    fit(make(), data, out=two, **OPTIONS)
    last = MultimodalVAE.load(two / "last")
    assert last.stage == MultimodalVAE.load(two / "best").stage == 2
    assert json.loads((two / "last/training/state.json").read_text())["best_epoch"] > 2
    assert json.loads((two / "last/training/state.json").read_text())["settings"]["first_stage_epochs"] == 2
    assert_same(first_trained(last), first_trained(first))
    from safetensors.torch import load_file

    trained = {name.partition("/")[2] for name in load_file(two / "last/training/optimizer.safetensors")}
    assert all(name.startswith(("encoders.", "flows.")) for name in trained)
    assert trained >= {n for n, _ in last.named_parameters() if n.startswith("encoders.")}


def test_more_epochs_go_to_the_second_stage(make, data, tmp_path):
    fit(make(), data, out=tmp_path, **{**OPTIONS, "epochs": 2}, warmup_epochs=0)
    model, whole = make(), make()
    history = fit(model, data, out=tmp_path, **OPTIONS, warmup_epochs=0)
    assert [record["stage"] for record in history] == [1, 2, 2, 2]
    assert history == fit(whole, data, **OPTIONS, warmup_epochs=0, first_stage_epochs=1)
    assert_same(state(model), state(whole))
    with pytest.raises(ValueError, match="first_stage_epochs was 1, now 2"):
        fit(make(), data, out=tmp_path, **OPTIONS, warmup_epochs=0, first_stage_epochs=2)


def test_a_trained_model_starts_again_with_the_first_stage(make, data):
    model = make()
    fit(model, data, **OPTIONS)
    before = first_trained(model)
    fit(model, data, **{**OPTIONS, "epochs": 1}, first_stage_epochs=0)
    assert_same(first_trained(model), before)  # the second stage alone
    fit(model, data, **{**OPTIONS, "epochs": 1}, first_stage_epochs=1)
    assert model.stage == 1
    assert all(p.requires_grad for p in model.parameters())
    assert not torch.equal(
        first_trained(model)["joint.pool.inputs.text.weight"], before["joint.pool.inputs.text.weight"]
    )


def test_frozen_networks_do_not_move(make, data):
    """Not by running statistics either, and the modes of a caller's model come back."""
    model = make()
    model.decoders["vector"] = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 6)
    )
    modes = {name: m.training for name, m in model.named_modules()}
    fit(model, data, **{**OPTIONS, "epochs": 1}, first_stage_epochs=1)
    before = first_trained(model)
    fit(model, data, **{**OPTIONS, "epochs": 2}, first_stage_epochs=0, validation=data)
    assert_same(first_trained(model), before)
    assert {name: m.training for name, m in model.named_modules()} == modes


def test_warm_up_is_a_third_of_the_first_stage(make, data, tmp_path):
    fit(make(), data, out=tmp_path, **{**OPTIONS, "epochs": 12}, first_stage_epochs=9)
    assert json.loads((tmp_path / "last/training/state.json").read_text())["settings"]["warmup_epochs"] == 3


@pytest.mark.parametrize("value", [-1, 5, 1.0, True])
def test_first_stages_that_cannot_be(make, data, value):
    with pytest.raises(ValueError, match=f"first_stage_epochs is {value}, expected 0 to 4"):
        fit(make(), data, **OPTIONS, first_stage_epochs=value)


def test_one_stage_has_no_first(make_model, data, tmp_path):
    with pytest.raises(ValueError, match="first_stage_epochs is 1, but a MoPoE has one stage"):
        fit(make_model(), data, **OPTIONS, first_stage_epochs=1)
    history = fit(make_model(), data, out=tmp_path, **OPTIONS)
    assert "stage" not in history[0]
    assert "first_stage_epochs" not in json.loads((tmp_path / "last/training/state.json").read_text())["settings"]
