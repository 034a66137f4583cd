"""What is shipped and how it is built: wheel, sdist, the sentences for a missing toolchain, the declared extras.

The quick tests run setup.py in a bare virtual environment whose compiler, CMake and torch are empty stand-ins, so that
each of them can be missing; the ones marked slow build and install for real.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "demo_out", "*.egg-info", "*.so", "__pycache__")
NO_EXT = {"MMVAE_FAST_NO_EXT": "1"}


def environment(**changes: str) -> dict[str, str]:
    """This process's, without what would steer a build or an import elsewhere."""
    steering = {"PYTHONPATH", "CXX", "CXXFLAGS", "CMAKE_ARGS", "MMVAE_FAST_NO_EXT", "MMVAE_FAST_TORCH_DIR"}
    steering |= {"FORCE_CUDA", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"}
    return {name: value for name, value in os.environ.items() if name not in steering} | changes


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=env or environment(), capture_output=True, text=True, check=False
    )


def succeed(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    result = run(*command, cwd=cwd, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources without anything built, as a newcomer has it."""
    return Path(shutil.copytree(ROOT, tmp_path / "tree", ignore=NOT_SOURCE))


# --- a toolchain with a part missing


@dataclass
class Toolchain:
    """Stand-ins for everything a build looks for; a test takes one away, then runs setup.py."""

    tree: Path
    tools: Path
    packages: Path
    python: Path
    torch: Path
    argv: Path

    def build(self, **env: str) -> subprocess.CompletedProcess[str]:
        clean = environment(PATH=str(self.tools), PYTHONPATH=str(self.packages), **env)
        return run(self.python, "setup.py", "-q", "build_ext", cwd=self.tree, env=clean)

    def complaint(self, **env: str) -> str:
        """The one sentence a failing build ends with."""
        result = self.build(**env)
        assert result.returncode != 0
        assert "Traceback" not in result.stderr
        sentences = [line for line in result.stderr.splitlines() if line.startswith("mmvae_fast:")]
        assert len(sentences) == 1, result.stderr
        return sentences[0]


@pytest.fixture(scope="module")
def bare_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "venv"
    succeed(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder


@pytest.fixture
def toolchain(tmp_path: Path, bare_venv: Path) -> Iterator[Toolchain]:
    tree = tmp_path / "tree"
    (tree / "mmvae_fast").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "mmvae_fast/__init__.py"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "README.md").touch()

    tools = tmp_path / "tools"
    tools.mkdir()
    argv = tmp_path / "argv"
    scripts = {"c++": "", "ninja": "", "cmake": f'printf "%s\\n" "$@" >"{argv}"; exit 3'}
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)

    packages = tmp_path / "packages"
    packages.mkdir()
    setuptools = importlib.util.find_spec("setuptools")
    assert setuptools
    assert setuptools.origin
    installed = Path(setuptools.origin).parent.parent
    for folder in [*installed.glob("setuptools*"), installed / "_distutils_hack"]:
        (packages / folder.name).symlink_to(folder)
    (packages / "pybind11.py").write_text("def get_cmake_dir(): return '/pybind11-cmake'\n")

    # torch lies where it is installed, and where an isolated build cannot import it: pip hides the environment's
    # packages from sys.path by a sitecustomize like this one.
    site_packages = next(bare_venv.glob("lib/python*/site-packages"))
    (packages / "sitecustomize.py").write_text(f"import sys\nsys.path.remove({str(site_packages)!r})\n")
    torch = site_packages / "torch"
    (torch / "include/torch").mkdir(parents=True)
    (torch / "version.py").write_text("__version__ = '2.10.0'\n")
    yield Toolchain(tree, tools, packages, bare_venv / "bin/python", torch, argv)
    shutil.rmtree(torch, ignore_errors=True)


def test_build_configures_cmake_for_the_environment_behind_the_isolation(toolchain: Toolchain) -> None:
    assert "the native build failed (exit 3)" in toolchain.complaint()
    argv = toolchain.argv.read_text().splitlines()
    assert "-GNinja" in argv
    assert f"-DTORCH_DIR={toolchain.torch}" in argv
    assert f"-DPython_EXECUTABLE={toolchain.python}" in argv
    assert f"-DCMAKE_MAKE_PROGRAM={toolchain.tools / 'ninja'}" in argv
    assert "-Dpybind11_DIR=/pybind11-cmake" in argv
    assert "-DCMAKE_BUILD_TYPE=Release" in argv
    assert f"-DMMVAE_FAST_VERSION={declared_version()}" in argv


def test_torch_dir_overrides_the_search(toolchain: Toolchain, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(toolchain.torch, elsewhere)
    toolchain.complaint(MMVAE_FAST_TORCH_DIR=str(elsewhere))
    assert f"-DTORCH_DIR={elsewhere}" in toolchain.argv.read_text().splitlines()
    assert "MMVAE_FAST_TORCH_DIR=/nowhere is not" in toolchain.complaint(MMVAE_FAST_TORCH_DIR="/nowhere")


def test_no_torch(toolchain: Toolchain) -> None:
    shutil.rmtree(toolchain.torch)
    assert "install torch >= 2.10 first (pip install torch)" in toolchain.complaint()


def test_old_torch(toolchain: Toolchain) -> None:
    (toolchain.torch / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    assert "is torch 2.9.1+cpu: pip install --upgrade torch" in toolchain.complaint()


@pytest.mark.parametrize(
    ("missing", "fix"),
    [
        ("tools/c++", "no C++ compiler was found: install one"),
        ("tools/cmake", "cmake was not found, and the kernels are built with it: pip install cmake"),
        ("tools/ninja", "ninja was not found, and the kernels are built with it: pip install cmake ninja"),
        ("packages/pybind11.py", "pip install pybind11"),
    ],
)
def test_missing_tool(toolchain: Toolchain, tmp_path: Path, missing: str, fix: str) -> None:
    (tmp_path / missing).unlink()
    assert fix in toolchain.complaint()
    assert not toolchain.argv.exists()  # said before anything was started


def test_named_compiler_is_missing(toolchain: Toolchain) -> None:
    assert "CXX=no-such-compiler -O2 was not found" in toolchain.complaint(CXX="no-such-compiler -O2")


@pytest.mark.parametrize(
    ("torch_cuda", "force", "built"),
    [("None", None, False), ("'12.8'", None, True), ("'12.8'", "0", False), ("None", "1", True)],
)
def test_cuda_kernels_are_built_for_a_torch_with_cuda_or_on_demand(
    toolchain: Toolchain, torch_cuda: str, force: str | None, built: bool
) -> None:
    (toolchain.torch / "version.py").write_text(f"__version__ = '2.10.0'\ncuda: Optional[str] = {torch_cuda}\n")
    compiler = toolchain.tools / "nvcc"
    shutil.copy(toolchain.tools / "c++", compiler)
    toolchain.complaint(**({"FORCE_CUDA": force} if force else {}))
    argv = toolchain.argv.read_text().splitlines()
    assert f"-DMMVAE_FAST_CUDA={'ON' if built else 'OFF'}" in argv
    assert (f"-DCMAKE_CUDA_COMPILER={compiler}" in argv) == built


def test_forced_cuda_without_nvcc(toolchain: Toolchain) -> None:
    complaint = toolchain.complaint(FORCE_CUDA="1", CUDACXX="/nowhere/nvcc")
    assert (
        "FORCE_CUDA=1 asks for the CUDA kernels, and /nowhere/nvcc was not found: install the CUDA toolkit" in complaint
    )
    assert not toolchain.argv.exists()
    (toolchain.torch / "version.py").write_text("__version__ = '2.10.0'\ncuda = '12.8'\n")
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        toolchain.complaint()  # not asked for: a torch with CUDA alone does not demand it
        assert "-DMMVAE_FAST_CUDA=OFF" in toolchain.argv.read_text().splitlines()


def test_metadata_is_refused_without_torch(toolchain: Toolchain) -> None:
    """pip asks for the metadata before it downloads the dependencies: the sentence comes before the gigabytes."""
    shutil.rmtree(toolchain.torch)
    env = environment(PATH=str(toolchain.tools), PYTHONPATH=str(toolchain.packages))
    result = run(toolchain.python, "setup.py", "-q", "dist_info", cwd=toolchain.tree, env=env)
    assert result.returncode != 0
    assert "mmvae_fast: no PyTorch was found" in result.stderr
    result = run(toolchain.python, "setup.py", "-q", "dist_info", cwd=toolchain.tree, env=env | NO_EXT)
    assert result.returncode == 0, result.stderr


# --- what is shipped


def declared_version() -> str:
    match = re.search(r'^__version__ = "(.+)"$', (ROOT / "mmvae_fast/__init__.py").read_text(), re.MULTILINE)
    assert match
    return match[1]


def test_pure_python_wheel(tree: Path, tmp_path: Path) -> None:
    (tree / "mmvae_fast/_C.abi3.so").touch()  # left behind by an editable install: not for this wheel
    succeed(sys.executable, "setup.py", "-q", "bdist_wheel", "-d", tmp_path, cwd=tree, env=environment(**NO_EXT))
    wheel = tmp_path / f"mmvae_fast-{declared_version()}-py3-none-any.whl"
    assert [path.name for path in tmp_path.glob("*.whl")] == [wheel.name]
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".so", ".pyd", ".cpp", ".h"))]
    modules = {path.relative_to(tree).as_posix() for path in tree.glob("mmvae_fast/**/*.py")}
    presets = {path.relative_to(tree).as_posix() for path in tree.glob("mmvae_fast/presets/*.yaml")}
    assert presets
    assert modules | presets | {"mmvae_fast/py.typed"} == {name for name in names if name.startswith("mmvae_fast/")}

    code = "import mmvae_fast, mmvae_fast as again; print(mmvae_fast.kernels_available(), mmvae_fast.__file__)"
    # -S: not this environment, whose editable install would add its own kernels.
    env = environment(PYTHONPATH=str(wheel))
    imported = run(sys.executable, "-S", "-W", "always", "-c", code, cwd=tmp_path, env=env)
    assert imported.stdout.split() == ["False", str(wheel / "mmvae_fast/__init__.py")], imported.stderr
    assert imported.stderr.count("RuntimeWarning: mmvae_fast was built without its native kernels") == 1


def test_sdist_holds_the_native_sources(tree: Path, tmp_path: Path) -> None:
    (tree / "mmvae_fast/_C.abi3.so").touch()
    succeed(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=tree)
    (archive,) = tmp_path.glob("*.tar.gz")
    top = f"mmvae_fast-{declared_version()}/"
    with tarfile.open(archive) as tar:
        names = {member.name.removeprefix(top) for member in tar.getmembers()}
    native = {path.relative_to(tree).as_posix() for path in tree.glob("csrc/**/*") if path.is_file()}
    assert native
    build = {"CMakeLists.txt", "setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md"}
    assert native | build | {"mmvae_fast/presets/vae.yaml"} <= names
    assert not [name for name in names if name.endswith(".so")]


def test_import_is_light() -> None:
    heavy = {"torch", "numpy", "lightning", "onnx", "onnxruntime"}
    code = f"import sys, mmvae_fast; print(*{heavy} & sys.modules.keys())"
    assert succeed(sys.executable, "-W", "ignore", "-c", code).split() == []


def test_makefile_installs_the_build_requirements() -> None:
    (line,) = re.findall(r"\$\(PIP\) install (.*setuptools.*)", (ROOT / "Makefile").read_text())
    assert line.replace("'", "").split() == PROJECT["build-system"]["requires"]


# --- what is declared


def brought_by(requirements: list[str]) -> set[str]:
    """Normalised names of the distributions a requirement list brings, through our own extras."""
    names = set()
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement)
        assert match, requirement
        if match[1] == PROJECT["project"]["name"]:
            for extra in match[2].split(","):
                names |= brought_by(PROJECT["project"]["optional-dependencies"][extra])
        else:
            names.add(normal(match[1]))
    return names


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports() -> Iterator[tuple[str, str, str | None]]:
    """(file, top-level module, extra named by `require(...)` or None) of every third-party import in the package."""
    for path in sorted(ROOT.glob("mmvae_fast/**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            found: list[tuple[str, str | None]] = []
            if isinstance(node, ast.Import):
                found = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found = [(node.module, None)]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "require":
                module, extra = node.args[0], node.keywords[0].value
                if isinstance(module, ast.Constant) and isinstance(extra, ast.Constant):
                    found = [(module.value, extra.value)]
            for module_name, extra_name in found:
                top = module_name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "mmvae_fast":
                    yield f"{name}:{node.lineno}", top, extra_name


def test_every_import_is_declared_and_every_named_extra_brings_it() -> None:
    project = PROJECT["project"]
    core = brought_by(project["dependencies"])
    extras = {name: brought_by(listed) for name, listed in project["optional-dependencies"].items()}
    distributions = packages_distributions()
    used = set()
    for where, module, extra in imports():
        owners = {normal(owner) for owner in distributions.get(module, [module])}
        used |= owners
        if extra is None:
            assert owners & (core | extras["all"]), f"{where} imports {module}, which no dependency or extra brings"
        else:
            assert extra in extras, f"{where} names the extra {extra!r}, which pyproject.toml does not have"
            assert owners & extras[extra], f"{where}: the extra {extra!r} does not bring {module}"
    # onnxscript is what torch.onnx.export imports; nothing here does.
    assert core | extras["all"] <= used | {"onnxscript"}, "an extra brings what nothing imports"


# --- for real


@pytest.mark.slow
def test_isolated_pip_install(tree: Path, tmp_path: Path) -> None:
    """`pip install .`, with its build isolation, into a fresh environment that has torch."""
    python = tmp_path / "venv/bin/python"
    succeed(sys.executable, "-m", "venv", python.parent.parent)
    succeed(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "torch")
    succeed(python, "-m", "pip", "install", "-q", ".", cwd=tree)

    site_packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    installed = {path.name for path in (site_packages / "mmvae_fast").iterdir()}
    assert {"_C.abi3.so", f"_native{sysconfig.get_config_var('EXT_SUFFIX')}", "py.typed"} <= installed
    (tags,) = site_packages.glob("mmvae_fast-*.dist-info/WHEEL")
    cpython = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert f"Tag: {cpython}-{cpython}-linux" in tags.read_text()

    code = """
        import torch, mmvae_fast, mmvae_fast.functional as F
        assert mmvae_fast.kernels_available()
        mu, logvar = torch.randn(2, 3, 5, dtype=torch.float64)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1)
        torch.testing.assert_close(F.gaussian_kl(mu, logvar), kl)
        import mmvae_fast._native
    """
    succeed(python, "-W", "error", "-c", "if True:" + code, cwd=tmp_path)
    version = f"import importlib.metadata as m; assert m.version('mmvae_fast') == '{declared_version()}'"
    succeed(python, "-c", version, cwd=tmp_path)
