"""The routes of an API server, and what all of its responses have in common.

Invariant: every response to a request has a request id, and of status 400 or more OpenAI's error shape; one that sends its client
elsewhere ends its connection. Probes and metrics need no key and work at any time. Does not generate (``endpoints.py``).
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enginehouse_engine.api import errors
from enginehouse_engine.api.endpoints import ChatCompletions, Completions, authorize
from enginehouse_engine.api.http_protocol import CONNECTION
from enginehouse_engine.api.metrics import CONTENT_TYPE
from enginehouse_engine.api.schema import Model, ModelList
from enginehouse_engine.api.service import Service

logger = logging.getLogger("enginehouse.api")

_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

Handler = Callable[[Request], Awaitable[Response]]


def create_app(service: Service) -> ASGIApp:
    """The ASGI application."""
    routes = [
        Route("/health", _health),
        Route("/ready", _ready(service)),
        Route("/metrics", _metrics(service)),
        Route("/v1/models", _models(service)),
        Route("/v1/models/{model:path}", _model(service)),
        Route("/v1/completions", Completions(service), methods=["POST"]),
        Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        errors.ApiError: _refused,
        HTTPException: _not_routed,
        ClientDisconnect: _gone,
        Exception: _broken,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    # A redirect would answer a wrong path with something that is no error in OpenAI's shape.
    app.router.redirect_slashes = False
    return _Envelope(app, service, {route.path for route in routes})


class _Envelope:
    """Adds to every response what all have in common, and counts it."""

    def __init__(self, app: ASGIApp, service: Service, paths: set[str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = _request_id(scope)
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def send_enveloped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
                # A client that keeps its connection would find the same server when it tries again.
                if self._service.draining or message["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
                    headers.append((b"connection", b"close"))
                self._service.metrics.responded(path, message["status"])
            elif self._service.draining and not message.get("more_body", False):
                scope["state"][CONNECTION].end_with_response()
            await send(message)

        await self._app(scope, receive, send_enveloped)


def _request_id(scope: Scope) -> bytes:
    """The client's own, if it is one line of visible characters."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given if _REQUEST_ID.fullmatch(given.decode("latin-1")) else f"req-{uuid.uuid4().hex}".encode()


async def _health(request: Request) -> Response:
    return _json({"status": "ok"})


def _ready(service: Service) -> Handler:
    async def ready(request: Request) -> Response:
        if reason := service.why_not_ready():
            raise errors.unavailable(reason, code="not_ready")
        return _json({"status": "ready", "max_model_len": service.front_end.ranks.max_context_length})

    return ready


def _metrics(service: Service) -> Handler:
    async def metrics(request: Request) -> Response:
        return Response(service.metrics.scrape(), headers={"Content-Type": CONTENT_TYPE})

    return metrics


def _models(service: Service) -> Handler:
    async def models(request: Request) -> Response:
        authorize(request, service.api_key)
        return _json(ModelList([_served(service)]))

    return models


def _model(service: Service) -> Handler:
    async def model(request: Request) -> Response:
        authorize(request, service.api_key)
        if request.path_params["model"] != service.model_name:
            raise errors.model_not_found(request.path_params["model"], served=service.model_name)
        return _json(_served(service))

    return model


def _served(service: Service) -> Model:
    return Model(id=service.model_name, created=service.started, max_model_len=service.front_end.ranks.max_context_length)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _error(error: errors.ApiError) -> Response:
    return Response(error.body(), error.status, headers=error.headers, media_type="application/json")


async def _refused(request: Request, error: errors.ApiError) -> Response:
    return _error(error)


async def _not_routed(request: Request, error: HTTPException) -> Response:
    known = {404: f"Unknown path {request.url.path}", 405: f"{request.method} is not allowed for {request.url.path}"}
    refusal = errors.for_status(error.status_code, known.get(error.status_code, error.detail))
    refusal.headers.update(error.headers or {})
    return _error(refusal)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)


async def _broken(request: Request, error: Exception) -> Response:
    # Starlette sends this and raises again; uvicorn then logs the traceback.
    return _error(errors.internal("the server had an internal error; its log says more"))
