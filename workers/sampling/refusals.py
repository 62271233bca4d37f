"""Why a request gets no answer, as the reply that says so. Torch-free."""

import logging

from core.sampling import ErrorReply
from mpo.errors import MPOError

LOADING = "model_loading"

logger = logging.getLogger(__name__)


class Refused(MPOError):
    """This request cannot be served; `code`, `status` and `param` go to whoever asked."""

    code = "invalid_request"

    def __init__(self, detail: str, *, code: str, status: int = 422, param: str | None = None) -> None:
        super().__init__(detail, param=param)
        self.code, self.status, self.param = code, status, param  # type: ignore[misc]


def error_reply(error: Exception) -> ErrorReply:
    """The reply to a request that ended in an error. One that nobody foresaw is logged and not shown."""
    if isinstance(error, Refused):
        return ErrorReply(code=error.code, status=error.status, detail=error.detail, param=error.param)
    if isinstance(error, MPOError) and error.code == LOADING:
        return ErrorReply(code=LOADING, status=503, detail=error.detail, param="model")
    if isinstance(error, MPOError):
        return ErrorReply(code=error.code, status=422, detail=error.detail, param="model")
    logger.error("a request failed", exc_info=error)
    return ErrorReply(code="sampler_failed", status=500, detail="The sampler could not serve this request")
