"""The rows of new jobs in one statement, however many jobs there are and stages they have.

All rows of a table travel as one JSON text: the ORM, an INSERT of a hundred parameters, or arrays that the
driver writes item by item, take longer than all else that a submission does.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Table, text
from sqlalchemy.orm import make_transient_to_detached

from core.database import Transaction
from core.tables import Event, Job, JobInput, StageRow

_GIVEN_BY_THE_DATABASE = {(Event.__tablename__, "created_at")}
_ENCODE = json.JSONEncoder(default=datetime.isoformat).encode


def _columns(table: Table) -> list[str]:
    return [c.name for c in table.columns if (table.name, c.name) not in _GIVEN_BY_THE_DATABASE]


def _insert(row: type[Job] | type[JobInput] | type[StageRow] | type[Event]) -> str:
    """Of rows in a parameter that has the table's name."""
    table = row.__tablename__
    columns = ", ".join(_columns(row.__table__))  # type: ignore[arg-type]
    rows = f"jsonb_populate_recordset(CAST(NULL AS {table}), CAST(:{table} AS jsonb))"
    return f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {rows}"  # noqa: S608  # names of our own


_ALL = text(
    f"WITH made AS ({_insert(Job)}), read AS ({_insert(JobInput)}), told AS ({_insert(Event)}) "
    f"{_insert(StageRow)}"
)
_JOB_COLUMNS = _columns(Job.__table__)  # type: ignore[arg-type]
_INPUT_COLUMNS = _columns(JobInput.__table__)  # type: ignore[arg-type]
FRESH_JOB: Mapping[str, Any] = {
    **{"status": "queued", "pauses_taken": [], "pause": None, "accepts_weak": False, "weak_accepted": []},
    **{"error": None, "event_counter": 0, "started_at": None, "finished_at": None, "deleted_at": None},
    "version": 1,
}
FRESH_STAGE: Mapping[str, Any] = {
    **{"status": "waiting", "cached": False, "run_id": None, "artifacts": {}, "summary": None, "error": None},
    **{"started_at": None, "finished_at": None},
}
"""What the database would fill in: given, so that no row is read back."""

_CHANGING = ("seed", "key", *FRESH_STAGE)
WrittenStages = Mapping[str, str]
"""By stage, the JSON of the columns that no job changes, without its last brace."""


@dataclass
class NewJob:
    """A job whose rows are to be inserted, with its stages as they are by then. inputs: what it reads that no
    stage makes. written: of its stages."""

    job: Job
    stages: list[StageRow]
    inputs: list[JobInput]
    written: WrittenStages


def insert_jobs(tx: Transaction, new: Sequence[NewJob]) -> None:
    """The rows of jobs, of their inputs and stages as they are now, and of their events so far.

    Whatever changes one of them afterwards has to read it first.
    """
    ids = {each.job.id for each in new}
    rows = {
        Job.__tablename__: _ENCODE([_values(each.job, _JOB_COLUMNS) for each in new]),
        JobInput.__tablename__: _ENCODE(
            [_values(leaf, _INPUT_COLUMNS) for each in new for leaf in each.inputs]
        ),
        StageRow.__tablename__: f"[{','.join(row for each in new for row in _stage_rows(each))}]",
        Event.__tablename__: _ENCODE([event for event in tx.events if event["job_id"] in ids]),
    }
    tx.events[:] = [event for event in tx.events if event["job_id"] not in ids]
    tx.session.connection().execute(_ALL, rows)


def have_at_hand(tx: Transaction, inputs: Iterable[JobInput]) -> None:
    """Let the session know inputs before they are inserted: whoever asks for one by its key is given it."""
    for leaf in inputs:
        make_transient_to_detached(leaf)
        tx.session.add(leaf)


def written_stages(columns: Mapping[str, Mapping[str, Any]]) -> WrittenStages:
    """columns: those that no job changes, by stage."""
    return {name: json.dumps(values)[:-1] for name, values in columns.items()}


def _stage_rows(new: NewJob) -> Iterable[str]:
    for stage in new.stages:
        changing = _ENCODE(_values(stage, _CHANGING) | {"job_id": new.job.id})
        yield f"{new.written[stage.name]}, {changing[1:]}"


def _values(row: Job | JobInput | StageRow, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}
