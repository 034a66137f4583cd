"""What Prometheus may ask, in a registry of its own, so that several apps can live in a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counts of requests by route and status, how long they took, and how many shared a call."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], int]):
        self._registry = home = CollectorRegistry()
        self.requests = Counter("mmvae_fast_requests", "Requests answered.", ("route", "status"), registry=home)
        self.seconds = Histogram(
            "mmvae_fast_request_seconds", "Until the answer is sent.", ("route",), buckets=_SECONDS, registry=home
        )
        self.batch_requests = Histogram(
            "mmvae_fast_batch_requests", "Requests in a call of the Runtime.", buckets=_ROWS, registry=home
        )
        self.batch_rows = Histogram(
            "mmvae_fast_batch_rows", "Rows in a call of the Runtime.", buckets=_ROWS, registry=home
        )
        Gauge("mmvae_fast_waiting", "Requests that wait for the Runtime.", registry=home).set_function(waiting)

    def on_batch(self, requests: int, rows: int) -> None:
        self.batch_requests.observe(requests)
        self.batch_rows.observe(rows)

    def middleware(self, app: Any) -> Callable:
        """``app``, counted by the route that answers, so that made-up paths make no series of their own."""

        async def measured(scope: MutableMapping[str, Any], receive: Callable, send: Callable) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began, status = time.perf_counter(), "none"  # of a client that left

            async def noting(message: Mapping[str, Any]) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, noting)
            except Exception:  # answered outside of here, by the server's last handler
                status = "500" if status == "none" else status
                raise
            finally:
                route = getattr(scope.get("route"), "path", "none")
                self.requests.labels(route, status).inc()
                self.seconds.labels(route).observe(time.perf_counter() - began)

        return measured

    def text(self) -> bytes:
        return generate_latest(self._registry)
