"""The page in headless Chromium, used as a person would: sliders, translation, and a damaged bundle."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvae_fast.modalities import Image, Text, Vector
from mmvae_fast.models import JMVAE, MVAE, MMVAEPlus
from mmvae_fast.onnx import Runtime, export_onnx
from mmvae_fast.systems import GAN

DIST = Path(__file__).resolve().parents[2] / "web/dist"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.skipif(not (DIST / "ort").is_dir(), reason="needs the page: make web"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page, and beside it a bundle and a damaged one."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="needs the 'onnx' extra")
    torch.manual_seed(0)
    modalities = {
        "image": Image((1, 6, 5), hidden=(16,)),
        "text": Text(["a", "b", "größe"], 4, hidden=(16,), embedding_dim=4),
        "v": Vector(3, hidden=(8,)),
    }
    folder = tmp_path_factory.mktemp("web") / "site"
    shutil.copytree(DIST, folder)
    shutil.copy(Path(__file__).with_name("check.html"), folder)
    export_onnx(MVAE(modalities, 4), folder / "bundle", verify=False)
    reading = {
        "image": {"kind": "image", "fit": "crop", "background": 0.2},
        "v": {"kind": "vector", "mean": [1.0, -2.0, 30.0], "sd": [0.5, 2.0, 10.0]},
    }
    export_onnx(JMVAE(modalities, 4), folder / "joint", verify=False, preprocessing=reading, sampling="philox")
    export_onnx(GAN({"image": modalities["image"]}, 4), folder / "gan", verify=False)
    private = MMVAEPlus(modalities, 4, private_dim=2)
    export_onnx(private, folder / "private", verify=False)
    shutil.copytree(folder / "bundle", folder / "damaged")
    with open(folder / "damaged/decoder_v.onnx", "ab") as file:
        file.write(b"x")
    return folder


def visit(site: Path, bundle: str, profile: Path) -> dict:
    """What check.html reports."""
    reports: list[dict] = []
    reported = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def guess_type(self, path: str) -> str:
            return "text/javascript" if path.endswith(".mjs") else super().guess_type(path)

        def do_POST(self) -> None:
            reports.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            reported.set()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/check.html?bundle={bundle}"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        options += [
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
        ]  # without the port, a headless page ends at once
        browser = subprocess.Popen(
            [CHROMIUM, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            assert reported.wait(90), "the page reported nothing"
        finally:
            os.killpg(browser.pid, signal.SIGTERM)  # with its children
            browser.wait(20)
            server.shutdown()
    return reports[0]


def same(shown: dict, runtime: Runtime, z: np.ndarray) -> None:
    expected = runtime.decode(z[None])
    assert shown["text"] == runtime.detokenize(expected["text"])[0]
    np.testing.assert_allclose([float(v) for v in shown["v"].split(",")], expected["v"][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.array(shown["image"]) / 255, expected["image"][0, 0].ravel(), atol=1.5 / 255)


def test_sliders_and_translation_show_what_the_runtime_makes(site, tmp_path):
    found = visit(site, "bundle", tmp_path)
    assert "failed" not in found, found
    runtime = Runtime.load(site / "bundle")
    assert found["status"] == "MVAE, 4 latent dimensions" and found["sliders"] == 4
    same(found["origin"], runtime, np.zeros(4, np.float32))
    same(found["moved"], runtime, np.array([1.5, -2, 0, 0], np.float32))
    assert found["nothing"] == "Nothing is given to translate."
    assert found["long"] == "text: 6 words, expected at most 4"
    inputs = {"text": runtime.tokenize(["a b"]), "v": np.array([[1, 2, 3]], np.float32)}
    z = runtime.encode(inputs).mu[0]
    np.testing.assert_allclose(found["translated"]["z"], z, atol=0.006)  # a slider's step
    same(found["translated"], runtime, np.array(found["translated"]["z"], np.float32))
    assert found["translated"]["status"] == "Made from text, v."


@pytest.mark.parametrize(
    ("bundle", "message"),
    [("damaged", "decoder_v.onnx: damaged, its SHA-256 is"), ("nowhere", "manifest.json: the server answers 404")],
)
def test_a_bundle_that_is_no_good_is_said(site, tmp_path, bundle, message):
    found = visit(site, bundle, tmp_path)
    assert found.get("error", "").startswith(message), found


def test_a_joint_encoder_and_what_the_bundle_says_of_reading(site, tmp_path):
    found = visit(site, "joint", tmp_path)
    assert "failed" not in found, found
    runtime = Runtime.load(site / "joint")
    given = {"text": runtime.tokenize(["a b"]), "v": runtime.read("v", [[1.0, 2.0, 3.0]])}
    picture = np.zeros((6, 15, 3), np.uint8)  # as check.html paints it, on the background
    picture[:3, :, 0] = np.repeat([0, 102, 255], 5)
    picture[3:, :, 0] = round(255 * 0.2)
    picture[..., 1:] = picture[..., :1]
    whole = {**given, "image": runtime.read("image", [picture])}
    for shown, inputs in ((found["translated"], given), (found["whole"], whole)):
        np.testing.assert_allclose(shown["z"], runtime.encode(inputs).point[0], atol=0.006)  # a slider's step
    z = np.array(found["whole"]["z"], np.float32)
    units = runtime.show("v", runtime.decode(z[None])["v"])[0]
    np.testing.assert_allclose([float(v) for v in found["whole"]["v"].split(",")], units, rtol=1e-3, atol=0.05)
    assert found["whole"]["status"] == "Made from image, text, v."


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [("gan", "no latent space that encoders lead to"), ("private", "its decoders take more than the shared latent")],
)
def test_what_the_page_cannot_show_it_refuses_with_a_reason(site, tmp_path, bundle, reason):
    found = visit(site, bundle, tmp_path)
    assert reason in found.get("error", ""), found
