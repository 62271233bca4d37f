"""A running sampler beside a training: it rests while one is at work, and not else."""

import threading
from pathlib import Path

import pytest

from core.sampling import SampleRequest
from tests.embedded.waiting import wait_for
from tests.mpo.tiny import write_policy
from tests.sampler import connect, files_of, running_sampler
from workers.device_use import device_in_use, lock_file
from workers.sampler_client import SamplerClient


class RecordingStop(threading.Event):
    """Keeps how long it was waited for: all rests of a sampler whose Redis answers."""

    def __init__(self) -> None:
        super().__init__()
        self.rests: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.rests.append(timeout)
        return super().wait(timeout)


@pytest.mark.usefixtures("settings_env")
def test_it_rests_while_a_training_is_at_work_and_answers_the_same(tmp_path: Path) -> None:
    stop, model = RecordingStop(), files_of(write_policy(tmp_path / "policy"))
    request = SampleRequest(model=model, prompts=["red cat", "blue"], max_tokens=24, seed=5)
    with connect() as redis, running_sampler(stop):
        ask = SamplerClient(redis).ask
        alone = ask(request)
        assert stop.rests == []
        with device_in_use(lock_file()):
            wait_for(lambda: ask(request) == alone and stop.rests != [])

        def asked_without_rest() -> bool:
            stop.rests.clear()
            return ask(request) == alone and stop.rests == []

        wait_for(asked_without_rest)
