"""The one task: somebody rang."""

from workers.celery_app import celery_app
from workers.executor import wake


@celery_app.task(name="workers.tasks.look")  # type: ignore[untyped-decorator]
def look(slot: str) -> None:
    """There may be work for this slot class: free slots of this process look for it."""
    wake(slot)
