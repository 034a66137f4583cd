"""Checks everything a user hands to the Runtime, because ONNX Runtime itself does not.

It broadcasts a mask or noise of batch 1 over all rows, misreads big-endian arrays as NaN, lets NaN through, and names
no input when a dtype is wrong. Here every array is made native, contiguous and of the exact type, or refused with an
error that names the modality, what came and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmvae_fast.onnx.errors import BadDtype, BadShape, BadValue, MissingInput, NonFinite, UnknownModality, unknown
from mmvae_fast.onnx.manifest import ModalitySpec


def array(what: str, value: Any) -> np.ndarray:
    """Anything NumPy can read (a torch CPU tensor too), refused when that gives no array of numbers."""
    if value is None:
        raise MissingInput(f"{what} is None, expected an array; leave the modality out when it is missing")
    if isinstance(value, np.ma.MaskedArray):
        raise BadDtype(f"{what} is a masked array, expected a plain one; say what is missing with the argument mask")
    try:
        found = np.asarray(value)
    except Exception as error:  # whatever the foreign __array__ raises: a tensor with gradients, on a GPU, ragged lists
        raise BadDtype(
            f"{what} is a {type(value).__name__} that NumPy cannot read ({error}), expected an array"
        ) from error
    if found.dtype.kind not in "biuf":
        raise BadDtype(f"{what} has dtype {found.dtype} ({type(value).__name__}), expected an array of numbers")
    return found


def _dims(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def floats(what: str, value: Any) -> np.ndarray:
    """As native contiguous float32; from any other float type, never from integers or bools."""
    found = array(what, value)
    if found.dtype.kind != "f":
        hint = "; scale uint8 pixels to [0, 1] first (x / 255)" if found.dtype == np.uint8 else ""
        raise BadDtype(f"{what} has dtype {found.dtype}, expected float32{hint}")
    with np.errstate(over="ignore"):  # what does not fit becomes inf, which is refused by name
        return np.ascontiguousarray(found, dtype=np.float32).reshape(found.shape)  # ascontiguousarray makes 0-d 1-d


def tokens(what: str, value: Any) -> np.ndarray:
    """As native contiguous int64; from any integer type."""
    found = array(what, value)
    if found.dtype.kind not in "iu":
        raise BadDtype(f"{what} has dtype {found.dtype}, expected int64 token ids")
    if found.dtype.kind == "u" and found.size and found.max() > np.iinfo(np.int64).max:
        raise BadValue(f"{what} holds {found.max()}, expected int64 token ids")
    return np.ascontiguousarray(found, dtype=np.int64).reshape(found.shape)


def samples(spec: ModalitySpec, value: Any) -> np.ndarray:
    """One modality's batch [B, *shape], of the right dtype and shape. Values are checked by :func:`check_values`."""
    what = f"modality {spec.name!r}"
    found = tokens(what, value) if spec.dtype == "int64" else floats(what, value)
    if found.ndim != 1 + len(spec.shape) or found.shape[1:] != spec.shape:
        hint = "; add the batch dimension: x[None]" if found.shape == spec.shape else ""
        raise BadShape(f"{what} has shape {_dims(found.shape)}, expected {_dims(('B', *spec.shape))}{hint}")
    return found


def check_values(spec: ModalitySpec, x: np.ndarray, rows: np.ndarray) -> None:
    """Observed rows hold finite numbers (or gaps, where the modality has some), or tokens of the vocabulary; ``x`` are
    the batch's rows numbered ``rows``."""
    if spec.dtype == "float32":
        bad = np.isinf(x) if spec.gaps else ~np.isfinite(x)
    else:
        bad = (x < 0) | (x >= (spec.vocabulary_size or 0))
    if not bad.any():
        return
    first = tuple(np.argwhere(bad)[0])
    where = f"[{', '.join(str(i) for i in (rows[first[0]], *first[1:]))}]"
    if spec.dtype == "float32":
        raise NonFinite(
            f"modality {spec.name!r} holds {x[first]} at {where} of an observed row, expected finite values; "
            "mask the row when it is missing"
        )
    last = (spec.vocabulary_size or 0) - 1
    raise BadValue(f"modality {spec.name!r} holds token {x[first]} at {where}, expected 0 to {last}")


def _flags(what: str, value: Any) -> np.ndarray:
    found = array(what, value)
    if found.dtype.kind in "iu" and ((found == 0) | (found == 1)).all():
        return found.astype(bool)
    if found.dtype.kind != "b":
        raise BadDtype(f"{what} has dtype {found.dtype}, expected bool (True = observed)")
    return found


def batch(specs: Mapping[str, ModalitySpec], inputs: Any, mask: Any = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The given modalities as checked arrays, and which of them are observed as bool [B, M].

    Args:
        specs: modalities by name, in the order of the mask's columns.
        inputs: name -> array [B, *shape], at least one; a missing key is missing in every row, whatever the mask says.
        mask: None (all that is given is observed), name -> bool [B], or bool [B, M].

    Raises:
        InputError: anything wrong with either; see the classes in ``errors``.
    """
    if not isinstance(inputs, Mapping):
        raise MissingInput(f"inputs is a {type(inputs).__name__}, expected a dict of modality name -> array")
    for name in inputs:
        if name not in specs:
            raise UnknownModality(unknown("modality", name, specs))
    arrays = {name: samples(spec, inputs[name]) for name, spec in specs.items() if name in inputs}
    if not arrays:
        raise MissingInput(f"inputs is empty, expected at least one of {', '.join(map(repr, specs))}")
    columns = _mask_columns(specs, mask)
    sizes = {f"modality {n!r}": len(x) for n, x in arrays.items()} | {what: len(c) for what, c in columns.values()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{what}: {n}" for what, n in sizes.items())
        raise BadShape(f"batch sizes differ, expected one for all ({listed})")
    (rows,) = set(sizes.values())
    observed = np.zeros((rows, len(specs)), dtype=bool)
    for m, name in enumerate(specs):
        if name in arrays:
            observed[:, m] = columns[name][1] if name in columns else True
    return arrays, observed


def _mask_columns(specs: Mapping[str, ModalitySpec], mask: Any) -> dict[str, tuple[str, np.ndarray]]:
    """Modality -> (how to call it in errors, bool [B])."""
    if mask is None:
        return {}
    if isinstance(mask, Mapping):
        columns = {}
        for name, value in mask.items():
            if name not in specs:
                raise UnknownModality("mask: " + unknown("modality", name, specs))
            what = f"mask of {name!r}"
            column = _flags(what, value)
            if column.ndim != 1:
                raise BadShape(f"{what} has shape {_dims(column.shape)}, expected [B]")
            columns[name] = (what, column)
        return columns
    matrix = _flags("mask", mask)
    if matrix.ndim != 2 or matrix.shape[1] != len(specs):
        raise BadShape(
            f"mask has shape {_dims(matrix.shape)}, expected [B, M] = [B, {len(specs)}] with columns {', '.join(specs)}"
        )
    return {name: ("mask", matrix[:, m]) for m, name in enumerate(specs)}


def experts(
    mu: Any, logvar: Any, mask: Any, shape: tuple[int, int]
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Experts [B, M, E] and which of them are observed, bool [B, M]."""
    found = floats("mu", mu), floats("logvar", logvar)
    observed = _flags("mask", mask)
    for what, value in zip(("mu", "logvar"), found, strict=True):
        if value.ndim != 3 or value.shape != (*observed.shape, shape[1]) or value.shape[1] != shape[0]:
            raise BadShape(
                f"{what} has shape {_dims(value.shape)}, expected {_dims(('B', *shape))} and mask its [B, M]"
            )
        if not np.isfinite(value[observed]).all():
            raise NonFinite(f"{what} holds NaN or infinity in an observed expert, expected finite values")
    return (found[0], found[1]), observed


def latents(z: Any, *dims: int) -> np.ndarray:
    """Latents [..., D], D one of ``dims``."""
    found = floats("z", z)
    if found.ndim < 1 or found.shape[-1] not in dims:
        expected = " or ".join(_dims(("...", dim)) for dim in dict.fromkeys(dims))
        raise BadShape(f"z has shape {_dims(found.shape)}, expected {expected}")
    if not np.isfinite(found).all():
        raise NonFinite("z holds NaN or infinity, expected finite values")
    return found


def labels(value: Any, n: int, classes: int) -> np.ndarray:
    """Labels of a condition, int64 [n]."""
    found = tokens("condition", value)
    if found.shape != (n,):
        raise BadShape(f"condition has shape {_dims(found.shape)}, expected labels [{n}]")
    if found.size and not (found.min() >= 0 and found.max() < classes):
        raise BadValue(f"condition holds labels {found.min()} to {found.max()}, expected 0 to {classes - 1}")
    return found


def embeddings(value: Any, n: int, dim: int) -> np.ndarray:
    """Embeddings of a condition, float32 [n, C]."""
    found = floats("condition", value)
    if found.shape != (n, dim):
        raise BadShape(f"condition has shape {_dims(found.shape)}, expected {_dims((n, dim))}")
    if not np.isfinite(found).all():
        raise NonFinite("condition holds NaN or infinity, expected finite values")
    return found


def targets(specs: Mapping[str, ModalitySpec], to: str | Sequence[str] | None) -> list[str]:
    """Names to decode to; None is all that are decoded."""
    if to is not None and not isinstance(to, (str, list, tuple, set)):
        raise BadDtype(f"to is a {type(to).__name__}, expected names of modalities")
    decodable = [name for name, spec in specs.items() if spec.decodable]
    names = decodable if to is None else [to] if isinstance(to, str) else list(to)
    for name in names:
        if name not in specs:
            raise UnknownModality("to: " + unknown("modality", name, decodable))
        if name not in decodable:
            raise UnknownModality(f"to names {name!r}, which the model is only given, expected some of {decodable}")
    return names
