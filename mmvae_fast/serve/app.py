"""The web application: which routes there are, and what they call.

Every answer is JSON, or a PNG or WAV file where one is asked for; every refusal is ``{"error": {"type", "message"}}``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mmvae_fast import __version__
from mmvae_fast._lazy import require
from mmvae_fast.onnx import Runtime, values
from mmvae_fast.onnx.errors import BundleError, InputError, MissingInput, unknown
from mmvae_fast.onnx.manifest import CLASSIFIER_PART, CYCLEGAN_SYSTEM, FUSION_PART, GAN_SYSTEM
from mmvae_fast.serve import requests, schemas
from mmvae_fast.serve.batching import Batcher, Reader, Rows
from mmvae_fast.serve.errors import Invalid, Refused, TookTooLong, TooLarge
from mmvae_fast.serve.limits import Limits
from mmvae_fast.serve.metrics import Metrics

_log = logging.getLogger("mmvae_fast.serve")


def create_app(
    bundle: str | Path | Runtime, limits: Limits | None = None, *, workers: int = 1, threads: int = 1
) -> FastAPI:
    """An ASGI application that serves a bundle.

    Args:
        bundle: what ``export_onnx`` wrote, or a Runtime of it.
        workers: calls of the Runtime that may run at the same time.
        threads: that one call may use, unless a Runtime is given.

    Raises:
        BundleError: the bundle is damaged, incomplete or foreign; or, when the server starts, cannot be run.
        ImportError: the ``runtime`` extra is not installed.
    """
    limits = limits or Limits()
    runtime = bundle if isinstance(bundle, Runtime) else load(bundle, threads, limits)
    batcher = Batcher(limits, workers, lambda n, rows: metrics.on_batch(n, rows))
    reader = Reader(limits)
    metrics = Metrics(lambda: len(batcher) + len(reader))
    service = _Service(runtime, limits, batcher, reader)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_warm_up, runtime)
        async with batcher, reader:
            service.ready = True
            yield
            service.ready = False

    app = FastAPI(title="mmvae_fast", version=__version__, lifespan=running, redoc_url=None)
    _add_routes(app, service, metrics)
    _add_error_handlers(app)
    app.add_middleware(lambda inner: metrics.middleware(inner))
    return app


def load(bundle: str | Path, threads: int, limits: Limits) -> Runtime:
    """With graphs that run too long stopped: a request that nobody waits for any more must not hold a worker."""
    runtime = Runtime.load(bundle, threads=threads, timeout=limits.seconds)
    if any(spec.tokens is not None for spec in runtime.modalities.values()):
        require("tokenizers", extra="text")  # not only when the first text comes
    return runtime


def _warm_up(runtime: Runtime) -> None:
    """Open every part and run it once: what is wrong with one is found before the first request."""
    rows = values.example(runtime, 1)
    if FUSION_PART in runtime.manifest.parts:
        for name, made in runtime.reconstruct(rows, to=_decodable(runtime)).items():
            if values.is_text(runtime.modalities[name]):
                runtime.tokenize(runtime.detokenize(made, name), name, truncate=True)
        if CLASSIFIER_PART in runtime.manifest.parts:
            runtime.classify(rows)
    elif runtime.manifest.system == CYCLEGAN_SYSTEM:
        for name in runtime.modalities:
            runtime.cross_generate(rows, name)
    else:
        with suppress(MissingInput):  # a condition, which only a request has
            runtime.sample(1, seed=0)


def _decodable(runtime: Runtime) -> list[str]:
    """What can be made; a conditional model is only ever given the rest."""
    return [name for name, spec in runtime.modalities.items() if spec.decodable]


class _Service:
    """What the routes do, apart from HTTP."""

    def __init__(self, runtime: Runtime, limits: Limits, batcher: Batcher, reader: Reader):
        self.runtime, self.limits, self.batcher, self.reader = runtime, limits, batcher, reader
        self.ready = False

    async def rows(self, found: requests.Fields) -> Rows:
        if found.small:
            return requests.rows(self.runtime, found, self.limits)
        return await self.reader.run(requests.rows, self.runtime, found, self.limits)

    async def encode(self, rows: Rows) -> Any:
        return await self.batcher.submit("encode", lambda r: self.runtime.encode(r.arrays, r.observed), rows)

    async def reconstruct(self, rows: Rows, to: tuple[str, ...]) -> dict[str, np.ndarray]:
        self.check_size(len(rows), to)
        call = lambda r: self.runtime.reconstruct(r.arrays, r.observed, to=to)  # noqa: E731 - a name for one line
        return await self.batcher.submit(("reconstruct", to), call, rows)

    async def translate(self, rows: Rows, to: str) -> np.ndarray:
        self.check_size(len(rows), (to,))
        if self.runtime.manifest.system == CYCLEGAN_SYSTEM:  # it knows nothing of missing rows
            (source,) = (name for name in self.runtime.modalities if name != to)
            if source not in rows.observed or not rows.observed[source].all():
                raise Invalid(f"inputs: expected {source!r} in every row, to translate to {to!r}")
        call = lambda r: self.runtime.cross_generate(r.arrays, to, r.observed)  # noqa: E731
        return await self.batcher.submit(("translate", to), call, rows)

    async def classify(self, rows: Rows) -> np.ndarray:
        return await self.batcher.submit("classify", lambda r: self.runtime.predict_proba(r.arrays, r.observed), rows)

    async def generate(self, rows: Rows, options: dict[str, Any]) -> list[str]:
        key = ("generate", *options.values()) if options["temperature"] == 0 else object()  # noise belongs to rows
        return await self.batcher.submit(
            key, lambda r: self.runtime.generate(r.arrays, mask=r.observed, **options), rows
        )

    async def decode(self, z: Any, to: tuple[str, ...]) -> dict[str, np.ndarray]:
        self.check_size(len(z), to)
        try:
            points = await self.reader.run(values.numbers, z)
        except (ValueError, TypeError, OverflowError) as error:
            raise Invalid(f"z is no array of numbers ({error})") from None
        if points.ndim != 2:
            raise Invalid(f"z has shape {list(points.shape)}, expected [B, {self.runtime.latent_dim}]")
        rows = Rows({"z": points}, {"z": np.ones(len(points), dtype=bool)})
        call = lambda r: self.runtime.decode(r.arrays["z"], to)  # noqa: E731
        return await self.batcher.submit(("decode", to, points.shape[1]), call, rows)

    async def sample(
        self, n: int, seed: int | None, to: tuple[str, ...], condition: list[Any] | dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        self.check_size(n, to)
        if condition is not None and self.runtime.manifest.system == GAN_SYSTEM:
            labels = requests.gan_condition(self.runtime, condition)
            call = lambda r: self.runtime.sample(n, seed=seed, to=list(to), condition=labels)  # noqa: E731
        elif condition is not None:
            given = await self.rows(requests.Fields({"inputs": condition}, False))
            if len(given) != 1:
                raise Invalid(f"condition has {len(given)} rows, expected one, of which n samples are made")
            options = {"condition": given.arrays, "mask": given.observed}

            def call(r: Rows) -> dict[str, np.ndarray]:
                made = self.runtime.sample(n, seed=seed, to=list(to), **options)
                return {name: x[:, 0] for name, x in made.items()}

        else:
            call = lambda r: self.runtime.sample(n, seed=seed, to=list(to))  # noqa: E731
        nobody = Rows({"n": np.zeros((n, 0), np.float32)}, {"n": np.ones(n, dtype=bool)})
        return await self.batcher.submit(object(), call, nobody)  # noise belongs to rows: never joined with another

    def targets(self, to: str | list[str] | None) -> tuple[str, ...]:
        names = _decodable(self.runtime) if to is None else [to] if isinstance(to, str) else to
        for name in names:
            if name not in self.runtime.modalities:
                raise Invalid("to: " + unknown("modality", name, self.runtime.modalities))
        return tuple(dict.fromkeys(names))

    def check_size(self, rows: int, to: tuple[str, ...]) -> None:
        if rows > self.limits.rows:
            raise TooLarge(f"{rows} rows, expected at most {self.limits.rows}")
        numbers = rows * sum(math.prod(self.runtime.modalities[name].shape) for name in to)
        if numbers > self.limits.output_values:
            raise TooLarge(f"an answer of {numbers} numbers, expected at most {self.limits.output_values}")

    def shown(self, name: str, samples: np.ndarray) -> Any:
        """Texts as texts, numbers in their own units; the rest as arrays."""
        return values.plain(self.runtime, name, samples)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)  # NaN, which JSON lacks, becomes null
    return Response(data, status, dict(headers or {}), media_type="application/json")


def _add_routes(app: FastAPI, service: _Service, metrics: Metrics) -> None:
    runtime, limits = service.runtime, service.limits

    def post(path: str, schema: type[schemas.Options], answer: type, form: bool = True) -> Callable:
        extra = {"requestBody": schemas.body(schema, form)}
        return app.post(path, response_model=answer, openapi_extra=extra, responses=schemas.REFUSALS)

    async def read(request: Request, schema: type[schemas.Options]) -> tuple[Any, requests.Fields]:
        """Checked options, and all fields."""
        found = await requests.fields(request, limits, service.reader.run)
        if schema in schemas.TAKES_NO_INPUTS and found.has_inputs(runtime.modalities):
            raise Invalid(f"inputs: {request.url.path} takes none, expected {', '.join(schema.model_fields)}")
        strict = not found.form  # all that a form holds is text
        return schema.model_validate(found.options(runtime.modalities), strict=strict), found

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """Every part of the bundle ran once, and the server is not shutting down."""
        return _json({"status": "ready" if service.ready else "not ready"}, 200 if service.ready else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.get("/v1/info")
    async def info() -> Response:
        """What the model takes and gives: the bundle's manifest."""
        return _json(runtime.manifest.to_json())

    @post("/v1/encode", schemas.Options, schemas.Encoded)
    async def encode(request: Request) -> Response:
        """The posterior given what is there: mean and log-variance [B, D], KL to the prior in nats [B]."""
        _, found = await read(request, schemas.Options)
        q = await service.encode(await service.rows(found))
        return _json({name: np.ascontiguousarray(getattr(q, name)) for name in ("mu", "logvar", "kl")})

    @post("/v1/translate", schemas.Translate, schemas.Translated)
    async def translate(request: Request) -> Response:
        """One modality from the others, by the posterior mean."""
        options, found = await read(request, schemas.Translate)
        (to,) = service.targets(options.to)
        made = await service.translate(await service.rows(found), to)
        if options.format == "png":
            return _png(service, to, made)
        if options.format == "wav":
            if len(made) != 1:
                raise Invalid(f"format is wav for {len(made)} rows of {to!r}, expected one row of a sound")
            return Response(await asyncio.to_thread(values.wav, runtime, to, made[0]), media_type="audio/wav")
        return _json({"to": to, "values": service.shown(to, np.ascontiguousarray(made))})

    @post("/v1/reconstruct", schemas.To, schemas.Made)
    async def reconstruct(request: Request) -> Response:
        """Every modality as the model imagines it, missing ones too."""
        options, found = await read(request, schemas.To)
        return made(await service.reconstruct(await service.rows(found), service.targets(options.to)))

    @post("/v1/decode", schemas.Decode, schemas.Made, form=False)
    async def decode(request: Request) -> Response:
        """Points of the latent space as modalities."""
        options, _ = await read(request, schemas.Decode)
        return made(await service.decode(options.z, service.targets(options.to)))

    @post("/v1/sample", schemas.Sample, schemas.Made)
    async def sample(request: Request) -> Response:
        """Samples of the prior; the same seed gives the same ones."""
        options, _ = await read(request, schemas.Sample)
        return made(await service.sample(options.n, options.seed, service.targets(options.to), options.condition))

    if CLASSIFIER_PART in runtime.manifest.parts:
        classes = runtime.manifest.classes or ()

        @post("/v1/classify", schemas.Options, schemas.Classified)
        async def classify(request: Request) -> Response:
            """The likeliest class of each row given what it has, and the probability of each."""
            _, found = await read(request, schemas.Options)
            shares = await service.classify(await service.rows(found))
            likeliest = [classes[i] for i in shares.argmax(-1).tolist()]
            listed = [dict(zip(classes, row, strict=True)) for row in shares.tolist()]
            return _json({"classes": likeliest, "probabilities": listed})

    if any(spec.tokens is not None for spec in runtime.modalities.values()):

        @post("/v1/generate", schemas.Generate, schemas.Generated)
        async def generate(request: Request) -> Response:
            """Texts token by token, from whatever is there."""
            options, found = await read(request, schemas.Generate)
            return _json({"texts": await service.generate(await service.rows(found), options.model_dump())})

    def made(samples: Mapping[str, np.ndarray]) -> Response:
        return _json({"values": {name: service.shown(name, np.ascontiguousarray(x)) for name, x in samples.items()}})


def _png(service: _Service, name: str, samples: np.ndarray) -> Response:
    if not values.is_picture(service.runtime.modalities[name]) or len(samples) != 1:
        raise Invalid(f"format is png for {len(samples)} rows of {name!r}, expected one row of an image")
    return Response(values.png(samples[0]), media_type="image/png")


# --- errors -----------------------------------------------------------------------------------------------------------


def _add_error_handlers(app: FastAPI) -> None:
    def answer(error: Exception | str, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
        kind = error if isinstance(error, str) else type(error).__name__
        return _json({"error": {"type": kind, "message": message}}, status, headers)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return answer(error, error.status, str(error), error.headers)

    @app.exception_handler(InputError)
    async def wrong_input(_: Request, error: InputError) -> Response:
        return answer(error, 422, str(error))

    @app.exception_handler(ImportError)
    async def not_installed(_: Request, error: ImportError) -> Response:
        _log.error("%s", error)
        return answer("NotInstalled", 501, str(error))  # says which extra reads this

    @app.exception_handler(ValidationError)
    async def wrong_options(_: Request, error: ValidationError) -> Response:
        found = error.errors(include_url=False, include_input=False, include_context=False)[:5]
        listed = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found]
        return answer(Invalid(), 422, "; ".join(listed))

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> Response:
        return answer(error, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(BundleError)
    async def broken(_: Request, error: BundleError) -> Response:
        _log.error("%s", error)  # names files of this machine, which are nobody else's business
        return answer(error, 500, "the bundle cannot answer this; the server's log says why")

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, error: ClientDisconnect) -> Response:
        return answer(error, 400, "the client left before its request was whole")

    @app.exception_handler(Exception)  # a bug, or ONNX Runtime's own: logged with its traceback by the server
    async def unexpected(_: Request, error: Exception) -> Response:
        return answer("ServerError", 500, "an error of the server; its log says more")

    @app.exception_handler(TimeoutError)
    async def late(_: Request, error: TimeoutError) -> Response:
        return answer(TookTooLong(), TookTooLong.status, str(error))
