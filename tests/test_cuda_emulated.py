"""The CUDA kernels, run on the CPU: a build of `_C` whose ops go to csrc/kernels/cuda through tests/cuda_emulator, and
the tests of the functions on it. What needs a GPU (registers, real concurrency, its compiler) this cannot show."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_THE_CPU = "not every_instruction_set"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import mmvae_fast from, and to run its tests in."""
    pytest.importorskip("torch")
    if sys.platform != "linux":
        pytest.skip("the emulator needs Linux")
    folder = tmp_path_factory.mktemp("emulated")
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for part in ("mmvae_fast", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    build = folder / "build"
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-DMMVAE_FAST_EMULATE_CUDA=ON"]
    for command in (
        [
            *configure,
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'mmvae_fast'}",
        ],
        ["cmake", "--build", str(build), "--parallel", "2", "--target", "_C"],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return folder


# Reversed, or shuffled: a sum that was read before all had written theirs would come out otherwise.
@pytest.mark.slow
@pytest.mark.parametrize("order", ["in order", "reversed", "shuffled"])
def test_functions(package: Path, order: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(package), "MMVAE_EMULATOR_ORDER": order, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/functional", "-k", NOT_THE_CPU, "-p", "no:cacheprovider"],
        cwd=package, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-8000:]
