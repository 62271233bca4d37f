"""Errors that reach a client: `MPOError` with an HTTP status and a title."""

from typing import ClassVar

from mpo.errors import MPOError


class ServiceError(MPOError):
    """The service could not do what was asked."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"


class NotFound(ServiceError):
    """There is no such object, or it is another owner's."""

    code, status, title = "not_found", 404, "Not found"


class Conflict(ServiceError):
    """The object's state does not allow this."""

    code, status, title = "conflict", 409, "Conflict"


class Unprocessable(ServiceError):
    """A field holds what cannot be used. `loc` names the field."""

    code, status, title = "invalid_request", 422, "Invalid request"

    def __init__(self, detail: str = "", *, loc: tuple[str | int, ...] = (), **facts: object) -> None:
        super().__init__(detail, loc=loc, **facts)
        self.loc = loc


class Unavailable(ServiceError):
    """Something that this call needs is away; try again later."""

    code, status, title = "unavailable", 503, "Unavailable"
    retryable = True
    retry_after_seconds = 5


class FenceOver(ServiceError):
    """Another attempt holds the run now; what this one did counts for nothing."""

    code, status, title = "fence_over", 409, "The run has passed to another attempt"


class ForbiddenTransition(ServiceError):
    """The run's state does not allow this transition."""

    code, status, title = "forbidden_transition", 409, "Forbidden transition"
