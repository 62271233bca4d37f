"""From a request for a model, by name, to the sampler's reply."""

import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from app.inference.replies import ClientGone, SamplerGateway
from core.database import open_transaction
from core.errors import NotFound, ServiceError
from core.sampling import ModelFiles
from core.sampling import Request as SamplerRequest
from core.work_lookup import locate_base, locate_model

TRUSTED_SECONDS = 1.0
"""A model that was deleted answers for this long at most; its files are there longer."""
MOST_KNOWN = 10_000


class ModelNotFound(NotFound):
    """There is no such model, or it is another owner's."""

    code, param = "model_not_found", "model"


class Abandoned(ServiceError):
    """The client went away before the answer; nobody reads this."""

    code, status, title = "client_closed_request", 499, "Client closed request"


class Asking:
    """One HTTP request's way to the sampler."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gateway: SamplerGateway = request.app.state.sampler

    async def locate(self, owner: str, name: str) -> ModelFiles:
        """Where a model's files are. Raises ModelNotFound."""
        known: dict[tuple[str, str], tuple[float, ModelFiles]] = self._request.app.state.located
        at, files = known.get((owner, name), (0.0, None))
        if files is None or time.monotonic() - at > TRUSTED_SECONDS:
            files = await run_in_threadpool(_locate, owner, name)
            if len(known) >= MOST_KNOWN:
                known.clear()
            known[owner, name] = time.monotonic(), files
        return files

    async def ask(self, request: SamplerRequest) -> Any:
        """The sampler's reply. Raises SamplerRefused, NoSampler, SamplerBusy."""
        try:
            return await self._gateway.ask(request, self._request.is_disconnected)
        except ClientGone as gone:
            raise Abandoned() from gone

    def stream(self, request: SamplerRequest) -> AsyncGenerator[Any, None]:
        """The parts of the reply, and the reply. Raises as `ask` does; who is gone closes it."""
        return self._gateway.stream(request, _stays)


AskingDep = Annotated[Asking, Depends(Asking)]


async def _stays() -> bool:
    return False


def _locate(owner: str, name: str) -> ModelFiles:
    with open_transaction() as tx:
        try:
            found = locate_model(tx, owner, name)
        except NotFound as error:
            raise ModelNotFound(error.detail, **error.facts) from error
        return ModelFiles.of(found, locate_base(tx, found))
