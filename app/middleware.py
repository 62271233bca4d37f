"""Around every request: its id, security headers, a bound on bodies, and an answer whatever went wrong."""

import logging
import re
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import problem_response, translate
from core.errors import ServiceError
from core.ids import new_id
from core.logs import bind
from core.settings import settings

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_BODY_BYTES = 16 << 20
UPLOAD_PATHS = re.compile(r"/v1/datasets(/[^/]+/content)?")
MULTIPART_EXTRA_BYTES = 1 << 20
CLIENT_GONE = 499
"""Counted in place of a status where nobody is left to be answered."""
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

logger = logging.getLogger(__name__)
Observe = Callable[[Scope, int, float], None]


class BodyTooLarge(ServiceError):
    """The body is larger than this path takes."""

    code, status, title = "body_too_large", 413, "Content too large"


class RequestFrame:
    """Outermost of ours. Plain ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        with bind(request_id=request_id):
            await self._frame(scope, receive, send, request_id)

    async def _frame(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started, status, location = time.perf_counter(), 0, None

        async def send_framed(message: Message) -> None:
            nonlocal status, location
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                location = headers.get("location")
                headers["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, _bounded(scope, receive), send_framed)
        except ClientDisconnect:
            status = status or CLIENT_GONE
        except Exception as error:
            if status:
                logger.exception("the answer broke off")
                raise
            await problem_response(scope, translate(error))(scope, receive, send_framed)
        finally:
            seconds = time.perf_counter() - started
            self._observe(scope, status, seconds)
            _log(scope, status, seconds, location)


def _log(scope: Scope, status: int, seconds: float, location: str | None) -> None:
    """A line for what changes something or fails; of other reads there are too many, and metrics count them.

    The route and not the path: a path may hold anything that a client puts there.
    """
    if scope["method"] in ("GET", "HEAD") and status < HTTPStatus.BAD_REQUEST:
        return
    with bind(method=scope["method"], route=route_of(scope), status=status, made=location):
        logger.info("answered in %.0f ms", 1000 * seconds)


def route_of(scope: Scope) -> str:
    """The template of the route that a request took, which has no ids in it."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else new_id("request")


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Uploads are streamed to a file; every other body is read into memory, so it must be small."""
    bound = left = MAX_BODY_BYTES
    if _is_upload(scope):
        bound = left = settings().max_upload_bytes + MULTIPART_EXTRA_BYTES

    async def receive_bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise BodyTooLarge(f"The body is larger than {bound} bytes", max_bytes=bound)
        return message

    return receive_bounded


def _is_upload(scope: Scope) -> bool:
    found = UPLOAD_PATHS.fullmatch(scope["path"])
    is_form = Headers(scope=scope).get("content-type", "").lower().startswith("multipart/form-data")
    return found is not None and (found.group(1) is not None or is_form)
