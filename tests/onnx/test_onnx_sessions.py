"""A part that does not end is stopped; what is open stays in its process."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mmvae_fast.onnx import BadValue, BundleError, InferenceTimeout, Runtime, manifest, watchdog
from mmvae_fast.onnx.manifest import PartSpec, TensorSpec
from mmvae_fast.onnx.sessions import Sessions


def endless(path):
    """x -> x + 1, 2^62 times."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["y", "one"], ["next"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, ["n"])],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, ["n"])],
    )
    constants = [
        helper.make_tensor("count", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
    ]
    graph = helper.make_graph(
        [helper.make_node("Loop", ["count", "true", "x"], ["out"], body=body)],
        "endless",
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("out", TensorProto.FLOAT, ["n"])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_a_part_that_does_not_end_is_stopped(tmp_path):
    endless(tmp_path / "endless.onnx")
    part = PartSpec("endless.onnx", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("out", "float32", ("n",)),))
    described = SimpleNamespace(
        parts={"endless": part}, files={"endless.onnx": manifest.sha256(tmp_path / "endless.onnx")}
    )
    sessions = Sessions(tmp_path, described, 1, False, 0.3)
    began = time.monotonic()
    for _ in range(2):  # the session is as good as before
        with pytest.raises(InferenceTimeout, match=r"endless: stopped after 0\.3 s, the timeout"):
            sessions.run("endless", [np.zeros(1, np.float32)])
    assert time.monotonic() - began < 20


class Options:
    terminate = False


def test_calls_are_watched_by_one_thread_whatever_their_order():
    """A later call with an earlier end is told first; one that was released never is."""
    late, soon, released = Options(), Options(), Options()
    far = watchdog.watch(late, 60.0)
    gone = watchdog.watch(released, 0.05)
    watchdog.release(gone)
    near = watchdog.watch(soon, 0.1)
    before = threading.active_count()
    many = [watchdog.watch(Options(), 60.0) for _ in range(50)]
    assert threading.active_count() == before
    deadline = time.monotonic() + 10
    while not soon.terminate and time.monotonic() < deadline:
        time.sleep(0.01)
    assert near.passed and soon.terminate
    assert not far.passed and not late.terminate and not released.terminate
    for limit in (far, *many):
        watchdog.release(limit)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_calls_are_watched_in_a_child_of_a_process_that_watched():
    watchdog.release(watchdog.watch(Options(), 60.0))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        options = Options()
        watchdog.watch(options, 0.05)
        time.sleep(0.5)
        os.write(write, b"1" if options.terminate else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"


def test_answers_in_time_are_as_without_a_timeout(mopoe, make_inputs):
    patient = Runtime.load(mopoe.folder, timeout=60.0, threads=2, spin=True)
    np.testing.assert_allclose(
        patient.encode(make_inputs()).mu, mopoe.runtime.encode(make_inputs()).mu, rtol=1e-5, atol=1e-6
    )


def test_pickled_and_shared(mopoe, make_inputs):
    inputs = make_inputs()
    expected = mopoe.runtime.reconstruct(inputs)
    again = pickle.loads(pickle.dumps(mopoe.runtime))
    assert again.info["loaded_parts"] == []
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: again.reconstruct(inputs), range(24)):
            for name, x in expected.items():
                np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("timeout", [0, -1.0, "1", True])
def test_bad_timeout(mopoe, timeout):
    with pytest.raises(BadValue, match="timeout is .*, expected a number of seconds above 0, or None"):
        Runtime.load(mopoe.folder, timeout=timeout)


def test_fuse_takes_experts_of_ones_own(mopoe, make_inputs):
    experts = [mopoe.runtime._run(f"encoder_{name}", x) for name, x in make_inputs().items()]
    mu, logvar = (np.stack([e[i] for e in experts], 1) for i in range(2))
    mask = np.ones(mu.shape[:2], bool)
    np.testing.assert_allclose(
        mopoe.runtime.fuse(mu, logvar, mask).mu, mopoe.runtime.encode(make_inputs()).mu, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"mu has shape \[5, 3, 5\], expected \[B, 3, 6\]"):
        mopoe.runtime.fuse(mu[..., :5], logvar, mask)
    mu[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="mu holds NaN or infinity in an observed expert"):
        mopoe.runtime.fuse(mu, logvar, mask)


def test_a_relative_folder_is_found_from_elsewhere(copied, tmp_path, monkeypatch, make_inputs):
    monkeypatch.chdir(copied.parent)
    runtime = Runtime.load(copied.name)
    pickled = pickle.dumps(runtime)
    monkeypatch.chdir("/")
    x = make_inputs(2)
    np.testing.assert_array_equal(runtime.encode(x).mu, pickle.loads(pickled).encode(x).mu)
    again = pickle.loads(pickled)
    copied.rename(tmp_path / "moved")
    with pytest.raises(BundleError, match="no longer there; the bundle has moved"):
        again.encode(x)


@pytest.mark.parametrize("options", [{"timeout": float("inf")}, {"timeout": 1e300}, {"threads": 2**40}])
def test_times_and_threads_that_no_system_has(mopoe, options):
    with pytest.raises(BadValue, match=f"{next(iter(options))} is .*, expected"):
        Runtime.load(mopoe.folder, **options)
