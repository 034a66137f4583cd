"""Requests and answers as types, checked with pydantic and shown at /docs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_NAMES = 128


def _few(value: Any) -> Any:
    """Before each of them is checked, and each wrong one an error of its own."""
    if isinstance(value, list) and len(value) > MAX_NAMES:
        raise ValueError(f"a list of {len(value)} names, expected at most {MAX_NAMES}")
    return value


Names = Annotated[str | list[str] | None, BeforeValidator(_few)]


class Options(BaseModel):
    """What a request says beside its inputs; anything unknown is an error."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class To(Options):
    to: Names = Field(None, description="Modalities to make; all of them if not given.")


class Translate(Options):
    to: str = Field(description="The modality to make.")
    format: Literal["json", "png", "wav"] = Field("json", description="png, wav: one image, one sound as a file.")


class Decode(To):
    z: list[Any] = Field(min_length=1, description="Points of the latent space, [B, D].")


class Sample(To):
    n: int = Field(1, ge=1, description="How many.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="The same seed gives the same samples.")
    condition: list[Any] | dict[str, list[Any]] | None = Field(
        None, description="Of a GAN, n labels or embeddings; of a conditional model, one row of what is given, by name."
    )


class Generate(Options):
    to: str | None = Field(None, description="The text to make, where there are several.")
    temperature: float = Field(0.0, ge=0, le=100, description="0: the most probable token each time.")
    top_k: int | None = Field(None, ge=1, description="Of so many most probable tokens.")
    top_p: float | None = Field(None, gt=0, le=1, description="Of the tokens that reach this probability together.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="The same seed gives the same texts.")


TAKES_NO_INPUTS = (Decode, Sample)

Samples = list[Any]
"""Texts, or arrays as nested lists; NaN is null. Vectors, series and counts are in their own units."""


class Encoded(BaseModel):
    mu: list[list[float]]
    logvar: list[list[float]]
    kl: list[float]


class Translated(BaseModel):
    to: str
    values: Samples


class Made(BaseModel):
    values: dict[str, Samples]


class Generated(BaseModel):
    texts: list[str]


class Classified(BaseModel):
    classes: list[str]
    """The likeliest, by row."""
    probabilities: list[dict[str, float]]


class _Problem(BaseModel):
    type: str
    message: str


class Problem(BaseModel):
    error: _Problem


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in {
        400: "The body is malformed.",
        408: "The body came too slowly.",
        413: "Too large.",
        415: "Neither JSON nor a form.",
        422: "Not what the model takes.",
        501: "An extra that reads this is not installed.",
        503: "Too many requests wait.",
        504: "No answer in time.",
    }.items()
}


def body(options: type[Options], form: bool) -> dict[str, Any]:
    """A request body for OpenAPI: options, and for most routes inputs by modality."""
    schema = options.model_json_schema()
    described = dict(schema.get("properties", {}))
    if options not in TAKES_NO_INPUTS:
        described["inputs"] = {
            "type": "object",
            "description": "Modality -> list of samples: texts, or nested lists of numbers; null where one is missing.",
            "additionalProperties": {"type": "array", "items": {}},
        }
    required = schema.get("required", [])
    content: dict[str, Any] = {
        "application/json": {"schema": {"type": "object", "properties": described, "required": required}}
    }
    if form:
        files = {"type": "string", "format": "binary", "description": "A picture, sound, .npy array, text or numbers."}
        properties = schema.get("properties", {})
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": properties, "required": required, "additionalProperties": files}
        }
    return {"content": content, "required": True}
