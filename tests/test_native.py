"""The built libraries: what they say of themselves, what they refuse, and what they must not hold."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmvae_fast
from mmvae_fast import _ext

native = pytest.importorskip("mmvae_fast._native", reason="built without kernels")


def test_build_info():
    info = native.build_info()
    assert info["version"] == mmvae_fast.__version__
    assert info["minimum_torch"] == "2.10"
    assert info["built_with_torch"]
    assert native.cpu_capability() in info["instruction_sets"]


def test_native_needs_no_torch():
    code = (
        "import sys; from mmvae_fast import _native; _native.philox_normal(1, 2, 3); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["mmvae_fast._C", "mmvae_fast._native"])
def test_no_path_of_the_machine_that_built_it(module):
    binary = Path(importlib.util.find_spec(module).origin)
    content = binary.read_bytes()
    for folder in (Path(__file__).parents[1], Path(torch.__file__).parent):
        assert str(folder).encode() not in content


def test_a_library_from_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(_ext, "OPS_VERSION", -1)
    with pytest.raises(ImportError, match=r"built from other sources .* expected -1\): reinstall mmvae_fast"):
        _ext._load("_C")
