"""What a request can be refused with: a status, and a sentence that says what came and what was expected."""

from __future__ import annotations

from typing import ClassVar


class Refused(Exception):
    """Base; answered as ``{"error": {"type": ..., "message": ...}}`` with the class's status."""

    status = 400
    headers: ClassVar[dict[str, str]] = {}


class Malformed(Refused):
    """The body is not what its content type says."""


class TooSlow(Refused):
    """The body did not arrive in time."""

    status = 408
    headers: ClassVar[dict[str, str]] = {"Connection": "close"}


class TooLarge(Refused):
    """The body, or what it asks for, is beyond a limit."""

    status = 413
    headers: ClassVar[dict[str, str]] = {"Connection": "close"}  # the rest of the body is not read


class WrongType(Refused):
    """A content type that is not served."""

    status = 415


class Invalid(Refused):
    """Well-formed, but not what the model takes."""

    status = 422


class Busy(Refused):
    """Too many requests wait, or the server is shutting down."""

    status = 503
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}


class TookTooLong(Refused):
    """No answer in time."""

    status = 504
