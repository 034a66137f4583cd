"""Bundles made to do harm, and bundles damaged at random: always our error, never a crash, a hang or a wrong answer.

What could end a process runs in one of its own. The hashes are made right again after each change: whoever can write a
file can write its hash.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmvae_fast.onnx import BundleError, Runtime, guard, manifest
from mmvae_fast.onnx import runtime as runtime_module
from mmvae_fast.onnx.manifest import TensorSpec

guarded = pytest.mark.skipif(not hasattr(runtime_module, "guard"), reason="the Runtime does not call guard.py yet")


def in_a_process(code: str, *args: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, errors="replace")


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def replace_part(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    edit(folder, lambda data: data["files"].update({file: manifest.sha256(folder / file)}))


# --- at random --------------------------------------------------------------------------------------------------------

FUZZ = """
import hashlib, json, pathlib, random, shutil, sys
import numpy as np
from mmvae_fast.onnx import BundleError, Runtime

source, work, what, first, count = sys.argv[1:]
source, work = pathlib.Path(source), pathlib.Path(work)
plain = Runtime.load(source)
inputs = plain.sample(3, seed=1)
wanted = plain.reconstruct(inputs)
ended = {"refused": 0, "the same": 0, "other weights": 0, "not finite": 0}
for case in range(int(first), int(first) + int(count)):
    rng = random.Random(case)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work)
    file = "manifest.json" if what == "manifest" else rng.choice(sorted(plain.manifest.files))
    data = bytearray((work / file).read_bytes())
    for _ in range(rng.choice([1, 1, 2, 5, 50])):
        near = min(len(data), 6000)  # where the structure of these small graphs is
        data[rng.randrange(near) if rng.random() < 0.7 else rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)):]
    (work / file).write_bytes(data)
    if what == "graphs":
        m = json.loads((work / "manifest.json").read_text())
        m["files"][file] = hashlib.sha256(data).hexdigest()
        (work / "manifest.json").write_text(json.dumps(m))
    print("case", case, file=sys.stderr, flush=True)
    try:
        found = Runtime.load(work).reconstruct(inputs)
    except BundleError:
        ended["refused"] += 1
        continue
    except ValueError as error:
        if type(error).__name__ != "NonFinite":  # a weight became inf: refused, if in words about z
            raise
        ended["not finite"] += 1
        continue
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
    same = all(np.array_equal(found[k], wanted[k]) for k in wanted)
    assert same or what == "graphs", "a changed manifest changed the answer"
    ended["the same" if same else "other weights"] += 1
print(json.dumps(ended))
"""


@pytest.mark.parametrize(("what", "first", "count"), [("manifest", 0, 250), ("graphs", 0, 150)])
def test_damaged_at_random(mopoe, tmp_path, what, first, count):
    done = in_a_process(FUZZ, mopoe.folder, tmp_path / "work", what, first, count)
    assert done.returncode == 0, done.stderr[-3000:]
    ended = json.loads(done.stdout.splitlines()[-1])
    assert sum(ended.values()) == count
    assert ended["refused"] > (0.9 if what == "manifest" else 0.2) * count


def test_every_truncation_of_a_small_file_is_refused(copied):
    content = (copied / "fusion.onnx").read_bytes()
    for length in range(0, len(content), max(1, len(content) // 25)):
        (copied / "fusion.onnx").write_bytes(content[:length])
        with pytest.raises(BundleError, match=r"fusion\.onnx: SHA-256"):
            Runtime.load(copied)


def test_every_pair_of_swapped_files_is_refused(mopoe, tmp_path, make_inputs):
    """With hashes that fit, by what goes in and out: mu and logvar are of other modalities than they should be."""
    names = sorted(mopoe.result.manifest.files)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            folder = Path(shutil.copytree(mopoe.folder, tmp_path / "swapped"))
            replace_part(folder, a, (mopoe.folder / b).read_bytes())
            replace_part(folder, b, (mopoe.folder / a).read_bytes())
            with pytest.raises(BundleError, match=r"expected .* as manifest\.json says"):
                Runtime.load(folder).reconstruct(make_inputs())
            shutil.rmtree(folder)


# --- on purpose -------------------------------------------------------------------------------------------------------


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def decoder(nodes, *initializers) -> bytes:
    """A decoder of "audio" [4, 3] from z [6], which gives what ``nodes`` call params as its prediction too."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("z", ["batch", 6]), ("params", ["batch", 4, 3]), ("prediction", ["batch", 4, 3]))
    ]
    nodes = [*nodes, helper.make_node("Identity", ["params"], ["prediction"])]
    graph = helper.make_graph(nodes, "hostile", values[:1], values[1:], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def of_shape(*sizes: str) -> list:
    """Nodes that give zeros, [size of dimension 0 of z and constants, in the order named]."""
    return [
        helper.make_node("Shape", ["z"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Concat", list(sizes), ["wanted"], axis=0),
        helper.make_node("ConstantOfShape", ["wanted"], ["params"]),
    ]


def external(location: str) -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[6, 12], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(6 * 12 * 4))):
        tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("MatMul", ["z", "w"], ["flat"]), helper.make_node("Reshape", ["flat", "s"], ["params"])]
    return decoder(nodes, tensor, integers("s", -1, 4, 3))


def decode(folder: Path) -> dict[str, np.ndarray]:
    return Runtime.load(folder).decode(np.ones((2, 6), dtype=np.float32), "audio")


def test_an_honest_decoder_of_this_kind_runs(copied):
    constants = [integers("first", 0), integers("four", 4), integers("three", 3)]
    replace_part(copied, "decoder_audio.onnx", decoder(of_shape("batch", "four", "three"), *constants))
    assert decode(copied)["audio"].shape == (2, 4, 3)


@pytest.mark.parametrize("location", ["../secret.bin", "{absolute}", "linked.bin", "/dev/zero"])
def test_weights_outside_the_bundle_are_not_read(copied, location):
    secret = copied.parent / "secret.bin"
    secret.write_bytes(np.ones(72, dtype=np.float32).tobytes())
    (copied / "linked.bin").symlink_to(secret)
    replace_part(copied, "decoder_audio.onnx", external(location.format(absolute=secret)))
    with pytest.raises(BundleError, match=r"decoder_audio\.onnx: names another file for its weights, expected none"):
        decode(copied)


def test_foreign_operators_are_refused(copied):
    node = helper.make_node("Run", ["z"], ["params"], domain="evil")
    replace_part(copied, "decoder_audio.onnx", decoder([node]))
    with pytest.raises(BundleError, match="cannot load it"):
        decode(copied)


def test_weights_that_are_not_there_are_refused(copied):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[6, 2**40], raw_data=bytes(16))
    replace_part(copied, "decoder_audio.onnx", decoder([helper.make_node("MatMul", ["z", "w"], ["params"])], tensor))
    with pytest.raises(BundleError, match="cannot load it"):
        decode(copied)


@guarded
@pytest.mark.parametrize("sizes", [("four", "batch", "three"), ("three", "four", "batch")])
def test_a_graph_that_gives_other_shapes_than_it_declares(copied, sizes):
    """Reshaped, the numbers of one row would be those of another."""
    constants = [integers("first", 0), integers("four", 4), integers("three", 3)]
    replace_part(copied, "decoder_audio.onnx", decoder(of_shape(*sizes), *constants))
    with pytest.raises(BundleError, match=r"decoder_audio\.onnx: output 'prediction' came as float32 .*2, 4, 3"):
        decode(copied)


@guarded
def test_a_graph_that_wants_all_the_memory(copied):
    nodes = [
        *of_shape("batch", "much", "much"),
        helper.make_node("Slice", ["params", "first", "four"], ["some"]),
    ]
    nodes[3].output[0], nodes[4].input[0], nodes[4].output[0] = "all", "all", "params"
    replace_part(
        copied, "decoder_audio.onnx", decoder(nodes, integers("first", 0), integers("much", 2**24), integers("four", 4))
    )
    with pytest.raises(BundleError, match=r"decoder_audio\.onnx"):
        decode(copied)


@pytest.mark.parametrize("kind", ["zeros", "pipe", "folder", "itself"])
@pytest.mark.parametrize("file", ["decoder_audio.onnx", "manifest.json"])
def test_what_is_no_file_is_never_opened(copied, kind, file):
    path = copied / file
    path.unlink()
    {"zeros": lambda: path.symlink_to("/dev/zero"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir,
     "itself": lambda: path.symlink_to(path)}[kind]()  # fmt: skip
    with pytest.raises(BundleError, match="missing"):
        Runtime.load(copied)


def test_a_linked_file_is_used_only_if_it_is_the_one_that_was_exported(copied, make_inputs):
    """As the caches of model hubs have them; what it links to is hashed like any other."""
    path, elsewhere = copied / "encoder_audio.onnx", copied.parent / "blob"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    Runtime.load(copied).encode({"audio": make_inputs()["audio"]})
    elsewhere.write_bytes(b"another")
    with pytest.raises(BundleError, match=r"encoder_audio\.onnx: SHA-256"):
        Runtime.load(copied)


# --- guard ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["modalities"][0].update(scale=float("nan")), "scale of modality 'image' is nan"),
        (lambda d: d["modalities"][0].update(scale=float("inf")), "scale of modality 'image' is inf"),
        (lambda d: d["files"].update({"a" * 5000: "0" * 64}), "5000 characters, expected at most 200"),
        (lambda d: d["files"].update({"\ud800": "0" * 64}), "all of them printable"),
        (lambda d: d["files"].update({"\x1b[2J": "0" * 64}), "all of them printable"),
    ],
)
def test_manifests_that_claim_too_much(mopoe, change, message):
    data = json.loads(mopoe.result.manifest.dumps())
    change(data)
    with pytest.raises(BundleError, match=f"m: .*{message}"):
        guard.check_manifest(manifest.Manifest.from_json(data), "m")


def test_sizes_beyond_memory(mopoe):
    data = json.loads(mopoe.result.manifest.dumps().replace(" 6", f" {10**15}"))
    with pytest.raises(BundleError, match=r"'latent_dim' holds 10{15} numbers, expected at most"):
        guard.check_manifest(manifest.Manifest.from_json(data), "m")
    guard.check_manifest(mopoe.result.manifest, "m")


def test_sparse_terabytes_are_not_hashed(tmp_path):
    path = tmp_path / "sparse.onnx"
    with open(path, "wb") as file:
        file.truncate(2**42)
    with pytest.raises(BundleError, match="4398046511104 bytes, expected at most"):
        guard.check_size(path)
    guard.check_size(tmp_path / "none")


def test_outputs_are_held_to_their_inputs():
    inputs = (TensorSpec("z", "float32", ("batch", 6)),)
    outputs = (TensorSpec("y", "float32", ("batch", 4, 3)), TensorSpec("n", "int64", ("steps",)))
    z = np.zeros((2, 6), np.float32)

    def check(*found):
        guard.check_outputs(Path("p.onnx"), inputs, [z], outputs, found)

    good, steps = np.zeros((2, 4, 3), np.float32), np.zeros(5, np.int64)
    check(good, steps)
    for bad in (good[:1], good.transpose(1, 0, 2), good.reshape(2, 12), good.astype(np.float64)):
        with pytest.raises(
            BundleError, match=r"p\.onnx: output 'y' came as float(32|64) .*expected float32 \[2, 4, 3\]"
        ):
            check(bad, steps)
    with pytest.raises(BundleError, match=r"expected int64 \['steps'\]"):
        check(good, steps[None])


def test_what_onnxruntime_raises_is_ours():
    error = guard.run_failed(Path("p.onnx"), RuntimeError(" out of memory \n"))
    assert isinstance(error, BundleError) and str(error) == "p.onnx: cannot be run (out of memory)"


def test_the_checker_agrees_that_these_are_models():
    constants = [integers("first", 0), integers("four", 4), integers("three", 3)]
    onnx.checker.check_model(onnx.load_from_string(decoder(of_shape("batch", "four", "three"), *constants)))


# --- files beside a graph ---------------------------------------------------------------------------------------------


def weights_in(location: str, twice: bool = False) -> bytes:
    """z -> zeros, of which the shape is read from a file."""
    shape = TensorProto(name="shape", data_type=TensorProto.INT64, dims=[3], data_location=TensorProto.EXTERNAL)
    for value in ("decoder_v.onnx.data", location) if twice else (location,):
        shape.external_data.add(key="location", value=value)
    return decoder(of_shape("shape"), shape)


@pytest.mark.parametrize("sidecar", [False, True])
@pytest.mark.parametrize("location", ["../secret", "link", "unlisted", "/etc/hostname", "decoder_v.onnx.datax"])
def test_no_other_file_is_read(location, sidecar):
    file = "decoder_v.onnx.data" if sidecar else None
    for graph in (weights_in(location), weights_in(location, twice=True)):
        with pytest.raises(BundleError, match="names another file for its weights, expected"):
            guard.check_external(Path("decoder_v.onnx"), graph, file)
    guard.check_external(Path("decoder_v.onnx"), weights_in("decoder_v.onnx.data"), "decoder_v.onnx.data")
    long = "d" * 180 + ".data"
    guard.check_external(Path("d"), external(long), long)


def test_a_length_written_in_two_bytes_hides_nothing():
    graph = weights_in("../secret")
    hidden = graph.replace(b"\x0a\x08location", b"\x0a\x88\x00location")
    assert hidden != graph
    with pytest.raises(BundleError, match="names another file"):
        guard.check_external(Path("decoder_v.onnx"), hidden, "decoder_v.onnx.data")


def test_work_on_constants_is_stopped_as_other_work(tmp_path):
    """Folded when the session opens, it would hold the lock for as long as it likes."""
    from types import SimpleNamespace

    from mmvae_fast.onnx import InferenceTimeout
    from mmvae_fast.onnx.manifest import PartSpec
    from mmvae_fast.onnx.sessions import Sessions

    value, one = helper.make_tensor_value_info, helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["m0"], value=one)]
    nodes += [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(40)]
    nodes += [helper.make_node("ReduceSum", ["m40"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["out"])]
    ends = [[value(name, TensorProto.FLOAT, ["n"])] for name in ("x", "out")]
    size = numpy_helper.from_array(np.array([1500, 1500], np.int64), "size")
    graph = helper.make_graph(nodes, "folded", *ends, [size])
    path = tmp_path / "folded.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    part = PartSpec("folded.onnx", *((TensorSpec(name, "float32", ("n",)),) for name in ("x", "out")))
    described = SimpleNamespace(parts={"folded": part}, files={"folded.onnx": manifest.sha256(path)})
    sessions = Sessions(tmp_path, described, 1, False, 0.1)
    with pytest.raises(InferenceTimeout):
        sessions.run("folded", [np.zeros(1, np.float32)])


@pytest.mark.parametrize("command", ["run", "bench"])
def test_commands_end_too(copied, command):
    pytest.importorskip("typer", reason="needs the 'cli' extra")
    from typer.testing import CliRunner

    from mmvae_fast.cli import app

    one = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["m0"], value=one)]
    nodes += [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(40)]
    nodes += [helper.make_node("ReduceSum", ["m40"], ["s"], keepdims=0)]
    constants = [integers("first", 0), integers("four", 4), integers("three", 3), integers("size", 1500, 1500)]
    zeros = of_shape("batch", "four", "three")
    zeros[-1].output[0] = "zeros"
    nodes += [*zeros, helper.make_node("Add", ["zeros", "s"], ["params"])]
    replace_part(copied, "decoder_audio.onnx", decoder(nodes, *constants))
    made = ["--text", "zero", "--to", "audio", "--out", copied / "sound"]
    options = made if command == "run" else ["--batch", 1, "--seconds", 0.01]
    result = CliRunner().invoke(app, [command, *map(str, [copied, *options, "--timeout", 0.1])])
    assert result.exit_code == 1 and "decoder_audio: stopped after 0.1 s, the timeout" in result.stderr
