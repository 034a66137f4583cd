"""What was built against what is found here: the first thing to ask of an installation that misbehaves."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import re
import sys
from importlib import metadata
from typing import Any

from mmvae_fast import __version__

_DISTRIBUTION = "mmvae_fast"
_UNKNOWN_VERSION = "0+unknown"  # of a build by hand, CMakeLists.txt says
_OF_AN_EXTRA = re.compile(  # of "name[others] (>=1.2) ; extra == 'train'": name, version, extra
    r"""([\w.-]+)(?:\[[^]]*\])?\s*\(?([^;()]*?)\)?\s*;.*extra\s*==\s*["']([^"']+)["'].*"""
)


def examine() -> dict[str, Any]:
    """Everything there is to know, as JSON-ready data; under "problems" what does not fit, in sentences.

    Never raises: what is broken is part of the answer.
    """
    found: dict[str, Any] = {
        "mmvae_fast": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "torch": _torch(),
        "kernels": _kernels(),
        "cuda_kernels": _cuda_kernels(),
        "native": _native(),
        "extras": _extras(),
    }
    return {**found, "problems": _problems(**found)}


def _problems(
    torch: dict[str, Any], kernels: dict[str, Any], cuda_kernels: dict[str, Any], native: dict[str, Any], **_: Any
) -> list[str]:
    """A build without kernels is a choice, and so is a machine without torch or some extra."""
    problems = []
    if torch["installed"] and torch["error"]:
        problems.append(f"torch is installed but does not import: {torch['error']}")
    for name, part in (("_C", kernels), ("_native", native)):
        if part["built"] and not part["loaded"]:
            problems.append(f"mmvae_fast/{name} was built but does not load: {part['error']}")
    if cuda_kernels["error"]:
        problems.append(f"mmvae_fast/_C_cuda was built but does not load: {cuda_kernels['error']}")
    if kernels["built"] and not cuda_kernels["built"] and torch.get("cuda_devices"):
        problems.append(
            f"torch {torch['version']} finds a CUDA device, but mmvae_fast/_C_cuda was not built, so that CUDA tensors "
            "run as plain PyTorch; install the CUDA toolkit and reinstall mmvae_fast with FORCE_CUDA=1"
        )
    if kernels["built"] != native["built"]:
        there, lacking = ("_C", "_native") if kernels["built"] else ("_native", "_C")
        problems.append(f"mmvae_fast/{there} was built for this Python but mmvae_fast/{lacking} was not; reinstall")
    if native["loaded"]:
        build = native["build_info"]
        if build["version"] not in (__version__, _UNKNOWN_VERSION):
            problems.append(f"the kernels are of mmvae_fast {build['version']}, expected {__version__}; reinstall")
        if torch["version"] and _release(torch["version"]) < _release(build["minimum_torch"]):
            problems.append(
                f"torch is {torch['version']}, expected {build['minimum_torch']} or newer (the kernels were built with "
                f"{build['built_with_torch']})"
            )
    return problems


def _release(version: str) -> tuple[int, ...]:
    """(2, 13) of "2.13.0+cpu"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def as_json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2)


def as_text(found: dict[str, Any]) -> str:
    """The same for people: aligned lines, and at the end "OK" or what is wrong."""
    torch, kernels, native = found["torch"], found["kernels"], found["native"]
    lines = [
        ("mmvae_fast", found["mmvae_fast"]),
        ("python", f"{found['python']} ({found['executable']})"),
        ("platform", f"{found['platform']}, {found['cores']} cores"),
        ("torch", _describe_torch(torch)),
        ("kernels", _describe_part(kernels, "not built: every function runs as plain PyTorch")),
        ("CUDA kernels", _describe_cuda(found["cuda_kernels"])),
        ("native", _describe_part(native, "not built: NumPy noise runs as plain NumPy")),
    ]
    if native["loaded"]:
        lines.append(("  instruction set", f"{native['cpu_capability']} (in use)"))
        lines += [(f"  {key.replace('_', ' ')}", _plain(value)) for key, value in native["build_info"].items()]
    verdict = "\n".join(f"problem: {problem}" for problem in found["problems"]) or "OK"
    return f"{_aligned(lines)}\n\n{_describe_extras(found['extras'])}\n\n{verdict}"


def _aligned(lines: list[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


# --- torch and the kernels --------------------------------------------------------------------------------------------


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a torch that is damaged fails in many ways
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        return {"version": None, "installed": not missing, "error": _verbatim(error)}
    return {
        "version": torch.__version__,
        "installed": True,
        "error": None,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "cuda_devices": [_describe_device(index) for index in range(torch.cuda.device_count())],
    }


def _describe_torch(torch: dict[str, Any]) -> str:
    if torch["version"] is None:
        return f"{'DOES NOT IMPORT' if torch['installed'] else 'missing'}: {torch['error']}"
    cuda = f"CUDA {torch['cuda']}, {', '.join(torch['cuda_devices']) or 'no device'}" if torch["cuda"] else "no CUDA"
    return f"{torch['version']}, {torch['threads']} thread(s), {torch['cpu_capability']}, {cuda}"


def _describe_device(index: int) -> str:
    """ "NVIDIA H100 (sm_90)"."""
    import torch

    device = torch.cuda.get_device_properties(index)
    return f"{device.name} (sm_{device.major}{device.minor})"


def _kernels() -> dict[str, Any]:
    """The ops for torch, ``mmvae_fast/_C``, by way of who knows whether they are of these sources."""
    return _load("mmvae_fast._C", through="mmvae_fast._ext")


def _cuda_kernels() -> dict[str, Any]:
    """The same for CUDA, ``mmvae_fast/_C_cuda``; not loaded where torch has no CUDA, and that is no error."""
    spec = importlib.util.find_spec("mmvae_fast._C_cuda")
    try:
        import torch

        has_cuda = torch.version.cuda is not None
    except Exception:  # _torch() tells of it
        has_cuda = False
    if spec is not None and not has_cuda:
        return {"built": True, "loaded": False, "file": spec.origin, "error": None}
    return _load("mmvae_fast._C_cuda", through="mmvae_fast._ext")


def _native() -> dict[str, Any]:
    """The kernels for NumPy, ``mmvae_fast/_native``, which also know how they were built."""
    part = _load("mmvae_fast._native")
    if part["loaded"]:
        module = importlib.import_module("mmvae_fast._native")
        part["cpu_capability"] = module.cpu_capability()
        part["build_info"] = dict(module.build_info())
    return part


def _load(module: str, through: str | None = None) -> dict[str, Any]:
    spec = importlib.util.find_spec(module)
    if spec is None:
        return {"built": False, "loaded": False, "file": None, "error": None}
    try:
        for name in (module, through or module):
            importlib.import_module(name)
    except Exception as error:
        return {"built": True, "loaded": False, "file": spec.origin, "error": _verbatim(error)}
    return {"built": True, "loaded": True, "file": spec.origin, "error": None}


def _describe_part(part: dict[str, Any], absent: str) -> str:
    if not part["built"]:
        return absent
    verdict = f"({part['file']})"
    return f"loaded {verdict}" if part["loaded"] else f"BUILT BUT DOES NOT LOAD {verdict}: {part['error']}"


def _describe_cuda(part: dict[str, Any]) -> str:
    if part["built"] and not part["loaded"] and part["error"] is None:
        return f"built, not loaded: this torch has no CUDA ({part['file']})"
    return _describe_part(part, "not built: CUDA tensors run as plain PyTorch")


def _verbatim(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# --- optional packages ------------------------------------------------------------------------------------------------


def _extras() -> dict[str, list[dict[str, Any]]] | None:
    """For every extra the packages it brings, and the version found (None: missing). None if not installed."""
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    extras: dict[str, list[dict[str, Any]]] = {}
    for requirement in distribution.requires or ():
        match = _OF_AN_EXTRA.fullmatch(requirement)
        if match is None:  # of the core
            continue
        name, wanted, extra = match.groups()
        if re.sub("[-_.]+", "_", name) != _DISTRIBUTION:  # an extra that consists of others
            extras.setdefault(extra, []).append({"package": name, "wanted": wanted or None, **_found(name, wanted)})
    return extras


def _describe_extras(extras: dict[str, list[dict[str, Any]]] | None) -> str:
    if extras is None:
        return "extras: unknown, mmvae_fast runs from a source folder and is not installed"
    return "extras\n" + _aligned(
        [(f"  [{name}]", ", ".join(map(_describe_package, packages))) for name, packages in extras.items()]
    )


def _found(name: str, wanted: str) -> dict[str, Any]:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return {"found": None, "fits": False}
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        return {"found": version, "fits": None}  # nobody here who could tell
    return {"found": version, "fits": SpecifierSet(wanted).contains(version, prereleases=True)}


def _describe_package(package: dict[str, Any]) -> str:
    if package["found"] is None:
        return f"{package['package']} MISSING"
    unfit = f" (WANTED {package['wanted']})" if package["fits"] is False else ""
    return f"{package['package']} {package['found']}{unfit}"
