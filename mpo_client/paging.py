"""Lists, over as many pages as it takes."""

from typing import Generic, TypeVar, cast

from pydantic import BaseModel

from mpo_client.calls import Call, Flow, Item, Query, Reply, send

T = TypeVar("T", bound=BaseModel)

_LARGEST_PAGE = 100


class Page(Reply, Generic[T]):
    """A page of a list."""

    data: list[T]
    last_id: str | int | None = None
    has_more: bool = False


def listed(path: str, item: type[T], *, query: Query | None = None, limit: int | None = None) -> Flow[T]:
    """The objects of a list, at most `limit` in all; a page is asked for when its first is taken."""
    left, after = limit, None
    while left is None or left > 0:
        size = _LARGEST_PAGE if left is None else min(left, _LARGEST_PAGE)
        asked = {**(query or {}), "limit": size, **({"after": after} if after is not None else {})}
        shape = cast(type[Page[T]], Page[item])  # type: ignore[valid-type]
        page = yield from send(Call("GET", path, shape, query=asked))
        for each in page.data:
            yield Item(each)
        if not page.has_more:
            return
        after = page.last_id
        left = None if left is None else left - len(page.data)
