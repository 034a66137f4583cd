"""What a hostile or damaged bundle could still do once its JSON is well-formed and its hashes are right.

Whoever writes a bundle writes its hashes too, so these say that a file is whole, not that it is honest. A graph may
give another shape than it declares, which a reshape would scramble into a wrong answer; a manifest may claim sizes that
no memory holds, or a file be sparse terabytes that take hours to hash. Everything here raises
:class:`BundleError`, but for answers that are no numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mmvae_fast.onnx.errors import BadValue, BundleError, NonFinite
from mmvae_fast.onnx.manifest import Manifest, ModalitySpec, TensorSpec

MAX_FILE_BYTES = 16 * 2**30
MAX_ELEMENTS = 2**28
"""Of one sample or one latent: a gigabyte of float32."""
MAX_ASKED = 2**34
"""Numbers of one answer: 64 GiB of float32."""
MAX_NAME = 200
"""Characters of a file's name; file systems end at 255 bytes."""


def check_manifest(manifest: Manifest, source: str) -> None:
    """Sizes that memory can hold, finite numbers, names that a file system and a terminal take."""
    sizes = {"'latent_dim'": manifest.latent_dim}
    for m in manifest.modalities:
        sizes |= {f"shape of {m.name!r}": math.prod(m.shape), f"param_shape of {m.name!r}": math.prod(m.param_shape)}
        if not math.isfinite(m.scale):
            raise BundleError(f"{source}: scale of modality {m.name!r} is {m.scale}, expected a finite number")
    for what, size in sizes.items():
        if size > MAX_ELEMENTS:
            raise BundleError(f"{source}: {what} holds {size} numbers, expected at most {MAX_ELEMENTS}")
    for name in (*manifest.files, *manifest.names, *manifest.parts):
        if len(name) > MAX_NAME or not name.isprintable():
            shown = f"{name[:60]!r}, {len(name)} characters"
            raise BundleError(f"{source}: name {shown}, expected at most {MAX_NAME}, all of them printable")


def check_asked(what: str, n: int, specs: Iterable[ModalitySpec], latent_dim: int) -> None:
    """So many rows that their arrays alone are beyond any memory: said before one is made.

    Raises:
        BadValue: more than :data:`MAX_ASKED` numbers.
    """
    numbers = n * (latent_dim + sum(math.prod(spec.shape) for spec in specs))
    if numbers > MAX_ASKED:
        raise BadValue(
            f"{what} is {n}, {numbers} numbers in all, expected at most {MAX_ASKED}: ask for fewer at a time"
        )


def check_size(path: Path) -> None:
    """A file that can be hashed in seconds; one that is not there is for others to miss."""
    size = path.stat().st_size if path.is_file() else 0
    if size > MAX_FILE_BYTES:
        raise BundleError(f"{path}: {size} bytes, expected at most {MAX_FILE_BYTES}")


def check_external(path: Path, graph: bytes, sidecar: str | None) -> None:
    """A graph's weights are in itself, or in the one file beside it whose hash was checked.

    Read off the bytes of the protobuf, which need no onnx here: wherever a graph names a file, it has an entry (field
    13 of TensorProto) with the key "location", whole, its length before it. Versions of ONNX Runtime differ in which
    paths they follow; this follows none.
    """
    key = b"location"
    start = graph.find(key)
    while start >= 0:
        if start and graph[start - 1] in (0x08, 0x00):  # the end of a length of 8, as short as can be or padded
            value = (sidecar or "").encode()
            after = b"\x12" + _varint(len(value)) + value
            before = b"\x6a" + _varint(2 + len(key) + len(after)) + b"\x0a\x08"
            entry = graph[max(0, start - len(before)) : start + len(key) + len(after)]
            if sidecar is None or entry != before + key + after:
                expected = "none" if sidecar is None else f"{sidecar!r} alone"
                raise BundleError(f"{path}: names another file for its weights, expected {expected}")
        start = graph.find(key, start + 1)
    if graph[4:8] == b"ORTM":
        raise BundleError(f"{path}: of ONNX Runtime's own format, expected ONNX")


def _varint(number: int) -> bytes:
    """As protobuf writes a length."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def run_failed(path: Path, error: BaseException) -> BundleError:
    """What ONNX Runtime raises while running, from a private module and without the file's name."""
    return BundleError(f"{path}: cannot be run ({str(error).strip() or type(error).__name__})")


def check_finite(where: str, *answers: np.ndarray) -> None:
    """Answers are numbers: of finite inputs far from everything seen in training, float32 may make infinity and NaN."""
    if not all(np.isfinite(x).all() for x in answers if x.dtype.kind == "f"):
        raise NonFinite(
            f"{where}: the answer holds NaN or infinity, which float32 makes of values that are too large; expected "
            "values of the size that the model was trained on"
        )


def check_outputs(
    path: Path,
    inputs: Sequence[TensorSpec],
    given: Iterable[np.ndarray],
    outputs: Sequence[TensorSpec],
    found: Iterable[np.ndarray],
) -> None:
    """Outputs have the shapes that the manifest says, with the dynamic dimensions as the inputs have them."""
    sizes: dict[str, int] = {}
    for spec, x in zip(inputs, given, strict=True):
        sizes |= {name: n for name, n in zip(spec.shape, x.shape, strict=True) if isinstance(name, str)}
    for spec, y in zip(outputs, found, strict=True):
        shape = tuple(sizes.get(n, n) if isinstance(n, str) else n for n in spec.shape)
        pairs = zip(shape, y.shape, strict=False)
        fits = len(shape) == y.ndim and all(isinstance(n, str) or n == m for n, m in pairs)
        if not fits or y.dtype != spec.dtype:
            raise BundleError(
                f"{path}: output {spec.name!r} came as {y.dtype} {list(y.shape)}, expected {spec.dtype} {list(shape)}"
            )
