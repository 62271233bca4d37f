"""The SDK's one entry: `Client(url, api_key)`, one attribute a noun."""

from typing import Self

import httpx

from mpo_client.comparisons import Comparisons
from mpo_client.datasets import Datasets
from mpo_client.jobs import Jobs
from mpo_client.models import Models
from mpo_client.reward_gaps import Gaps
from mpo_client.transport import Transport


class Client:
    """Blocking. Every method raises Refused's children for what the service refuses, and Unreachable."""

    def __init__(self, base_url: str, api_key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._transport = Transport(base_url, api_key, transport)
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.gaps = Gaps(self._transport)
        self.models = Models(self._transport)
        self.comparisons = Comparisons(self._transport)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
