import importlib.machinery
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="needs the 'cli' extra")

from typer.testing import CliRunner

import mmvae_fast
from mmvae_fast import doctor
from mmvae_fast.cli import INTERRUPTED, app

ROOT = Path(mmvae_fast.__file__).parents[1]


def call(*args: str):
    return CliRunner().invoke(app, args)


def command(*args: str, **options):
    """``python ...`` in a process of its own, able to import this very package."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        **options,
    )


def test_help_names_the_commands_and_imports_nothing_heavy():
    process = command("-X", "importtime", "-m", "mmvae_fast", "--help")
    out, imports = process.communicate()
    assert process.returncode == 0
    assert "demo" in out
    assert "doctor" in out
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in imports.splitlines()}
    assert "typer" in imported
    assert not {"torch", "numpy", "lightning", "onnx", "onnxruntime", "librosa", "sklearn", "matplotlib"} & imported


def test_version():
    result = call("--version")
    assert result.exit_code == 0
    assert result.output.strip() == f"mmvae_fast {mmvae_fast.__version__}"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["dmo"], "dmo"),
        (["demo", "--epoch"], "--epoch"),
        (["demo", "--epochs", "many"], "--epochs"),
        (["demo", "--epochs", "0"], "--epochs"),
        (["demo", "--draws", "1"], "--draws"),
        (["demo", "extra"], "extra"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_it(args, named):
    result = call(*args)
    assert result.exit_code == 2
    assert named in result.output + result.stderr
    assert "Traceback" not in result.output + result.stderr


def test_demo_on_a_file_is_one_clear_error(tmp_path):
    pytest.importorskip("rich")
    target = tmp_path / "out"
    target.write_text("mine")
    result = call("demo", "--out", str(target))
    assert result.exit_code == 1
    assert "expected a folder" in result.stderr
    assert "Traceback" not in result.stderr
    assert target.read_text() == "mine"


def test_demo_says_which_extra_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = call("demo", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "pip install 'mmvae_fast[demo]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 143)])
def test_a_stop_while_training_is_one_sentence_and_its_code(tmp_path, number, code):
    for module in ("lightning", "sklearn", "librosa"):
        pytest.importorskip(module)
    process = command("-m", "mmvae_fast", "demo", "--epochs", "1000", "--draws", "200", cwd=tmp_path)
    try:
        for line in process.stderr:
            if line.startswith("epoch "):  # it trains
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    said = [line for line in err.splitlines() if not line.startswith("epoch ")]
    assert said == ["Stopped; demo_out is as it was before."]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def below_target(monkeypatch):
    """A demo that is finished at once, with one figure too low; returns the settings it was called with."""
    pytest.importorskip("rich")
    from mmvae_fast.demo import report
    from mmvae_fast.demo import run as demo

    called = []

    def run(out, settings, console):
        called.append(settings)
        figures = {**dict.fromkeys(report.FIGURES, 1.0), "text_to_image": 0.5}
        onnx = {"worst": 1e-7, "without_torch_worst": 1e-7}
        return demo.Result(out, settings, {"figures": figures, "onnx": onnx}, {"total": 1.0})

    monkeypatch.setattr(demo, "run", run)
    return called


@pytest.mark.parametrize(
    ("args", "code"),
    [([], 1), (["--seed", "3", "--threads", "2"], 1), (["--epochs", "2"], 0), (["--draws", "100"], 0)],
)
def test_a_missed_target_is_a_failure_of_the_default_recipe_only(below_target, args, code):
    result = call("demo", *args)
    assert result.exit_code == code
    assert "Below target: text_to_image." in result.output
    assert "report.html" in result.output


def test_the_default_recipe_of_the_command_is_that_of_the_demo(below_target):
    from mmvae_fast.demo.run import Settings

    call("demo")
    assert below_target == [Settings()]


@pytest.mark.parametrize("name", ["[red]demo", ":smile:", "[/]"])
def test_paths_are_printed_as_they_are(below_target, name):
    assert f"\n  {Path(name) / 'report.html'}\n" in call("demo", "--out", name, "--epochs", "1").output


def test_demo_refuses_folders_of_others_in_one_sentence(tmp_path):
    pytest.importorskip("rich")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "thesis.tex").write_text("mine")
    result = call("demo", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "thesis.tex" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "onnx" / "thesis.tex").read_text() == "mine"


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_tells_versions_and_kernels():
    import torch

    result = call("doctor")
    assert result.exit_code == 0
    assert mmvae_fast.__version__ in result.output
    assert torch.__version__ in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("kernels ")]
    assert ("loaded (" in line) == mmvae_fast.kernels_available()
    assert result.output.splitlines()[-1] == "OK"


def test_doctor_json():
    result = call("doctor", "--json")
    found = json.loads(result.output)
    assert result.exit_code == 0
    assert found["mmvae_fast"] == mmvae_fast.__version__
    assert found["problems"] == []
    assert found["kernels"]["built"] == found["kernels"]["loaded"] == mmvae_fast.kernels_available()
    if found["native"]["loaded"]:
        assert found["native"]["cpu_capability"] in ("DEFAULT", "AVX2", "AVX512")
        assert found["native"]["build_info"]["built_with_torch"]


@pytest.fixture
def broken_kernels(monkeypatch):
    """_C is there, and the linker refuses it."""
    name, real_spec, real_import = "mmvae_fast._C", doctor.importlib.util.find_spec, doctor.importlib.import_module

    def import_module(module):
        if module == name:
            raise ImportError("_C.abi3.so: undefined symbol: aoti_torch_nothing")
        return real_import(module)

    spec = importlib.machinery.ModuleSpec(name, None, origin="/somewhere/_C.abi3.so")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda m: spec if m == name else real_spec(m))
    monkeypatch.setattr(doctor.importlib, "import_module", import_module)


def test_doctor_repeats_the_load_error_and_exits_with_1(broken_kernels):
    result = call("doctor")
    assert result.exit_code == 1
    assert "BUILT BUT DOES NOT LOAD" in result.output
    assert "ImportError: _C.abi3.so: undefined symbol: aoti_torch_nothing" in result.output
    as_json = call("doctor", "--json")
    assert as_json.exit_code == 1
    found = json.loads(as_json.output)
    assert "undefined symbol" in found["kernels"]["error"]
    assert any("_C was built but does not load" in problem for problem in found["problems"])
    assert all(f"problem: {problem}" in result.output.splitlines() for problem in found["problems"])
    assert "OK" not in result.output.splitlines()


def fits() -> dict:
    """What examine() finds where all is well and everything was built."""
    build = {"version": mmvae_fast.__version__, "built_with_torch": "2.13.0+cpu", "minimum_torch": "2.10"}
    loaded = {"built": True, "loaded": True, "file": "/there.so", "error": None}
    return {
        "torch": {"version": "2.10.0", "installed": True, "error": None},
        "kernels": dict(loaded),
        "cuda_kernels": NOT_BUILT,
        "native": {**loaded, "build_info": build},
    }


NOT_BUILT = {"built": False, "loaded": False, "file": None, "error": None}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"kernels": NOT_BUILT, "native": NOT_BUILT}, None),  # a choice
        ({"torch": {"version": None, "installed": False, "error": "No module"}}, None),  # a machine that only serves
        ({"native": NOT_BUILT}, "mmvae_fast/_C was built for this Python but mmvae_fast/_native was not"),
        (
            {"torch": {"version": "2.9.1+cu128", "installed": True, "error": None}},
            r"2\.9\.1\+cu128, expected 2\.10 or newer",
        ),
        ({"torch": {"version": "2.100.0", "installed": True, "error": None}}, None),
        ({"cuda_kernels": {"built": True, "loaded": False, "file": "/there.so", "error": None}}, None),  # torch without
        ({"cuda_kernels": {**NOT_BUILT, "built": True, "error": "OSError: libcuda"}}, "_C_cuda was built but does not"),
        (
            {"torch": {"version": "2.13.0", "installed": True, "error": None, "cuda_devices": ["NVIDIA H100 (sm_90)"]}},
            "finds a CUDA device, but mmvae_fast/_C_cuda was not built",
        ),
        (
            {"torch": {"version": None, "installed": True, "error": "OSError: libc10"}},
            "does not import: OSError: libc10",
        ),
    ],
)
def test_doctor_says_what_does_not_fit(changes, problem):
    problems = doctor._problems(**{**fits(), **changes})
    assert len(problems) == (problem is not None)
    assert problem is None or re.search(problem, problems[0])


def test_doctor_notices_kernels_of_another_version():
    found = fits()
    found["native"]["build_info"]["version"] = "0.0.1"
    (problem,) = doctor._problems(**found)
    assert f"the kernels are of mmvae_fast 0.0.1, expected {mmvae_fast.__version__}" in problem


@pytest.mark.skipif(not mmvae_fast.kernels_available(), reason="built without native kernels")
def test_doctor_notices_kernels_of_other_sources():
    """They load, but the package refuses them."""
    code = "import mmvae_fast._C as c; c.OPS_VERSION = -1; from mmvae_fast.cli import main; main()"
    process = command("-c", f"import torch; {code}", "doctor")
    out, err = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "was built from other sources" in out.splitlines()[-1]


def test_doctor_works_without_torch():
    code = "import sys; sys.modules['torch'] = None; from mmvae_fast.cli import main; main()"
    process = command("-c", code, "doctor")
    out, err = process.communicate()
    assert "Traceback" not in err
    assert any(line.startswith("torch ") and "missing" in line for line in out.splitlines())
    assert process.returncode == mmvae_fast.kernels_available()  # without kernels, it is a machine that only serves


def test_doctor_compares_extras_with_what_is_installed(monkeypatch):
    class Distribution:
        requires = (
            "torch>=2.10",
            'numpy>=1 ; extra == "runtime"',
            "surely-not-there>=1.2; extra == 'runtime'",
            'numpy>=999; extra == "future"',
            'mmvae_fast[runtime]; extra == "all"',
        )

    real = doctor.metadata.distribution
    monkeypatch.setattr(
        doctor.metadata, "distribution", lambda name: Distribution if name == "mmvae_fast" else real(name)
    )
    extras = doctor._extras()
    assert [p["package"] for p in extras["runtime"]] == ["numpy", "surely-not-there"]
    assert extras["runtime"][0]["fits"] is True
    assert extras["runtime"][1]["found"] is None
    assert extras["future"][0]["fits"] is False
    assert "all" not in extras
    result = call("doctor")
    assert "surely-not-there MISSING" in result.output
    assert "(WANTED >=999)" in result.output
    assert result.exit_code == 0  # extras are a choice


def test_an_exit_that_no_training_asked_for_stays_and_needs_no_torch():
    program = (
        "import sys\n"
        "from mmvae_fast.cli.app import plain_errors\n"
        "sys.modules['torch'] = None\n"
        "with plain_errors():\n"
        "    sys.exit(7)\n"
    )
    process = command("-c", program)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7 and err == ""
