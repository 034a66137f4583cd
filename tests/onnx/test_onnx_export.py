"""Exporting: what is in the files, that the model is left alone, and that a failure leaves nothing behind."""

from __future__ import annotations

import copy
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from mmvae_fast import _ext, functional
from mmvae_fast.modalities import Vector
from mmvae_fast.models import MVAE
from mmvae_fast.onnx import (
    ExportError,
    ExportVerificationError,
    Runtime,
    decompositions,
    export,
    export_onnx,
    graphs,
    manifest,
    parts,
    translation_table,
    verify,
)


def tiny(**options) -> MVAE:
    torch.manual_seed(0)
    return MVAE({"v": Vector(3, hidden=(100,), **options)}, 2)


@pytest.fixture
def instant(monkeypatch, mopoe):
    """Exports that copy the finished bundle: for tests of where files go, not of what is in them."""

    def write(model, folder, *_):
        for file in mopoe.folder.iterdir():
            shutil.copy(file, folder)
        return mopoe.result.manifest

    monkeypatch.setattr(export, "_write_bundle", write)


@pytest.fixture(scope="session")
def traced(tmp_path_factory) -> Path:
    """The bundle of ``tiny()``, exported once."""
    return export_onnx(tiny(), tmp_path_factory.mktemp("bundles") / "tiny").folder


@pytest.fixture
def quick(monkeypatch, traced):
    """Tracing, which takes a second a part, is done for ``tiny()`` already; everything after it runs as always."""
    trace = graphs.program

    def program(name, part, opset):
        if name == "encoder_v" and type(part.module).__module__ == __name__:
            return trace(name, part, opset)  # a network of a test's own
        return onnx_ir.load(traced / f"{name}.onnx")

    monkeypatch.setattr(graphs, "program", program)


# --- what is in the files ---------------------------------------------------------------------------------------------


def test_result(mopoe):
    names = {f.name for f in mopoe.folder.iterdir()}
    parts = {"fusion.onnx"} | {
        f"{kind}_{m}.onnx" for kind in ("encoder", "decoder") for m in ("image", "text", "audio")
    }
    assert names == parts | {"manifest.json"}
    assert {f.name for f in mopoe.result.files} == names
    assert mopoe.result.report.passed
    assert mopoe.result.report.worst <= 1e-4
    assert "worst absolute difference" in str(mopoe.result)


@pytest.mark.parametrize("fixture", ["mopoe", "mvae"])
def test_files_are_clean(fixture, request):
    bundle = request.getfixturevalue(fixture)
    here = [str(Path.cwd()), str(Path(__file__).parents[2]), os.path.dirname(torch.__file__), os.path.expanduser("~")]
    secrets = [s.encode() for s in here if len(s) > 1] + [b"site-packages", b"Traceback", b'.py"', b"stack_trace"]
    for file in bundle.folder.glob("*.onnx"):
        data = file.read_bytes()
        assert not [s for s in secrets if s in data], file.name
        model = onnx.load(file)
        assert model.ir_version == 10
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        assert model.producer_name == "mmvae_fast"
        assert not model.functions
        assert not {v.name for v in model.graph.value_info} & {i.name for i in model.graph.initializer}
        assert not any("Random" in n.op_type or n.op_type in ("Dropout", "If", "Loop") for n in model.graph.node)
        assert not any(n.metadata_props or n.doc_string for n in model.graph.node)


def test_reductions_have_positive_axes(mvae):
    """The custom encoder takes a mean over (-2, -1), the fusion sums over -1."""
    reductions = 0
    for file in ("encoder_photo.onnx", "fusion.onnx"):
        graph = onnx.load(mvae.folder / file).graph
        constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        for node in graph.node:
            if node.op_type.startswith("Reduce"):
                reductions += 1
                assert (constants[node.input[1]] >= 0).all(), f"{file}: {node.op_type}"
    assert reductions >= 4


def test_empty_batch_inside_the_graphs(mvae):
    """What positive axes are for: users of other runtimes have no wrapper that catches it."""
    runtime = mvae.runtime
    mu, logvar = runtime._run("encoder_photo", np.zeros((0, 3, 8, 8), np.float32))
    assert mu.shape == logvar.shape == (0, 6)
    experts = np.zeros((0, 2, 6), np.float32)
    z, joint_mu, _, kl, _ = runtime._run(
        "fusion", experts, experts, np.zeros((0, 2), bool), np.zeros((2, 0, 6), np.float32)
    )
    assert (z.shape, joint_mu.shape, kl.shape) == ((2, 0, 6), (0, 6), (0,))


def test_the_model_is_left_alone(mvae):
    """Exported in training mode, it is still there, and its state is what it was."""
    assert mvae.still_training
    for (name, a), (_, b) in zip(mvae.untouched.state_dict().items(), mvae.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_huge_weights_go_beside_the_file(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(graphs, "MAX_INLINE_BYTES", 1000)
    result = export_onnx(tiny(), tmp_path / "b")
    assert (result.folder / "encoder_v.onnx.data").stat().st_size > 100 * 3 * 4
    assert "encoder_v.onnx.data" in result.manifest.files
    runtime, x = Runtime.load(result.folder), np.zeros((1, 3), np.float32)
    Runtime.load(result.folder).encode({"v": x})  # nothing changed
    (result.folder / "encoder_v.onnx.data").write_bytes(bytes((result.folder / "encoder_v.onnx.data").stat().st_size))
    with pytest.raises(ValueError, match=r"encoder_v\.onnx: changed since it was loaded"):
        runtime.encode({"v": x})
    with pytest.raises(ValueError, match=r"encoder_v\.onnx\.data: SHA-256"):
        Runtime.load(result.folder)


@pytest.mark.parametrize(("opset", "dtype"), [(18, torch.bfloat16), (23, torch.float64)])
def test_other_opsets_and_models_in_other_precisions(tmp_path, opset, dtype):
    model = tiny().to(dtype)
    result = export_onnx(model, tmp_path / "b", opset=opset)
    assert result.report.passed
    assert onnx.load(result.folder / "fusion.onnx").opset_import[0].version == opset
    assert next(model.parameters()).dtype == dtype
    assert Runtime.load(result.folder).sample(2, seed=0)["v"].dtype == np.float32


# --- what cannot be exported ------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def forward(self, x):
        return x[:, :2] + torch.randn_like(x[:, :2]), x[:, 1:]


class Branching(nn.Module):
    def forward(self, x):
        return (x[:, :2], x[:, 1:]) if x.sum() > 0 else (x[:, 1:], x[:, :2])


class OneOutput(nn.Module):
    def forward(self, x):
        return x[:, :2]


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Noisy(), "encoder_v: uses RandomNormalLike, which ignores torch's seeds"),
        (Branching(), "encoder_v: cannot be exported to ONNX"),
        (OneOutput(), "encoder_v: "),
    ],
)
def test_networks_that_cannot_be_exported(tmp_path, quick, encoder, message):
    with pytest.raises(ExportError, match=message):
        export_onnx(tiny(encoder=encoder), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path):
    with pytest.raises(TypeError, match=r"model is a Linear, expected a model of mmvae_fast\.models"):
        export_onnx(nn.Linear(2, 2), tmp_path / "b")
    with pytest.raises(ValueError, match="opset is 17, expected 18 to 23"):
        export_onnx(tiny(), tmp_path / "b", opset=17)


# --- whole or not at all ----------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.mark.parametrize("error", [KeyboardInterrupt("ctrl-c"), OSError("no space left")])
def test_interrupted_export_leaves_nothing(tmp_path, monkeypatch, quick, error):
    save, saved = graphs.save, []

    def fail_at_the_second_file(*args):
        if saved:
            raise error
        saved.append(save(*args))
        return saved[-1]

    monkeypatch.setattr(graphs, "save", fail_at_the_second_file)
    with pytest.raises(BaseException, match=r"ctrl-c|no space left"):
        export_onnx(tiny(), tmp_path / "b")
    assert saved  # it was in the middle of it
    assert list(tmp_path.iterdir()) == []


def test_interrupted_export_leaves_the_old_bundle(copied, mopoe, monkeypatch):
    before = snapshot(copied)

    def interrupt(model, folder, *_):
        (folder / "fusion.onnx").write_bytes(b"half a f")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_write_bundle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(mopoe.model, copied, overwrite=True)
    assert snapshot(copied) == before
    assert [f.name for f in copied.parent.iterdir()] == [copied.name]


def test_failed_rename_leaves_the_old_bundle(copied, mopoe, monkeypatch, instant):
    before, rename, calls = snapshot(copied), os.rename, []

    def fail_once_the_old_one_is_aside(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk fell out")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once_the_old_one_is_aside)
    with pytest.raises(OSError, match="disk fell out"):
        export_onnx(mopoe.model, copied, overwrite=True)
    assert snapshot(copied) == before
    assert [f.name for f in copied.parent.iterdir()] == [copied.name]


def test_wrong_numbers_are_never_delivered(tmp_path, monkeypatch, quick):
    """A weight changed on the way: the error names the part, and there is no bundle."""
    clean = graphs.clean

    def spoil(name, program):
        clean(name, program)
        if name == "decoder_v":
            weight = next(v for v in program.graph.initializers.values() if v.const_value.nbytes >= 24)
            weight.const_value = onnx_ir.tensor(weight.const_value.numpy() * 1.01, name=weight.name)

    monkeypatch.setattr(graphs, "clean", spoil)
    with pytest.raises(ExportVerificationError, match=r"decoder_v: output 'p\w+' differs .* index .* torch .* onnx"):
        export_onnx(tiny(), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_tolerances_of_the_export(tmp_path, monkeypatch, quick):
    report = export_onnx(tiny(), tmp_path / "b", rtol=0.5, atol=0.25).report
    assert (report.rtol, report.atol) == (0.5, 0.25)
    with pytest.raises(ValueError, match="rtol is nan, expected a finite number"):
        export_onnx(tiny(), tmp_path / "c", rtol=float("nan"))


def test_export_in_8_bits(tmp_path, quick):
    result = export_onnx(tiny(), tmp_path / "b", quantize="int8")
    assert result.report.passed and result.quantization.quantized
    assert Runtime.load(result.folder).manifest.versions["quantization"] == "int8"
    assert manifest.is_bundle(result.folder) and [p.name for p in tmp_path.iterdir()] == ["b"]
    with pytest.raises(ValueError, match="quantize is 'int4', expected None or one of 'int8'"):
        export_onnx(tiny(), tmp_path / "c", quantize="int4")


def test_a_model_that_cannot_be_copied(tmp_path):
    linear = nn.Linear(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(linear)  # of old
    model = tiny(encoder=nn.Sequential(linear))
    linear(torch.zeros(1, 3))
    with pytest.raises(ExportError, match="cannot be copied"):
        export_onnx(model, tmp_path / "b")


def test_exports_in_threads(tmp_path):
    """torch's exporter has one stack of modes for the whole process."""
    part = parts.take_apart(export.cpu_copy(tiny())).parts["encoder_v"]
    with ThreadPoolExecutor(3) as pool:
        programs = list(pool.map(lambda _: graphs.program("encoder_v", part, 20), range(3)))
    assert all([v.name for v in p.graph.inputs] == ["x"] for p in programs)


def test_export_under_autocast(tmp_path, traced):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert export_onnx(tiny(), tmp_path / "b").report.passed
        assert verify(traced, tiny()).passed


def test_existing_bundle_needs_overwrite(copied, mopoe, instant):
    (copied / "manifest.json").touch()
    with pytest.raises(FileExistsError, match="already exists; pass overwrite=True"):
        export_onnx(mopoe.model, copied)
    assert export_onnx(mopoe.model, copied, overwrite=True).folder == copied
    Runtime.load(copied)
    assert [f.name for f in copied.parent.iterdir()] == [copied.name]


def test_empty_folder_is_fine_and_parents_are_made(tmp_path, mopoe, instant):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deep"):
        export_onnx(mopoe.model, folder)
        Runtime.load(folder)


def test_an_empty_folder_is_filled_not_replaced(tmp_path, mopoe, instant, monkeypatch):
    """A process may stand in it (here: this one), and a mount point cannot be renamed."""
    monkeypatch.chdir(tmp_path)
    before = os.stat(".").st_ino
    export_onnx(mopoe.model, ".")
    assert os.getcwd() == os.path.realpath(tmp_path)
    assert os.stat(tmp_path).st_ino == before
    Runtime.load(".")
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in mopoe.folder.iterdir()}


def test_a_failure_while_filling_leaves_the_folder_empty(tmp_path, mopoe, instant, monkeypatch):
    rename, calls = os.rename, []

    def fail_at_the_third(source, target):
        calls.append(Path(target).name)
        if len(calls) == 3:
            raise OSError("disk fell out")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_at_the_third)
    with pytest.raises(OSError, match="disk fell out"):
        export_onnx(mopoe.model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append(Path(b).name), rename(a, b)))
    export_onnx(mopoe.model, tmp_path)
    assert calls[-1] == "manifest.json"


def test_files_that_come_into_an_empty_folder_meanwhile_stay(tmp_path, mopoe, monkeypatch):
    def write(model, folder, *_):
        (tmp_path / "fusion.onnx").write_text("mine")
        for file in mopoe.folder.iterdir():
            shutil.copy(file, folder)
        return mopoe.result.manifest

    monkeypatch.setattr(export, "_write_bundle", write)
    with pytest.raises(FileExistsError, match=r"was empty and now holds \['fusion\.onnx'\]"):
        export_onnx(mopoe.model, tmp_path, verify=False)
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"fusion.onnx": "mine"}


def test_a_mount_point_with_a_bundle_is_refused_at_once(copied, mopoe, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == copied)
    monkeypatch.setattr(export, "_write_bundle", lambda *_: pytest.fail("refused too late"))
    with pytest.raises(FileExistsError, match="is a mount point, which cannot be replaced"):
        export_onnx(mopoe.model, copied, overwrite=True)


def test_folders_of_others_are_never_deleted(tmp_path, mopoe, copied, instant):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"is not a folder with nothing but a bundle .* holds thesis\.tex"):
        export_onnx(mopoe.model, thesis, overwrite=True)
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not a folder with nothing but a bundle .* holds .* more"):
        export_onnx(mopoe.model, copied, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file, expected a folder with nothing but a bundle"):
        export_onnx(mopoe.model, thesis / "thesis.tex", overwrite=True)
    assert (thesis / "thesis.tex").read_text() == "years of work"
    assert (copied / "notes.txt").read_text() == "mine"


def test_export_killed_between_renames_is_repaired(tmp_path, copied, mopoe, instant):
    """The old bundle stands aside; the next export must not take its place for free."""
    os.rename(copied, copied.with_name(f".{copied.name}.old"))
    with pytest.raises(FileExistsError, match="already exists"):
        export_onnx(mopoe.model, copied)
    Runtime.load(copied)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_notices_another_models_weights(mopoe):
    other = copy.deepcopy(mopoe.model)
    with torch.no_grad():
        next(other.encoders["audio"].parameters()).add_(0.01)
    report = verify(mopoe.folder, other)
    assert not report.passed
    assert {c.part for c in report.failures} >= {"encoder_audio", "Runtime.encode"}
    assert not {c.part for c in report.failures} & {"encoder_image", "decoder_image", "fusion"}
    assert report.worst > 1e-4
    with pytest.raises(ExportVerificationError, match="index"):
        report.raise_if_failed()
    assert "FAILED" in str(report)
    json.dumps(report.to_json())


def test_verify_compares_everything(mopoe):
    report = verify(mopoe.folder, mopoe.model)
    cases = {(c.part, c.output): c.cases for c in report.checks}
    # 8 patterns x B in {1, 2, 7} + mixed rows of each, each with K in {1, 3}; all patterns as rows of one batch: 2
    assert cases["fusion", "z"] == (8 * 3 + 3 + 1) * 2 - 1
    assert cases["Runtime.encode", "mu"] == 9
    assert cases["Runtime.sample", "text"] == 2
    assert {p for p, _ in cases} >= {"encoder_image", "decoder_text", "Runtime.posterior_sample", "Runtime.reconstruct"}
    assert len(cases) == 28  # the posterior's point, in the fusion and in the Runtime, among them


def test_verify_of_another_model(mopoe, mvae):
    with pytest.raises(ValueError, match=r"exported from another model.*class: bundle has MoPoE, model has MVAE"):
        verify(mopoe.folder, mvae.model)


def test_verify_of_a_model_gone_nan(mopoe):
    """NaN on both sides is no agreement."""
    broken = copy.deepcopy(mopoe.model)
    with torch.no_grad():
        next(broken.decoders["image"].parameters()).fill_(float("nan"))
    report = verify(mopoe.folder, broken)
    assert {(c.part, c.output) for c in report.failures} >= {("decoder_image", "params")}
    assert report.worst == float("inf")


# --- native ops -------------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """A user's own module that calls every native op; the seed is an input."""

    def forward(self, mu, logvar, mask, seed):
        mus, logvars = list(mu), list(logvar)
        a = functional.poe_sample_kl(mus, logvars, mask, n_samples=2, seed=seed)
        b = functional.mopoe_sample_kl(mu, logvar, mask, prior="all", seed=seed)
        c = functional.product_of_experts(mu, logvar, mask, prior=False)
        d = functional.reparameterize(mus[0], logvars[0], seed=seed)
        return *a[:4], *b, *c, d, functional.gaussian_kl(mus[0], logvars[0])


def arguments(rows: int, seed: int):
    mu, logvar = torch.randn(2, 2, rows, 4).unbind(0)
    return mu, logvar, torch.rand(rows, 2) < 0.6, torch.tensor([seed])


def decomposed(module: nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            module, arguments(5, 7), dynamic_shapes=({1: batch}, {1: batch}, {0: batch}, None)
        )
        return program.run_decompositions(decompositions())


def test_decompositions_replace_every_op():
    program = decomposed(Everything())
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not [t for t in targets if t.startswith("mmvae_fast")]
    args = arguments(9, -3)
    with torch.no_grad():
        for a, b in zip(program.module()(*args), Everything()(*args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Sampler(nn.Module):
    def forward(self, mu, logvar, mask, seed):
        return functional.poe_sample_kl(list(mu), list(logvar), mask, n_samples=2, seed=seed)[:4]


def test_users_modules_reach_onnx_with_their_noise():
    """A seed is an input like any other, and gives the same noise there as here."""
    with torch.no_grad():
        exported = torch.onnx.export(decomposed(Sampler()), opset_version=20, verbose=False).model_proto
    session = ort.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for rows, seed in ((5, 7), (9, -3), (1, 2**62)):
        args = arguments(rows, seed)
        found = session.run(None, {name: t.numpy() for name, t in zip(names, args, strict=True)})
        with torch.no_grad():
            for a, b in zip(found, Sampler()(*args), strict=True):
                np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [Sampler(), pytest.param(Everything(), marks=pytest.mark.slow)])
def test_users_modules_reach_onnx_by_the_translation_table(module):
    """The same without a program of one's own, at sizes that were not traced."""
    batch = torch.export.Dim("batch")
    names = ["mu", "logvar", "mask", "seed"]
    with torch.no_grad():
        exported = torch.onnx.export(
            module,
            arguments(5, 7),
            dynamic_shapes=({1: batch}, {1: batch}, {0: batch}, None),
            custom_translation_table=translation_table(),
            input_names=names,
            opset_version=20,
            verbose=False,
        ).model_proto
    onnx.checker.check_model(exported, full_check=True)
    session = ort.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows, seed in ((5, 7), (1, -3)):
        args = arguments(rows, seed)
        found = session.run(None, {name: t.numpy() for name, t in zip(names, args, strict=True)})
        with torch.no_grad():
            for a, b in zip(found, module(*args), strict=True):
                np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not _ext.LOADED, reason="built without native kernels")
def test_every_native_forward_op_has_a_decomposition():
    ops = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("mmvae_fast::")}
    forward = {name for name in ops if not name.endswith("_backward") and f"{name}_backward" in ops}
    assert {str(op).removesuffix(".default").replace(".", "::") for op in decompositions()} == forward


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    import importlib

    real = importlib.import_module

    def without(name, package=None):
        if name == "onnxscript":
            raise ModuleNotFoundError(name, name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"onnxscript is not installed.*mmvae_fast\[onnx\]"):
        export_onnx(tiny(), tmp_path / "b")


def test_manifest_and_folder_agree_after_export(mopoe):
    manifest.check_files(mopoe.result.manifest, mopoe.folder)
