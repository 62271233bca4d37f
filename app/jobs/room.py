"""How many unfinished jobs a key may have, without counting them all at every submission."""

import time
from dataclasses import dataclass
from functools import cache

from sqlalchemy import text

from core.database import Transaction
from core.errors import ServiceError
from core.settings import settings

SHARE = 10
"""A count lets this process make one in so many of the jobs that there is room for before it counts again. So
the limit holds as long as at most so many processes answer requests; near it, every submission counts."""
COUNT_SECONDS = 1.0

# The states are written out: a plan that is kept for any value could not use the index of these.
_OPEN = text(
    "SELECT count(*) FROM jobs WHERE owner = :of_owner AND status IN ('queued', 'running', 'paused')"
)


class TooManyOpenJobs(ServiceError):
    """As many jobs are unfinished as this key may have: wait for one to end, or cancel one."""

    code, status, title = "too_many_open_jobs", 429, "Too many open jobs"
    retryable = True
    retry_after_seconds = 30


@dataclass
class _Allowance:
    jobs: int
    until: float


class Rooms:
    """What the last count of each owner's open jobs has left this process to make."""

    def __init__(self) -> None:
        self._allowances: dict[tuple[str, int], _Allowance] = {}

    def enter(self, tx: Transaction, owner: str, uncounted: int = 0) -> None:
        """Take the place of one more job; raises TooManyOpenJobs. A place that is not used costs a count.

        uncounted: jobs that the transaction will make, and has not inserted yet.
        """
        limit = settings().max_open_jobs
        allowance = self._allowances.get((owner, limit))
        if allowance is not None and allowance.jobs > 0 and time.monotonic() < allowance.until:
            allowance.jobs -= 1
            return
        open_jobs = uncounted + tx.session.connection().execute(_OPEN, {"of_owner": owner}).scalar_one()
        if open_jobs >= limit:
            raise TooManyOpenJobs(open_jobs=open_jobs, limit=limit)
        self._allowances[owner, limit] = _Allowance(
            (limit - open_jobs) // SHARE, time.monotonic() + COUNT_SECONDS
        )


@cache
def rooms() -> Rooms:
    """This process's."""
    return Rooms()
