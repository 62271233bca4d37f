"""Which waiting requests go through a model together. Torch-free."""

from collections.abc import Sequence

from core.sampling import SampleRequest
from workers.sampling.mailbox import Mail

MAX_GROUP_ROWS = 64
SHORT_TOKENS = 16


def group_key(mail: Mail) -> tuple[object, ...]:
    """Alike for requests that one batch can serve.

    How long the responses may get is part of it, by powers of four: a short one waits for no long one.
    """
    request = mail.envelope.request
    common = (request.op, request.model.sha256, request.model.location)
    if not isinstance(request, SampleRequest):
        return common
    length = None if request.max_tokens is None else max(request.max_tokens, SHORT_TOKENS).bit_length() // 2
    return (*common, request.temperature, request.top_p, length)


def grouped(mails: Sequence[Mail]) -> list[list[Mail]]:
    """The requests in groups, by the order in which their first ones came; none of too many rows."""
    groups: list[list[Mail]] = []
    open_groups: dict[tuple[object, ...], list[Mail]] = {}
    for mail in mails:
        key = group_key(mail)
        group = open_groups.get(key)
        if group is None or sum(map(_rows, group)) + _rows(mail) > MAX_GROUP_ROWS:
            group = open_groups[key] = []
            groups.append(group)
        group.append(mail)
    return groups


def _rows(mail: Mail) -> int:
    request = mail.envelope.request
    return len(request.prompts) * request.n if isinstance(request, SampleRequest) else 0
