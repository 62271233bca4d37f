"""The Celery app: options once, here, since Celery takes a misspelt one in silence (a test checks these)."""

from celery import Celery

from core.settings import settings

celery_app = Celery("mpo", broker=settings().broker_url, include=["workers.tasks"])
celery_app.conf.update(
    accept_content=["json"],
    task_serializer="json",
    # A ring means "look": nobody waits for its result, and losing it costs a delay, never a run.
    task_ignore_result=True,
    task_acks_late=False,
    worker_disable_prefetch=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    # Work goes on without the broker: every slot also looks by itself.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_create_missing_queues=True,
)
