"""Serving with the oldest onnxruntime that we allow, in an environment of its own that has no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvae_fast.modalities import Image, Text, Vector
from mmvae_fast.models import JMVAE, MMVAE, MMVAEPlus, MoPoE
from mmvae_fast.onnx import export_onnx
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

SERVE = """
import json, sys, time
start = time.perf_counter()
from mmvae_fast.onnx import Runtime
Runtime.load
took = time.perf_counter() - start

import numpy as np
import onnxruntime

folder, rows, out = sys.argv[1:]
given = dict(np.load(rows))
found = {}
for path in sorted(p for p in __import__("pathlib").Path(folder).iterdir()):
    runtime = Runtime.load(path)
    inputs = {name: given[name] for name in runtime.modalities}
    system = runtime.manifest.system
    verbs = {}
    if system == "gan":
        verbs = {"sample": runtime.sample(3, seed=1)}
    elif system == "cyclegan":
        verbs = {"translate": {name: runtime.cross_generate(inputs, name) for name in inputs}}
    else:
        first = {name: inputs[name] for name in list(inputs)[:1]}
        for which, some in (("all", inputs), ("first", first)):
            verbs[f"encode {which}"] = runtime.encode(some)._asdict()
            verbs[f"reconstruct {which}"] = runtime.reconstruct(some)
        verbs["draws"] = {"z": runtime.posterior_sample(inputs, 2, seed=3)}
        verbs["sample"] = runtime.sample(3, seed=1)
        if system == "classifier":
            verbs["classify"] = {"p": runtime.predict_proba(inputs)}
    for verb, arrays in verbs.items():
        found.update({f"{path.name}/{verb}/{name}": x for name, x in arrays.items()})
np.savez(out, **found)
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps({"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "torch": "torch" in sys.modules,
                  "import_seconds": took, "peak_mb": int(peak[0]) / 1024}))
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory) -> Path:
    """The Python of an environment with the oldest onnxruntime, and the NumPy of its time."""
    (version,) = re.findall(r'^runtime = \["onnxruntime>=([\d.]+)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    folder = tmp_path_factory.mktemp("oldest") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    wanted = [f"onnxruntime=={version}", "numpy<2"]  # its first release
    install = [python, "-m", "pip", "install", "-q", "--retries", "1", "--only-binary", ":all:", *wanted]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip has no wheel of {wanted[0]} here: {done.stderr.strip().splitlines()[-1]}")
    return python


def bundles(folder: Path) -> None:
    torch.manual_seed(0)
    image, v = Image((1, 6, 5), hidden=(8,)), Vector(3, hidden=(8,))
    both = {"image": image, "v": v}
    made = {
        "mopoe": MoPoE({**both, "text": Text(["a", "b", "größe"], 4, hidden=(8,), embedding_dim=4)}, 4),
        "mmvae": MMVAE(both, 4),
        "mmvae_plus": MMVAEPlus(both, 4, private_dim=2),
        "jmvae": JMVAE(both, 4),
        "classifier": FusionClassifier(both, ["red", "blue"], 4),
        "gan": GAN({"image": image}, 4, classes=3, width=4),
        "cyclegan": CycleGAN(both, code_dim=4, width=4),
    }
    for name, model in made.items():
        export_onnx(model, folder / name, verify=False)
    export_onnx(made["mopoe"], folder / "mopoe_seeded", verify=False, sampling="philox")


def serve(python: str | Path, folder: Path, rows: Path, out: Path) -> dict:
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-W", "error::UserWarning", "-c", SERVE, folder, rows, out],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kind_of_bundle_gives_what_it_gives_here(oldest, tmp_path):
    bundles(tmp_path / "bundles")
    rng = np.random.default_rng(0)
    given = {"image": rng.random((4, 1, 6, 5), np.float32), "v": rng.normal(size=(4, 3)).astype(np.float32)}
    np.savez(tmp_path / "rows.npz", **given, text=rng.integers(0, 3, (4, 4)))
    then = serve(oldest, tmp_path / "bundles", tmp_path / "rows.npz", tmp_path / "then.npz")
    now = serve(sys.executable, tmp_path / "bundles", tmp_path / "rows.npz", tmp_path / "now.npz")
    print("\n", then, "\n", now)
    assert then["onnxruntime"] != now["onnxruntime"] and then["numpy"].startswith("1.")
    assert not then["torch"] and not now["torch"]
    assert then["import_seconds"] < 10 and then["peak_mb"] < 500  # torch alone takes that much
    with np.load(tmp_path / "then.npz") as old, np.load(tmp_path / "now.npz") as new:
        assert set(old.files) == set(new.files) and len(old.files) > 50
        for name in new.files:
            assert old[name].dtype == new[name].dtype, name
            np.testing.assert_allclose(old[name], new[name], rtol=1e-4, atol=1e-5, err_msg=name)
