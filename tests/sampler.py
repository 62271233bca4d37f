"""A sampler for tests: the real loop on a thread, and tiny models for it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from redis import Redis
from transformers import AutoTokenizer

from core.ids import new_id
from core.sampling import ALIVE, CONSUMER_ALIVE, ModelFiles
from core.settings import settings
from core.stored_files import folder_digest
from tests.mpo.tiny import write_policy, write_reward_model
from workers.sampling.mailbox import Mailbox
from workers.sampling.serving import serve

CODE = Path(__file__).resolve().parents[1]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class TinyModels:
    """Folders: two policies (the second with a chat template) and a reward model."""

    plain: Path
    chatty: Path
    scorer: Path


def write_models(folder: Path) -> TinyModels:
    """Random models whose texts differ from prompt to prompt."""
    plain = write_policy(folder / "plain", seed=1, spread=0.3)
    chatty = write_policy(folder / "chatty", seed=2, spread=0.3)
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(chatty)
    return TinyModels(plain, chatty, write_reward_model(folder / "scorer", plain))


@cache
def files_of(folder: Path) -> ModelFiles:
    """What a request says of a model that lies on this machine."""
    return ModelFiles(name=folder.name, location=f"file://{folder}", sha256=folder_digest(folder))


def connect() -> Redis:
    """The test's Valkey."""
    return Redis.from_url(settings().redis_url.get_secret_value())


@contextmanager
def sampler_process() -> Iterator[subprocess.Popen[bytes]]:
    """`python -m workers.sampler` with this process's settings; killed at the end."""
    running = subprocess.Popen([sys.executable, "-m", "workers.sampler"], cwd=CODE, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@contextmanager
def sampler_without_database(redis_url: str, folder: Path) -> Iterator[None]:
    """A running sampler whose settings name no database that answers: it needs none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPO_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
        patch.setenv("MPO_REDIS_URL", redis_url)
        patch.setenv("MPO_STORE_URL", f"file://{folder / 'store'}")
        # Else it gives way to the machine's trainings, other tests' among them.
        patch.setenv("MPO_SCRATCH", str(folder / "scratch"))
        settings.cache_clear()
        with running_sampler():
            yield
        settings.cache_clear()


@contextmanager
def running_sampler(stop: threading.Event | None = None) -> Iterator[Mailbox]:
    """The sampler's loop on a thread of this process, announced for as long as it runs. stop: ends it."""
    stop = stop or threading.Event()
    with connect() as redis:
        consumer = new_id("worker")
        mailbox = Mailbox(redis, consumer)
        mailbox.open()
        mailbox.announce()
        for key in (ALIVE, CONSUMER_ALIVE + consumer):
            redis.persist(key)
        thread = threading.Thread(target=serve, args=(mailbox, stop))
        thread.start()
        try:
            yield mailbox
        finally:
            stop.set()
            thread.join()
            mailbox.withdraw()
