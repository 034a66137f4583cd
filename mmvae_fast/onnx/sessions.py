"""The parts of a bundle as ONNX Runtime sessions: opened on first use, shared by threads, stopped after a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_fast import _lazy
from mmvae_fast.onnx import guard, watchdog
from mmvae_fast.onnx import manifest as manifests
from mmvae_fast.onnx.errors import BundleError, InferenceTimeout
from mmvae_fast.onnx.manifest import IO, Manifest, TensorSpec

_ORT_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}


class Sessions:
    """Runs parts by name. Pickled without what is open, which opens again on first use.

    Args:
        threads: of one call; 0 is as many as there are cores.
        spin: idle threads burn their cores while they wait for work, which saves microseconds.
        timeout: seconds that one part may run, or None.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int, spin: bool, timeout: float | None) -> None:
        self.folder, self.manifest = folder, manifest
        self.threads, self.spin, self.timeout = threads, spin, timeout
        self.open: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, open={}, _lock=threading.Lock())

    def run(self, part: str, values: Sequence[np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
        """What the part makes of its inputs, in order; all its outputs, or those named.

        Raises:
            InferenceTimeout: it took longer than ``timeout``.
            BundleError: it cannot be run, or gives another shape than the manifest says.
        """
        spec = self.manifest.parts[part]
        path = self.folder / spec.file
        session = self.open.get(part) or self._opened(part)
        try:
            found = self._call(session, part, values, outputs)
        except InferenceTimeout:
            raise
        except Exception as error:  # onnxruntime's classes live in a private module
            raise guard.run_failed(path, error) from error
        wanted = [t for t in spec.outputs if outputs is None or t.name in outputs]
        guard.check_outputs(path, spec.inputs, values, wanted, found)
        return found

    def _call(
        self, session: Any, part: str, values: Sequence[np.ndarray], outputs: list[str] | None
    ) -> list[np.ndarray]:
        feed = {t.name: v for t, v in zip(self.manifest.parts[part].inputs, values, strict=True)}
        if self.timeout is None:
            return session.run(outputs, feed)
        options = _lazy.require("onnxruntime", extra="runtime").RunOptions()
        options.log_severity_level = 4
        limit = watchdog.watch(options, self.timeout)
        try:
            return session.run(outputs, feed, options)
        except Exception as error:
            if limit.passed:
                raise InferenceTimeout(f"{part}: stopped after {self.timeout:g} s, the timeout") from error
            raise
        finally:
            watchdog.release(limit)

    def read(self, file: str) -> bytes:
        """A file of the bundle that is no graph.

        Raises:
            BundleError: it is no longer what was checked.
        """
        content = self._unchanged(file, graph=False)
        assert isinstance(content, bytes)
        return content

    def _opened(self, part: str) -> Any:
        with self._lock:  # two threads that need a part first must not both build it
            if part not in self.open:
                spec = self.manifest.parts[part]
                path = self.folder / spec.file
                session = self._session(path, self._unchanged(spec.file, graph=True))
                _check_interface(path, spec.io, session)
                self.open[part] = session
            return self.open[part]

    def _unchanged(self, file: str, graph: bool) -> bytes | str:
        """The content of a part that is still the one that was checked, so that never two bundles answer together."""
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
            raise BundleError(
                f"{path}: no longer there; the bundle has moved since it was loaded, load it again"
            ) from None
        if not same:
            raise BundleError(f"{path}: changed since it was loaded; load the bundle again")
        if graph:
            guard.check_external(path, data, sidecar if sidecar in self.manifest.files else None)
        return content

    def _session(self, path: Path, content: bytes | str) -> Any:
        ort = _lazy.require("onnxruntime", extra="runtime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it prints to stderr, it raises too, and there it is ours to tell
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spin)))
        # computed when the session opens, which nothing can stop; while it runs, the timeout does
        later = [] if self.timeout is None else ["ConstantFolding"]
        try:
            # without the fallback it would print, and load a second time, before it gives up
            return ort.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], enable_fallback=0, disabled_optimizers=later
            )
        except Exception as error:  # its exception classes live in a private module and derive from Exception
            raise BundleError(f"{path}: onnxruntime {ort.__version__} cannot load it ({error})") from error


def _check_interface(path: Path, expected: IO, session: Any) -> None:
    """The file takes and gives what the manifest says."""

    def specs(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(v.name, _ORT_TYPES.get(v.type, v.type), tuple(v.shape)) for v in values)

    try:
        found = IO(specs(session.get_inputs()), specs(session.get_outputs()))
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: a name in it is not UTF-8 ({error})") from error
    if wrong := manifests.mismatch(found, expected):
        raise BundleError(f"{path}: {wrong} as {manifests.FILE_NAME} says")
