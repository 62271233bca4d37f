"""What a call to the service can raise: the answer's problem (RFC 9457) as one exception a status."""

import httpx
from pydantic import BaseModel, ValidationError


class Problem(BaseModel):
    """The body of an answer that is no success."""

    title: str = ""
    status: int
    detail: str | None = None
    code: str = "unknown"
    request_id: str | None = None
    errors: list["FieldProblem"] = []


class FieldProblem(BaseModel):
    loc: list[str | int] = []
    message: str = ""


class ClientError(Exception):
    """Base of everything that this package raises on purpose."""


class Unreachable(ClientError):
    """No answer came: nothing listens there, or the connection broke."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"no answer from {url}: {why}")


class NotUnderstood(ClientError):
    """An answer came that this service does not give: something else listens there."""

    def __init__(self, method: str, url: str) -> None:
        super().__init__(f"the answer to {method} {url} is not this service's: is the URL right?")


class Damaged(ClientError):
    """A file came with another digest than was announced; it was not kept."""

    def __init__(self, file: str) -> None:
        super().__init__(f"{file} came damaged (its SHA-256 differs), and was not kept: try again")


class Missing(ClientError):
    """Something is asked for that needs a package which is not installed."""

    def __init__(self, package: str, what: str) -> None:
        super().__init__(f"{what} needs {package}, which is not installed: pip install {package}")


class DeadlinePassed(ClientError):
    """`wait()` gave up; what was waited for goes on."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} was not done within {seconds:g} s")


class Refused(ClientError):
    """The service answered with a problem."""

    def __init__(self, problem: Problem, retry_after_seconds: float | None = None) -> None:
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail or problem.title
        self.request_id = problem.request_id
        self.errors = problem.errors
        self.retry_after_seconds = retry_after_seconds
        fields = "".join(f"; {'.'.join(map(str, each.loc))}: {each.message}" for each in problem.errors)
        asked = f" (request {self.request_id})" if self.request_id else ""
        super().__init__(f"{self.status} {self.code}: {self.detail}{fields}{asked}")


class BadRequest(Refused):
    """400"""


class NotAuthenticated(Refused):
    """401"""


class NotAllowed(Refused):
    """403"""


class NotFound(Refused):
    """404"""


class Conflict(Refused):
    """409"""


class TooLarge(Refused):
    """413"""


class NotValid(Refused):
    """422"""


class TooManyRequests(Refused):
    """429"""


class ServerFailed(Refused):
    """5xx"""


class NotAvailable(ServerFailed):
    """503"""


_BY_STATUS: dict[int, type[Refused]] = {
    400: BadRequest,
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: NotValid,
    429: TooManyRequests,
    503: NotAvailable,
}


def refusal(response: httpx.Response) -> Refused:
    """The exception that an answer of 400 or above stands for; its body must have been read."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        # Something between here and the service answered in its stead.
        problem = Problem(
            status=response.status_code,
            title=response.reason_phrase,
            request_id=response.headers.get("x-request-id"),
        )
    kind = _BY_STATUS.get(response.status_code, ServerFailed if response.status_code >= 500 else Refused)
    retry_after = response.headers.get("retry-after", "")
    return kind(problem, float(retry_after) if retry_after.isdecimal() else None)
