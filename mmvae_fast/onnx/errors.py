"""What can go wrong with a bundle and its inputs.

All but InferenceTimeout are ValueErrors: ``except ValueError`` catches what a caller can mend.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BundleError(ValueError):
    """A bundle that is damaged, incomplete, foreign or of another version; names the file."""


class ExportError(ValueError):
    """A model that cannot be exported; names the part."""


class ExportVerificationError(ExportError):
    """An exported bundle that does not compute what the model computes; names part, output, index and both values."""


class InferenceTimeout(TimeoutError):
    """A part of a bundle ran longer than the ``timeout`` that :meth:`Runtime.load` was given, and was stopped."""


class InputError(ValueError):
    """Base of everything that is wrong with the arguments of a :class:`~mmvae_fast.onnx.Runtime` call."""


class MissingInput(InputError):
    """Nothing to work on: no inputs, or None in place of an array. (A modality that is not given is just missing, even
    if the mask calls it observed.)"""


class UnknownModality(InputError):
    """A name that is no modality of this bundle."""


class BadShape(InputError):
    """An array of the wrong rank or size."""


class BadDtype(InputError):
    """An array of a dtype that cannot be converted without changing its meaning."""


class BadValue(InputError):
    """A value out of range: a token outside the vocabulary, a negative count."""


class NonFinite(BadValue):
    """NaN or infinity in something that is marked as observed."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """'unknown modality 'imgae' (did you mean 'image'?), expected one of ...'."""
    known = list(known)
    close = difflib.get_close_matches(str(name).lower(), [k.lower() for k in known], n=1)
    meant = next((k for k in known if close and k.lower() == close[0]), None)
    hint = f" (did you mean {meant!r}?)" if meant is not None else ""
    return f"unknown {what} {name!r}{hint}, expected one of {', '.join(map(repr, known))}"
