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

from mmvae_fast.onnx.errors import BundleError, NonFinite
from mmvae_fast.onnx.manifest import Manifest, TensorSpec

MAX_FILE_BYTES = 16 * 2**30
MAX_ELEMENTS = 2**28
"""Of one sample or one latent: a gigabyte of float32."""
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


def check_size(path: Path) -> None:
    """A file that can be hashed in seconds; one that is not there is for others to miss."""
    size = path.stat().st_size if path.is_file() else 0
    if size > MAX_FILE_BYTES:
        raise BundleError(f"{path}: {size} bytes, expected at most {MAX_FILE_BYTES}")


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
