"""Drives CMake with Ninja, and nothing else: what is built stands in CMakeLists.txt, the metadata in pyproject.toml.

Environment:
    MMVAE_FAST_NO_EXT=1    build the pure-Python package on purpose (wheel tag py3-none-any)
    FORCE_CUDA=1           build the kernels for CUDA too, whatever torch is installed (0: never). Otherwise they are
                           built when torch has CUDA and nvcc is found (CUDACXX, CUDA_HOME, PATH, /usr/local/cuda)
    TORCH_CUDA_ARCH_LIST   the devices they are built for ("8.0 9.0+PTX")
    MMVAE_FAST_TORCH_DIR   the torch package folder to build against, where the search below cannot see it
    CXX, CXXFLAGS          the usual compiler choice
    CMAKE_ARGS             more arguments for the CMake configure step

torch is never imported here, and it is not in build-system.requires: an isolated build would then download a second,
multi-gigabyte torch just to read its headers. Any torch >= 2.10 gives the same binary (the LibTorch stable ABI), so
the one already installed next to the package is the right one, and pip's isolation only hides it from sys.path.

A wheel with kernels is tagged for one CPython version (cp311-cp311-linux_x86_64, say): `_C.abi3.so` alone would serve
every CPython >= 3.10, but `_native` is pybind11, which has no limited API.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)
STEERING = ("CXX", "CXXFLAGS", "LDFLAGS", "CUDAHOSTCXX", "CUDAFLAGS", "TORCH_CUDA_ARCH_LIST")  # a build, in CMake
WITH_KERNELS = os.environ.get("MMVAE_FAST_NO_EXT", "0") in ("", "0")


def fail(sentence: str) -> NoReturn:
    raise SystemExit(f"mmvae_fast: {sentence} (MMVAE_FAST_NO_EXT=1 installs it without native kernels.)")


def site_folders() -> Iterator[Path]:
    """Where this interpreter keeps its packages when no build isolation hides them."""
    paths = sysconfig.get_paths()
    yield from (Path(paths[name]) for name in ("purelib", "platlib"))
    configuration = Path(sys.prefix, "pyvenv.cfg")
    sees_system = not configuration.exists() or re.search(
        r"^include-system-site-packages\s*=\s*true", configuration.read_text(), re.MULTILINE | re.IGNORECASE
    )
    if sees_system:
        yield from map(Path, [site.getusersitepackages(), *site.getsitepackages([sys.base_prefix])])


def find_torch() -> Path:
    override = os.environ.get("MMVAE_FAST_TORCH_DIR")
    if override:
        candidates = [Path(override)]
    else:
        spec = importlib.util.find_spec("torch")  # finds without importing
        candidates = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
        candidates += [folder / "torch" for folder in site_folders()]
    found = next((at for at in candidates if (at / "include/torch").is_dir() and (at / "version.py").is_file()), None)
    if found is None and override:
        fail(f"MMVAE_FAST_TORCH_DIR={override} is not an installed torch package (it has no include/torch).")
    if found is None:
        fail(
            "no PyTorch was found to build the kernels against: install torch >= 2.10 first (pip install torch), then "
            "mmvae_fast, or set MMVAE_FAST_TORCH_DIR to the folder of an installed torch package."
        )
    version = re.search(r"^__version__ = '((\d+)\.(\d+)[^']*)'", (found / "version.py").read_text(), re.MULTILINE)
    if version and (int(version[2]), int(version[3])) < OLDEST_TORCH:
        fail(f"the kernels need torch >= 2.10, and {found} is torch {version[1]}: pip install --upgrade torch.")
    return found


def find_nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = os.pathsep.join(str(Path(home, "bin")) for home in [*homes, "/usr/local/cuda"])
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=places)


def cuda_arguments(torch: Path) -> list[str]:
    wish = os.environ.get("FORCE_CUDA", "")
    of_torch = re.search(r"^cuda\b.*= ['\"]", (torch / "version.py").read_text(), re.MULTILINE)
    nvcc = find_nvcc()
    if wish not in ("", "0") and (nvcc is None or not shutil.which(nvcc)):
        fail(
            f"FORCE_CUDA={wish} asks for the CUDA kernels, and {nvcc or 'nvcc'} was not found: install the CUDA "
            "toolkit, set CUDA_HOME to its folder, or unset FORCE_CUDA."
        )
    if wish == "0" or nvcc is None or not (wish or of_torch):
        return ["-DMMVAE_FAST_CUDA=OFF"]
    return ["-DMMVAE_FAST_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]


def find_tool(name: str) -> str:
    """A build program from PATH, or from this interpreter's own scripts folder (a venv that was not activated)."""
    path = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        fail(f"{name} was not found, and the kernels are built with it: pip install cmake ninja.")
    return path


def find_pybind11() -> str:
    if importlib.util.find_spec("pybind11") is None:
        fail("pybind11 was not found, and a kernel module is built with it: pip install pybind11.")
    import pybind11

    return pybind11.get_cmake_dir()


def check_compiler() -> None:
    chosen = os.environ.get("CXX")
    if chosen and not shutil.which(shlex.split(chosen)[0]):
        fail(f"CXX={chosen} was not found: set CXX to a C++17 compiler, or unset it.")
    usual = ("c++", "g++", "clang++", "icpx", "cl")
    if not (chosen or "CMAKE_CXX_COMPILER" in os.environ.get("CMAKE_ARGS", "") or any(map(shutil.which, usual))):
        fail(
            "no C++ compiler was found: install one (Debian/Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
            "macOS: xcode-select --install), or set CXX."
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        fail("the C headers of this Python (Python.h) were not found: install them (Debian: apt install python3-dev).")


def configure_command() -> list[str]:
    """The CMake configure line without its build folder; one sentence, and the end, if a tool is missing."""
    check_compiler()
    torch = find_torch()
    return [
        find_tool("cmake"),
        f"-S{ROOT}",
        "-GNinja",
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DTORCH_DIR={torch}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={find_pybind11()}",
        *cuda_arguments(torch),
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]


class CheckedDistInfo(dist_info):
    """Says what is missing when pip asks for the metadata, before it downloads the dependencies (gigabytes) in vain."""

    def run(self) -> None:
        if WITH_KERNELS:
            configure_command()
        super().run()


class CMakeBuild(build_ext):
    """Builds every native module in one CMake project; wheels and editable installs share its build folder."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.built: list[str] = []

    def run(self) -> None:
        configure = [*configure_command(), f"-DMMVAE_FAST_VERSION={self.distribution.get_version()}"]
        folder = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        output = folder / "mmvae_fast"
        self.make(folder, [*configure, f"-B{folder}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}"])
        target = Path(ROOT if self.inplace else self.build_lib, "mmvae_fast")
        target.mkdir(parents=True, exist_ok=True)
        for module in sorted([*output.glob("*.so"), *output.glob("*.pyd")]):
            self.built.append(module.name)
            # By rename, not in place: a running process may have the old one mapped.
            fresh = target / f".new-{module.name}"
            shutil.copy2(module, fresh)
            os.replace(fresh, target / module.name)

    def make(self, folder: Path, configure: list[str]) -> None:
        # A cache from another configure line holds paths that are gone (isolated builds get theirs in a new temporary
        # folder each time), so it is not reused.
        line = "\n".join([*configure, *(os.environ.get(name, "") for name in STEERING)])
        stamp = folder / "configured-by.txt"
        if not stamp.exists() or stamp.read_text() != line:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            stamp.write_text(line)
        for command in (configure, [configure[0], "--build", str(folder)]):
            code = subprocess.run(command, check=False).returncode
            if code:
                fail(f"the native build failed (exit {code}); what CMake or the compiler said stands above.")

    def get_outputs(self) -> list[str]:
        return [os.path.join(self.build_lib, "mmvae_fast", name) for name in self.built]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {path: os.path.join("mmvae_fast", os.path.basename(path)) for path in self.get_outputs()}


setup(
    # One entry stands for all modules of the CMake project; it is what makes the wheel platform-specific.
    ext_modules=[Extension("mmvae_fast._C", sources=[])] if WITH_KERNELS else [],
    cmdclass={"build_ext": CMakeBuild, "dist_info": CheckedDistInfo},
)
