"""The CUDA library compiles and links where nvcc is, without a GPU and without a torch that has CUDA."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def succeed(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    return result.stdout


def build(folder: Path, target: str, *options: str) -> Path:
    """`_C_cuda` or one object of it; the folder that libraries come to."""
    configure = ["cmake", "-GNinja", f"-S{ROOT}", f"-B{folder}", "-DMMVAE_FAST_CUDA=ON", *options]
    paths = [f"-DCMAKE_CUDA_COMPILER={NVCC}", f"-DPython_EXECUTABLE={sys.executable}"]
    output = f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'out'}"
    # A build of its own, whatever this shell has been told about others.
    env = {name: value for name, value in os.environ.items() if name not in ("TORCH_CUDA_ARCH_LIST", "CUDAFLAGS")}
    succeed(*configure, *paths, output, env=env)
    succeed("ninja", "-C", str(folder), target, env=env)
    return folder / "out"


def device_code(library: Path) -> Counter[str]:
    """What the fat binaries inside hold: how often each sm_90 (machine code) and compute_90 (PTX)."""
    data, found = library.read_bytes(), Counter[str]()
    for start in (match.start() for match in re.finditer(re.escape(b"\x50\xed\x55\xba"), data)):
        header, size = struct.unpack_from("<HQ", data, start + 6)
        entry = start + header
        while entry < start + header + size:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + 28)
            found[f"{'compute' if kind == 1 else 'sm'}_{architecture}"] += 1
            entry += entry_header + entry_size
    return found


def test_a_kernel_compiles(tmp_path: Path) -> None:
    """The quick one: a kernel file, and a file of ops over it."""
    for source in ("csrc/kernels/cuda/reparameterize.cu", "csrc/torch/reparameterize.cpp"):
        build(tmp_path, f"CMakeFiles/_C_cuda.dir/{source}.o", "-DCMAKE_CUDA_ARCHITECTURES=90-real")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cuda"), "_C_cuda") / "_C_cuda.abi3.so"


@pytest.mark.slow
def test_everything_is_linked_but_torch(library: Path) -> None:
    names = {line.split()[-1].split("@")[0] for line in succeed("nm", "-D", "--undefined-only", library).splitlines()}
    assert not [name for name in names if re.match(r"_Z.*(mmvae|torch|c10|2at)", name)]  # ours, or torch's C++ ABI
    assert not [name for name in names if re.match(r"cu[A-Z]|cuda|nv", name)]
    shims = {name for name in names if name.startswith(("aoti_torch_", "torch_"))}
    assert {"aoti_torch_get_current_cuda_stream", "torch_library_impl"} <= shims

    dynamic = succeed("readelf", "-d", library)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    assert not [name for name in needed if "cuda" in name or "cudart" in name]
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic

    defined = succeed("nm", "-D", "--defined-only", library)
    assert "PyInit__C_cuda" in defined
    assert not re.search(r" cuda\w+$", defined, re.MULTILINE)  # the runtime inside is for us alone


@pytest.mark.slow
def test_it_holds_code_for_every_device(library: Path) -> None:
    kernels = len(list(ROOT.glob("csrc/kernels/cuda/*.cu")))
    found = device_code(library)
    assert found.keys() == {"sm_80", "sm_90", "compute_90"}
    assert min(found.values()) >= kernels


@pytest.mark.slow
def test_it_names_no_path_of_this_machine(library: Path) -> None:
    data = library.read_bytes()
    for path in (ROOT, Path(torch.__file__).parent, Path(sys.prefix), library.parent.parent):
        assert str(path).encode() not in data


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_a_torch_without_cuda_leaves_it_alone(library: Path, tmp_path: Path) -> None:
    """It would not load; the package works beside it, and doctor tells of it."""
    package = tmp_path / "mmvae_fast"
    shutil.copytree(ROOT / "mmvae_fast", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(library, package)
    code = """
        import sys, torch
        from mmvae_fast import _ext, doctor
        assert not _ext.CUDA_LOADED and "mmvae_fast._C_cuda" not in sys.modules
        found = doctor.examine()
        assert found["cuda_kernels"]["built"] and not found["cuda_kernels"]["loaded"]
        assert not [problem for problem in found["problems"] if "cuda" in problem.lower()]
        assert "built, not loaded: this torch has no CUDA" in doctor.as_text(found)
    """
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    succeed(sys.executable, "-W", "ignore", "-c", "if True:" + code, env=environment, cwd=tmp_path)
