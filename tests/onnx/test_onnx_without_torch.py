"""Serving where torch and onnx cannot be imported at all, against results that torch computed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import torch

SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxscript", "onnx_ir", "lightning"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
try:
    import torch
except ImportError:
    pass
else:
    sys.exit("torch could be imported: this test tests nothing")

import numpy as np
from mmvae_fast.onnx import Runtime

folder, wanted = sys.argv[1:]
expected = np.load(wanted)
runtime = Runtime.load(folder)
inputs = {name: expected["x_" + name] for name in runtime.modalities}
mask = expected["mask"]
posterior = runtime.encode(inputs, mask)
found = {"mu": posterior.mu, "logvar": posterior.logvar, "kl": posterior.kl}
found["z"] = runtime.posterior_sample(inputs, 3, seed=5, mask=mask)
for prefix, arrays in (
    ("decode_", runtime.decode(found["z"])),
    ("params_", runtime.decode(found["z"], params=True)),
    ("reconstruct_", runtime.reconstruct(inputs, mask)),
    ("sample_", runtime.sample(4, seed=9)),
):
    found |= {prefix + name: value for name, value in arrays.items()}
found["cross"] = runtime.cross_generate({"text": inputs["text"]}, "image")
found["words"] = runtime.tokenize(["a drawing of", "one cat"])
assert set(found) == {k for k in expected.files if k != "mask" and not k.startswith("x_")}
for name, value in found.items():
    assert value.dtype == expected[name].dtype, name
    np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
loaded = {m.split(".")[0] for m in sys.modules} & {"torch", "onnx", "onnxscript"}
assert not loaded, loaded
print("compared", len(found))
"""


def test_everything_the_runtime_does(mopoe, make_inputs, tmp_path):
    inputs = make_inputs()
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    model, batch = mopoe.model, {k: torch.from_numpy(v) for k, v in inputs.items()}
    with torch.no_grad():
        from mmvae_fast import functional

        posterior = model.encode(batch, torch.from_numpy(mask))
        z = posterior.sample(3, seed=5)
        kl = functional.gaussian_kl(posterior.mu, posterior.logvar)
        results = {"mu": posterior.mu, "logvar": posterior.logvar, "kl": kl, "z": z}
        for prefix, tensors in (
            ("decode_", model.decode(z)),
            ("params_", model.decode(z, params=True)),
            ("reconstruct_", model.reconstruct(batch, torch.from_numpy(mask))),
            ("sample_", model.sample(4, seed=9)),
        ):
            results |= {prefix + name: value for name, value in tensors.items()}
        results["cross"] = model.translate({"text": batch["text"]}, "image")
        results["words"] = model.modalities["text"].tokenize(["a drawing of", "one cat"])
    arrays = {k: v.numpy() for k, v in results.items()} | {f"x_{k}": v for k, v in inputs.items()} | {"mask": mask}
    np.savez(tmp_path / "expected.npz", **arrays)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(mopoe.folder), str(tmp_path / "expected.npz")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"compared {len(results)}"
