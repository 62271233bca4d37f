"""The SDK: `Client` and `AsyncClient`; what they raise is in `mpo_client.errors`."""

from mpo_client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
