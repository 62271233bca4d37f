"""Errors -> application/problem+json (RFC 9457), with the member `error` that OpenAI's SDK understands."""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.validation import FieldError, field_errors
from core.errors import NotFound, ServiceError, Unavailable, Unprocessable
from core.uploading import StoreFailed
from mpo.errors import MPOError

MEDIA_TYPE = "application/problem+json"
MAX_RETRY_AFTER_SECONDS = 120
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"} | {
    409: "conflict_error",
    429: "rate_limit_error",
}

logger = logging.getLogger(__name__)


class OpenAIError(BaseModel):
    """The shape in which OpenAI's SDK reads an error."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(BaseModel):
    """RFC 9457, and what makes it easier to act on."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldError]
    error: OpenAIError


class Overloaded(Unavailable):
    """The database does not answer in time; try again in a few seconds."""

    code, title = "database_unavailable", "Database unavailable"


class StoreUnavailable(Unavailable):
    """The store of files did not do what was asked; nothing has changed: try again later."""

    code, title = "store_unavailable", "Store unavailable"


class InternalError(ServiceError):
    """Something went wrong here; the log has the request's id."""

    code, status, title = "internal_error", 500, "Internal error"


def problem_response(scope: Scope, error: ServiceError, errors: Sequence[FieldError] = ()) -> JSONResponse:
    """The answer that an error becomes."""
    if not errors and isinstance(error, Unprocessable) and error.loc:
        errors = [FieldError(loc=list(error.loc), message=error.detail)]
    problem = _problem(str(scope.get("state", {}).get("request_id", "")), error, errors)
    content = {**_facts(error), **problem.model_dump(mode="json")}
    return JSONResponse(content, error.status, headers=_headers(error), media_type=MEDIA_TYPE)


def openai_error(error: ServiceError) -> bytes:
    """The member `error` alone, for a stream that has begun."""
    return json.dumps({"error": _problem("", error, ()).error.model_dump()}).encode()


def _problem(request_id: str, error: ServiceError, errors: Sequence[FieldError]) -> Problem:
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = getattr(error, "param", None) or (errors[0].param if errors else None)
    return Problem(
        type=f"urn:mpo:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        errors=list(errors),
        error=OpenAIError(message=error.detail, type=kind, param=param, code=error.code),
    )


def _facts(error: ServiceError) -> dict[str, object]:
    """RFC 9457's extension members: the facts of the error that JSON can hold."""
    return {
        k: v for k, v in error.facts.items() if k != "loc" and isinstance(v, str | int | float | list | dict)
    }


def _headers(error: ServiceError) -> dict[str, str]:
    headers: dict[str, str] = dict(getattr(error, "headers", {}))
    seconds = getattr(error, "retry_after_seconds", 5 if error.status in (429, 503) else None)
    if seconds is not None:
        headers["Retry-After"] = str(min(int(seconds), MAX_RETRY_AFTER_SECONDS))
    if error.status == HTTPStatus.CONFLICT:
        headers.setdefault("x-should-retry", "true" if error.retryable else "false")
    return headers


def translate(error: Exception) -> ServiceError:
    """The error that a client is told, whatever was raised."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        logger.warning("database: %s", type(error.__cause__ or error).__name__)
        return Overloaded()
    if isinstance(error, StoreFailed):
        return StoreUnavailable(f"The store of files failed: {error.strerror}; nothing has changed")
    if isinstance(error, DataError):
        # Such as NUL in an id: nothing that the database could ever hold.
        return Unprocessable("A value holds characters or numbers that cannot be stored")
    if isinstance(error, MPOError):
        refused = Unprocessable(error.detail)
        refused.code = error.code  # type: ignore[misc]
        return refused
    logger.error("unexpected", exc_info=error)
    return InternalError()


class FromHTTP(ServiceError):
    """What the framework itself refuses: no such path, a method that a path does not take, a broken body."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str]) -> None:
        phrase = HTTPStatus(status).phrase
        super().__init__(detail or phrase)
        self.status, self.title = status, phrase  # type: ignore[misc]
        self.code = phrase.lower().replace(" ", "_").replace("-", "_")  # type: ignore[misc]
        self.headers = dict(headers)


def _of_http(request: Request, error: HTTPException) -> ServiceError:
    if isinstance(error.__cause__, ServiceError):
        return error.__cause__  # raised while the framework read the body
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"There is no path {request.url.path}")
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names the methods of the path's first route alone.
        told = headers.pop("allow", "") or headers.pop("Allow", "")
        headers["Allow"] = ", ".join(request.app.state.methods_of(request.url.path)) or told
    return FromHTTP(error.status_code, str(error.detail), headers)


def install(app: FastAPI) -> None:
    """Answer every error as a problem. What no handler takes ends in `app.middleware`."""

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return problem_response(request.scope, _of_http(request, error))

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        errors = field_errors(error, request.scope.get("route"))
        detail = "; ".join(f"{e.param or e.loc[0]}: {e.message}" for e in errors[:3])
        return problem_response(request.scope, Unprocessable(detail), errors)

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return problem_response(request.scope, translate(error))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    for kind in (MPOError, OperationalError, InterfaceError, PoolTimeout, DataError, StoreFailed):
        app.add_exception_handler(kind, on_error)


RETRY_AFTER = {"description": "Seconds to wait", "schema": {"type": "integer", "maximum": 120}}
SHOULD_RETRY = {"description": "Whether a retry can help", "schema": {"enum": ["true", "false"]}}
HEADERS = {429: {"Retry-After": RETRY_AFTER}, 503: {"Retry-After": RETRY_AFTER}} | {
    409: {"x-should-retry": SHOULD_RETRY}
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's text of the problems a route can answer with; `app.main` adds what every call can."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            **({"headers": HEADERS[status]} if status in HEADERS else {}),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }
