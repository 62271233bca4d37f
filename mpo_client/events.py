"""What happened in a job: as a list, or as it happens."""

import json
from collections.abc import Mapping

from pydantic import JsonValue, ValidationError

from mpo_client.calls import Call, Flow, Item, Open, Plan, ReadOn, Reply, Sleep, path, send
from mpo_client.errors import ClientError, NotUnderstood
from mpo_client.paging import listed
from mpo_client.waiting import Patience

_AGAIN_SECONDS = 1.0
_FINISHED = frozenset({"succeeded", "failed", "cancelled"})
LAST = frozenset({"job.succeeded", "job.failed", "job.cancelled"})
"""Types of events after which none comes."""


class Event(Reply):
    """Ids rise within a job."""

    id: int
    type: str
    created_at: int | None = None
    stage: str | None = None
    message: str = ""
    data: dict[str, JsonValue] = {}


class _Status(Reply):
    status: str


def list_events(job_id: str, after: int, limit: int | None) -> Flow[Event]:
    """Those beyond an id, oldest first, that there are now."""
    query = {"after": after} if after else {}
    return listed(_path(job_id), Event, query=query, limit=limit)


def stream_events(job_id: str, after: int) -> Flow[Event]:
    """Those beyond an id as they come, until the job's last. Goes on by itself where the connection broke."""
    patience, last = Patience(), after
    while True:
        begun_at = last
        try:
            yield Open(_stream_call(job_id, last), lines=True)
            patience.heard()
            fields: dict[str, str] = {}
            while (line := (yield ReadOn())) is not None:
                patience.heard()
                if line:
                    _add_field(fields, line)
                elif "data" in fields:
                    event, fields = _event(job_id, fields), {}
                    yield Item(event)
                    last = event.id
                    if event.type in LAST:
                        return
            # A server that stops ends its streams too; one that had nothing more has told the job's end.
            if last == begun_at and (yield from _is_over(job_id)):
                return
            yield Sleep(_AGAIN_SECONDS)
        except ClientError as error:
            yield patience.bear(error)


def _is_over(job_id: str) -> Plan[bool]:
    job = yield from send(Call("GET", path("jobs", job_id), _Status))
    return job.status in _FINISHED


def _stream_call(job_id: str, last: int) -> Call[Event]:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
    return Call("GET", _path(job_id), Event, headers=headers)


def _add_field(fields: dict[str, str], line: str) -> None:
    name, _, value = line.partition(":")
    if name:  # else it is a comment, which keeps the connection open
        fields[name] = value.removeprefix(" ")


def _event(job_id: str, fields: Mapping[str, str]) -> Event:
    try:
        return Event.model_validate(json.loads(fields["data"]))
    except (ValueError, ValidationError) as error:
        raise NotUnderstood("GET", _path(job_id)) from error


def _path(job_id: str) -> str:
    return path("jobs", job_id, "events")
