"""Serves an exported model with NumPy and ONNX Runtime alone: no torch, no onnx, no mmvae_fast kernels."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmvae_fast import _lazy, _words
from mmvae_fast.onnx import inputs as checks
from mmvae_fast.onnx import integers
from mmvae_fast.onnx import manifest as manifests
from mmvae_fast.onnx.errors import BadDtype, BadShape, BadValue, BundleError, UnknownModality, unknown
from mmvae_fast.onnx.manifest import FUSION_PART, IO, Manifest, ModalitySpec, TensorSpec, decoder_part, encoder_part
from mmvae_fast.onnx.noise import philox_normal

Inputs = Mapping[str, Any]
Mask = Mapping[str, Any] | Any | None

_ORT_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}


class Posterior(NamedTuple):
    """q(z | what was observed): mean and log-variance [B, D], and its KL to N(0, I) in nats [B]."""

    mu: np.ndarray
    logvar: np.ndarray
    kl: np.ndarray


class Runtime:
    """An exported model, ready to serve. Make one with :meth:`load`; any number of threads may share it.

    ``inputs`` is a dict name -> array [B, *shape] that holds the modalities there are; ``mask`` says which rows of them
    are observed (None: all; name -> bool [B]; or bool [B, M] with the columns in the order of ``modalities``). An
    encoder runs on observed rows only and is not even loaded before there is one. A row with nothing observed gets the
    prior.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, threads: int = 1):
        self.folder = Path(folder)
        self.manifest = manifest
        self.modalities: dict[str, ModalitySpec] = {m.name: m for m in manifest.modalities}
        self.latent_dim = manifest.latent_dim
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    @staticmethod
    def load(folder: str | Path, *, threads: int | None = None) -> Runtime:
        """Check a bundle (manifest, and SHA-256 of every file) and get ready to run it; parts open on first use.

        Args:
            folder: what ``export_onnx`` wrote.
            threads: threads one call may use; None is 1, 0 is as many as there are cores. These models are small: a
                second thread inside an operator rarely pays, requests served in parallel by your own threads do.

        Raises:
            BundleError: damaged, incomplete, foreign or of another version; names the file. Later, from the first call
                that needs it, for a file that is no longer what it was here.
        """
        threads = 1 if threads is None else integers.count("threads", threads)
        manifest = manifests.read(folder)
        manifests.check_files(manifest, folder)
        return Runtime(folder, manifest, threads)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{m.name}: {m.kind} {list(m.shape)}" for m in self.modalities.values())
        return f"Runtime({self.manifest.model}, latent_dim={self.latent_dim}, {{{kinds}}}, folder={str(self.folder)!r})"

    @property
    def info(self) -> dict[str, Any]:
        """The manifest as plain data, and which parts are open."""
        return {**self.manifest.to_json(), "folder": str(self.folder), "loaded_parts": sorted(self._sessions)}

    # --- inference ----------------------------------------------------------------------------------------------------

    def encode(self, inputs: Inputs, mask: Mask = None) -> Posterior:
        """The posterior given what is there: mu, logvar [B, D], kl [B]. Same as ``model.encode``.

        Raises:
            InputError: unknown modality, wrong shape or dtype, NaN in an observed row, ...; a ValueError naming it.
        """
        posterior, _ = self._infer(inputs, mask, None)
        return posterior

    def posterior_sample(
        self, inputs: Inputs, n_samples: int, seed: int | None = None, mask: Mask = None
    ) -> np.ndarray:
        """Samples z [K, B, D] of the posterior; equal to ``model.encode(batch, mask).sample(n_samples, seed=seed)``."""
        return self._infer(inputs, mask, (integers.count("n_samples", n_samples), _seed(seed)))[1]

    def decode(self, z: Any, to: str | Sequence[str] | None = None, *, params: bool = False) -> dict[str, np.ndarray]:
        """Decode z [..., D] to modalities (default all): name -> array [..., *shape] in data space.

        With ``params``, the likelihood's raw parameters [..., *param_shape] instead (logits or means).
        """
        z = checks.latents(z, self.latent_dim)
        return {name: self._decode(z, self.modalities[name], params) for name in checks.targets(self.modalities, to)}

    def reconstruct(
        self, inputs: Inputs, mask: Mask = None, to: str | Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Decode the posterior mean: every modality (or those in ``to``) as the model imagines it, missing ones too."""
        names = checks.targets(self.modalities, to)
        return self.decode(self.encode(inputs, mask).mu, names)

    def cross_generate(self, inputs: Inputs, to: str, mask: Mask = None) -> np.ndarray:
        """One modality from whatever is there, by the posterior mean: [B, *shape]. Same as ``model.translate``."""
        if not isinstance(to, str):
            raise BadDtype(f"to is a {type(to).__name__}, expected one modality's name (reconstruct takes several)")
        return self.reconstruct(inputs, mask, to)[to]

    def sample(self, n: int, seed: int | None = None, to: str | Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Decode n samples of the prior N(0, I); with a seed, what ``model.sample(n, seed=seed)`` gives."""
        names = checks.targets(self.modalities, to)
        return self.decode(philox_normal(_seed(seed), integers.count("n", n), self.latent_dim), names)

    # --- text ---------------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str], modality: str | None = None, *, truncate: bool = False) -> np.ndarray:
        """Whitespace-separated words -> token ids int64 [B, length], padded with 0; unknown words become 1.

        ``modality`` may be left out when only one has a vocabulary.

        Raises:
            InputError: a text of more than ``length`` words, unless ``truncate``; or no vocabulary in the bundle.
        """
        spec, words = self._text(modality)
        ids, where = {word: i for i, word in enumerate(words)}, f"modality {spec.name!r}"
        try:
            return _words.tokenize(texts, ids, spec.shape[0], truncate=truncate, where=where)
        except TypeError as error:
            raise BadDtype(str(error)) from None
        except ValueError as error:
            raise BadShape(str(error)) from None

    def detokenize(self, ids: Any, modality: str | None = None) -> list[str]:
        """Words of token ids [B, length], without padding."""
        spec, words = self._text(modality)
        ids = checks.samples(spec, ids)
        checks.check_values(spec, ids, np.arange(len(ids)))
        return _words.detokenize(ids, words)

    def _text(self, modality: str | None) -> tuple[ModalitySpec, tuple[str, ...]]:
        with_words = [m.name for m in self.modalities.values() if m.vocabulary is not None]
        if modality is None and len(with_words) != 1:
            raise BadValue(
                f"modality: {len(with_words)} modalities have a vocabulary ({with_words}), name the one you mean"
            )
        name = with_words[0] if modality is None else modality
        if name not in with_words:
            raise UnknownModality(unknown("modality with a vocabulary", name, with_words))
        spec = self.modalities[name]
        return spec, spec.vocabulary or ()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _infer(self, inputs: Inputs, mask: Mask, sampling: tuple[int, int] | None) -> tuple[Posterior, np.ndarray]:
        """Posterior, and z [K, B, D] for ``sampling`` = (K, seed)."""
        arrays, observed = checks.batch(self.modalities, inputs, mask)
        (rows, n_experts), dim = observed.shape, self.latent_dim
        mu = np.zeros((rows, n_experts, dim), dtype=np.float32)  # missing experts stay 0; the mask selects them away
        logvar = np.zeros_like(mu)
        for m, (name, spec) in enumerate(self.modalities.items()):
            present = np.flatnonzero(observed[:, m])
            if not len(present):
                continue
            x = arrays[name] if len(present) == rows else arrays[name][present]
            checks.check_values(spec, x, present)
            mu[present, m], logvar[present, m] = self._run(encoder_part(name), x)
        n_samples, seed = sampling or (1, None)
        if rows == 0 or n_samples == 0:  # nothing to compute for: ONNX Runtime gives some empty outputs a wrong shape
            z = np.zeros((n_samples, rows, dim), dtype=np.float32)
            if rows == 0:
                empty = np.zeros((0, dim), dtype=np.float32)
                return Posterior(empty, empty.copy(), np.zeros(0, dtype=np.float32)), z
            return Posterior(*self._run(FUSION_PART, mu, logvar, observed, np.zeros((1, rows, dim), np.float32))[1:]), z
        eps = np.zeros((1, rows, dim), np.float32) if seed is None else philox_normal(seed, rows, dim, n_samples)
        z, joint_mu, joint_logvar, kl = self._run(FUSION_PART, mu, logvar, observed, eps)
        return Posterior(joint_mu, joint_logvar, kl), z

    def _decode(self, z: np.ndarray, spec: ModalitySpec, params: bool) -> np.ndarray:
        part = self.manifest.parts[decoder_part(spec.name)]
        output = part.outputs[0 if params else 1]
        shape = spec.param_shape if params else spec.shape
        flat = z.reshape(-1, self.latent_dim)
        if len(flat) == 0:
            return np.zeros((*z.shape[:-1], *shape), dtype=output.dtype)
        return self._run(decoder_part(spec.name), flat, outputs=[output.name])[0].reshape(*z.shape[:-1], *shape)

    def _run(self, part: str, *values: np.ndarray, outputs: list[str] | None = None) -> list[np.ndarray]:
        session = self._sessions.get(part) or self._open(part)
        spec = self.manifest.parts[part]
        return session.run(outputs, {t.name: v for t, v in zip(spec.inputs, values, strict=True)})

    def _open(self, part: str) -> Any:
        with self._lock:  # two threads that need a part first must not both build it
            if part not in self._sessions:
                spec = self.manifest.parts[part]
                path = self.folder / spec.file
                session = _session(path, self._unchanged(spec.file), self._threads)
                _check_interface(path, spec.io, session)
                self._sessions[part] = session
            return self._sessions[part]

    def _unchanged(self, file: str) -> bytes | str:
        """The content of a part that is still the one :meth:`load` saw, so that never two bundles answer together."""
        path, sidecar = self.folder / file, f"{file}.data"
        try:
            data = path.read_bytes()
            same = hashlib.sha256(data).hexdigest() == self.manifest.files[file]
            if sidecar not in self.manifest.files:
                content: bytes | str = data
            else:  # ONNX Runtime finds it beside a path only
                content = str(path)
                same = same and manifests.sha256(self.folder / sidecar) == self.manifest.files[sidecar]
        except FileNotFoundError:
            same = False
        if not same:
            raise BundleError(f"{path}: changed since it was loaded; load the bundle again")
        return content


def _seed(seed: int | None) -> int:
    return secrets.randbits(64) if seed is None else integers.seed(seed)


def _session(path: Path, content: bytes | str, threads: int) -> Any:
    ort = _lazy.require("onnxruntime", extra="runtime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings go to stderr and are for graph authors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn a core
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes live in a private module and derive from Exception
        raise BundleError(f"{path}: onnxruntime {ort.__version__} cannot load it ({error})") from error


def _check_interface(path: Path, expected: IO, session: Any) -> None:
    """The file takes and gives what the manifest says."""

    def specs(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(v.name, _ORT_TYPES.get(v.type, v.type), tuple(v.shape)) for v in values)

    if wrong := manifests.mismatch(IO(specs(session.get_inputs()), specs(session.get_outputs())), expected):
        raise BundleError(f"{path}: {wrong} as {manifests.FILE_NAME} says")
