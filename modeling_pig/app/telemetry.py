"""Count and log requests, and report the health of the server."""

import logging
import sys
import time
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Message, Receive, Scope, Send

from ..visualization.text import printable
from . import schemas
from .errors import USER_ERRORS, UnavailableError
from .security import Access
from .service import SearchService
from .settings import AppSettings


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

logger = logging.getLogger(__name__)


class Telemetry:
    """ASGI application that counts and logs the requests of another one; `router` holds `/healthz` and `/metrics`.

    Args:
        app (`FastAPI`): the application.
        service (`SearchService`): service whose state is reported.
        settings (`AppSettings`): settings.
        access (`Access`): checks of tokens.
    """

    def __init__(self, app: FastAPI, service: SearchService, settings: AppSettings, access: Access):
        self._app = app
        self._service = service
        self._settings = settings
        if settings.log_requests or settings.log_queries:
            _log_to_stderr()
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("pig_requests", "Requests", labels, registry=self._registry)
        self._seconds = Histogram(
            "pig_request_seconds",
            "Time until the response was sent",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._running = Gauge("pig_requests_running", "Requests being answered", registry=self._registry)
        self._entries = Gauge("pig_index_entries", "Entries of the index", registry=self._registry)
        self._ready = Gauge("pig_ready", "1 if the index can be searched", registry=self._registry)
        self.router = APIRouter(tags=["server"])
        unready: dict[int | str, dict[str, Any]] = {503: {"model": schemas.Health}, 421: {"model": schemas.Problem}}
        self.router.add_api_route("/healthz", self.health, response_model=schemas.Health, responses=unready)
        self.router.add_api_route(
            "/metrics",
            self.metrics,
            dependencies=[Depends(access.read)],
            response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **schemas.problems(401, 421)},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._running.inc()
        try:
            await self._app(scope, receive, send_counted)
        finally:
            self._running.dec()
            seconds = time.perf_counter() - started
            route = _route_of(scope)
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PATCH", "DELETE") else "other"
            self._requests.labels(method, route, str(status)).inc()
            self._seconds.labels(route).observe(seconds)
            if self._settings.log_requests or self._settings.log_queries:
                path = scope["path"]
                if self._settings.log_queries and scope["query_string"]:
                    path += "?" + scope["query_string"].decode("latin-1")
                client = scope["client"][0] if scope.get("client") else "-"
                logger.info("%s %s %s %d %.0f ms", client, method, printable(path), status, 1000 * seconds)

    def health(self) -> Response:
        """Return whether the server can search: status 200 if it can, else 503."""
        state = self._measure()
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    def metrics(self) -> Response:
        """Return the numbers and times of requests in the text format of Prometheus."""
        self._measure()
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _measure(self) -> str:
        state, entries = "ready", 0
        try:
            entries = self._service.num_clips()
        except UnavailableError as error:
            state = error.state
        except USER_ERRORS as error:
            logger.error("%s", error)
            state = "unreadable"
        self._entries.set(entries)
        self._ready.set(state == "ready")
        return state


def _route_of(scope: Scope) -> str:
    """Return the path of a request with names in place of its parameters: each value of a label takes memory."""
    if scope.get("route") is None:
        return "other"
    names = {str(value): name for name, value in scope.get("path_params", {}).items()}
    return "/".join(f"{{{names[part]}}}" if part in names else part for part in scope["path"].split("/"))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


__all__ = ["Telemetry"]
