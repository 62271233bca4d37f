"""The SDK's entries: `Client(url, api_key)` and `AsyncClient(url, api_key)`, one attribute a noun."""

from typing import Self

import httpx

from mpo_client.async_transport import AsyncTransport
from mpo_client.comparisons import AsyncComparisons, Comparisons
from mpo_client.datasets import AsyncDatasets, Datasets
from mpo_client.evaluations import AsyncEvaluations, Evaluations
from mpo_client.inference import AsyncInference, Inference
from mpo_client.jobs import AsyncJobs, Jobs
from mpo_client.models import AsyncModels, Models
from mpo_client.operations import AsyncKeys, AsyncOperations, Keys, Operations
from mpo_client.reward_gaps import AsyncGaps, Gaps
from mpo_client.runs import Artifacts, AsyncArtifacts, AsyncRuns, Runs
from mpo_client.transport import Transport


class Client:
    """Blocking. Every method raises Refused's children for what the service refuses, and Unreachable."""

    def __init__(self, base_url: str, api_key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._transport = Transport(base_url, api_key, transport)
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.gaps = Gaps(self._transport)
        self.models = Models(self._transport)
        self.runs = Runs(self._transport)
        self.artifacts = Artifacts(self._transport)
        self.comparisons = Comparisons(self._transport)
        self.evaluations = Evaluations(self._transport)
        self.inference = Inference(self._transport)
        self.keys = Keys(self._transport)
        self.operations = Operations(self._transport)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """For asyncio: the same nouns and methods, awaited; what is iterated takes `async for`."""

    def __init__(
        self, base_url: str, api_key: str, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._transport = AsyncTransport(base_url, api_key, transport)
        self.datasets = AsyncDatasets(self._transport)
        self.jobs = AsyncJobs(self._transport)
        self.gaps = AsyncGaps(self._transport)
        self.models = AsyncModels(self._transport)
        self.runs = AsyncRuns(self._transport)
        self.artifacts = AsyncArtifacts(self._transport)
        self.comparisons = AsyncComparisons(self._transport)
        self.evaluations = AsyncEvaluations(self._transport)
        self.inference = AsyncInference(self._transport)
        self.keys = AsyncKeys(self._transport)
        self.operations = AsyncOperations(self._transport)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
