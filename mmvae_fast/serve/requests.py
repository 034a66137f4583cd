"""From the bytes of a request to what the Runtime takes: JSON, or a form with files. Nothing larger than the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmvae_fast import _lazy
from mmvae_fast.onnx import Runtime, values
from mmvae_fast.onnx.errors import unknown
from mmvae_fast.serve.batching import Rows
from mmvae_fast.serve.errors import Invalid, Malformed, TooLarge, TooSlow, WrongType
from mmvae_fast.serve.limits import Limits

JSON, FORM = "application/json", "multipart/form-data"
MAX_FIELDS = 128
_INPUTS = "inputs"


async def read_body(request: Any, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        TooLarge: beyond ``limits.body_bytes``, by its own account or in fact.
        TooSlow: not here within ``limits.body_seconds``.
    """
    too_large = f"expected at most {limits.body_bytes} bytes"
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise TooLarge(f"a body of {length} bytes, {too_large}")
    parts: list[bytes] = []
    size = 0

    async def read() -> None:
        nonlocal size
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > limits.body_bytes:
                raise TooLarge(f"a body of {size} bytes or more, {too_large}")

    try:
        await asyncio.wait_for(read(), limits.body_seconds)
    except asyncio.TimeoutError:
        raise TooSlow(f"{size} bytes in {limits.body_seconds:g} s, expected the whole body") from None
    return b"".join(parts)


@dataclass(frozen=True)
class Fields:
    """What a request holds by name: a JSON object's values, or a form's files and texts as bytes or str."""

    values: Mapping[str, Any]
    small: bool
    """Whether it is read in no time, so that others may wait for it."""
    form: bool = False
    """Whether its values are texts, numbers among them too."""

    def inputs(self, names: Container[str]) -> Any:
        """What stands for modalities: a form has them among its fields, JSON in an object of their own."""
        if _INPUTS in self.values:
            return self.values[_INPUTS]
        return {name: value for name, value in self.values.items() if name in names}

    def has_inputs(self, names: Container[str]) -> bool:
        return _INPUTS in self.values or any(name in names for name in self.values)

    def options(self, names: Container[str]) -> dict[str, Any]:
        """The rest."""
        return {name: value for name, value in self.values.items() if name != _INPUTS and name not in names}


async def fields(request: Any, limits: Limits, apart: Callable[..., Awaitable[Any]] = asyncio.to_thread) -> Fields:
    """The whole request, parsed; what takes long by ``apart(function, *arguments)``.

    Raises:
        Refused: too large, too slow, of another content type, or malformed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM):
        raise WrongType(f"content type is {kind or 'not given'}, expected {JSON} or {FORM}")
    body = await read_body(request, limits)
    if kind == FORM:
        return Fields(await _form(request.headers, body), False, True)
    orjson = _lazy.require("orjson", extra="serve")
    small = len(body) <= 2**15
    try:
        found = orjson.loads(body) if small else await apart(orjson.loads, body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise Malformed(f"a JSON {type(found).__name__}, expected an object")
    if len(found) > MAX_FIELDS:  # each unknown one would be an error of its own
        raise TooLarge(f"a JSON object of {len(found)} fields, expected at most {MAX_FIELDS}")
    return Fields(found, small)


async def _form(headers: Any, body: bytes) -> dict[str, Any]:
    _lazy.require("python_multipart", extra="serve")
    parsers = _lazy.require("starlette.formparsers", extra="serve")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = parsers.MultiPartParser(headers, stream(), max_files=64, max_fields=64, max_part_size=2**20)
        form = await parser.parse()
    except Exception as error:  # parsing what anybody sent: whatever it ran into
        raise Malformed(f"not a valid form ({getattr(error, 'message', None) or error})") from None
    found: dict[str, Any] = {}
    for name, value in form.multi_items():
        content = value if isinstance(value, str) else await value.read()
        if name == "to" and name in found:  # several modalities
            found[name] = [*(found[name] if isinstance(found[name], list) else [found[name]]), content]
            continue
        if name in found:
            raise Malformed(f"the form has {name!r} twice, expected once")
        found[name] = content
    await form.close()
    return found


def rows(runtime: Runtime, found: Fields, limits: Limits) -> Rows:
    """The inputs of a request, all of one number of rows; in JSON, null in place of a sample means that it is missing.

    Raises:
        Invalid, TooLarge: naming the modality, what came and what was expected.
        InputError: the same, from what reads the values.
    """
    given = found.inputs(runtime.modalities)
    if not isinstance(given, Mapping) or not given:
        got = "nothing" if not given else f"a {type(given).__name__}"
        raise Invalid(f"inputs: got {got}, expected an object with at least one of {', '.join(runtime.modalities)}")
    arrays: dict[str, np.ndarray] = {}
    observed: dict[str, np.ndarray] = {}
    for name, value in given.items():
        if name not in runtime.modalities:
            raise Invalid(unknown("modality", name, runtime.modalities))
        if isinstance(value, list) and len(value) > limits.rows:
            raise TooLarge(f"modality {name!r} has {len(value)} rows, expected at most {limits.rows}")
        x, there = _samples(runtime, name, value, found.form, limits)
        shape = runtime.modalities[name].shape
        if x.shape[1:] != shape or len(x) == 0:
            raise Invalid(f"modality {name!r} has shape {list(x.shape)}, expected {['B', *shape]} with B above 0")
        if len(x) > limits.rows:
            raise TooLarge(f"modality {name!r} has {len(x)} rows, expected at most {limits.rows}")
        arrays[name], observed[name] = x, there
    sizes = {name: len(x) for name, x in arrays.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {n}" for name, n in sizes.items())
        raise Invalid(f"modalities have different numbers of rows, expected one for all ({listed})")
    return Rows(arrays, observed)


def gan_condition(runtime: Runtime, condition: Any) -> np.ndarray:
    """Labels, given as names or numbers of classes, or embeddings of plain numbers.

    Raises:
        Invalid: no list, ragged, or an unknown class. Shape and range are the Runtime's to check.
    """
    classes = runtime.manifest.classes or ()
    if not isinstance(condition, list):
        raise Invalid(f"condition is a {type(condition).__name__}, expected a list of labels or embeddings")
    if classes:
        for label in condition:
            if isinstance(label, str) and label not in classes:
                raise Invalid("condition: " + unknown("class", label, classes))
        condition = [classes.index(label) if isinstance(label, str) else label for label in condition]
    try:
        found = np.array(condition)
    except (ValueError, TypeError, OverflowError) as error:
        raise Invalid(f"condition is no array of numbers ({error})") from None
    return found.astype(np.float32) if not classes and found.dtype.kind in "iu" else found


def _samples(runtime: Runtime, name: str, value: Any, form: bool, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """[B, *shape], and which of them are there, bool [B]."""
    if form and isinstance(value, (bytes, str)):
        data = value if isinstance(value, bytes) else value.encode()
        x = values.from_bytes(runtime, name, data, "the form's field", limits.pixels)
        return x, np.ones(len(x), dtype=bool)
    if not isinstance(value, list):
        raise Invalid(f"modality {name!r} is a {type(value).__name__}, expected a list of samples")
    there = np.array([row is not None for row in value], dtype=bool)
    spec = runtime.modalities[name]
    if not there.any():
        return np.zeros((len(value), *spec.shape), dtype=spec.dtype), there
    some = values.from_list(runtime, name, [row for row in value if row is not None])
    if there.all():
        return some, there
    x = np.zeros((len(value), *some.shape[1:]), dtype=some.dtype)
    x[there] = some
    return x, there
