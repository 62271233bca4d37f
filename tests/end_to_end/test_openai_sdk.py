"""OpenAI's own package, unmodified, against a running stack: from an upload to what was trained answering."""

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.end_to_end.running_stack import QUICK_METHOD, RunningStack, example_rows

SECONDS = 240
SHORT_DPO: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 8, "beta": 0.2}}}
"""On 24 rows: three steps."""
QUICK_MPO: Any = {"type": "mpo", "mpo": {name: v for name, v in QUICK_METHOD.items() if name != "type"}}
LONG_MPO: Any = {"type": "mpo", "mpo": {**QUICK_MPO["mpo"], "sft": {"epochs": 500}}}


@pytest.fixture(scope="module")
def sdk(stack: RunningStack) -> Iterator[openai.OpenAI]:
    key = stack.client.headers["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key) as found:
        yield found


@pytest.fixture(scope="module")
def file_id(sdk: openai.OpenAI) -> str:
    """Of 24 pairs."""
    content = "".join(json.dumps(row) + "\n" for row in example_rows(24)).encode()
    made = sdk.files.create(file=("pairs.jsonl", content), purpose="fine-tune")
    assert made.filename == "pairs.jsonl"
    return sdk.files.wait_for_processing(made.id, poll_interval=0.2, max_wait_seconds=60).id


def finished(sdk: openai.OpenAI, job_id: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while (job := sdk.fine_tuning.jobs.retrieve(job_id)).finished_at is None:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def until(sdk: openai.OpenAI, job_id: str, status: str) -> None:
    deadline = time.monotonic() + SECONDS
    while (job := sdk.fine_tuning.jobs.retrieve(job_id)).status != status:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)


def test_a_file_is_kept_listed_and_deleted(sdk: openai.OpenAI) -> None:
    content = "".join(json.dumps(row) + "\n" for row in example_rows(3)).encode()
    made = sdk.files.create(file=("three.jsonl", content), purpose="fine-tune")
    done = sdk.files.wait_for_processing(made.id, poll_interval=0.2, max_wait_seconds=60)
    assert (done.status, done.bytes) == ("processed", len(content))
    assert made.id in {file.id for file in sdk.files.list(purpose="fine-tune")}
    assert sdk.files.content(made.id).read() == content
    assert sdk.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(made.id)


def test_a_bad_file_says_what_is_wrong(sdk: openai.OpenAI) -> None:
    made = sdk.files.create(file=("bad.jsonl", b'{"prompt": "a"}\n'), purpose="fine-tune")
    done = sdk.files.wait_for_processing(made.id, poll_interval=0.2, max_wait_seconds=60)
    assert done.status == "error"
    assert "chosen" in (done.status_details or "")
    supervised = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    made = sdk.files.create(file=("chat.jsonl", json.dumps(supervised).encode()), purpose="fine-tune")
    done = sdk.files.wait_for_processing(made.id, poll_interval=0.2, max_wait_seconds=60)
    assert done.status == "error"
    assert 'Rows of "messages" alone' in (done.status_details or "")
    with pytest.raises(openai.UnprocessableEntityError):
        sdk.files.create(file=("a.jsonl", b"{}"), purpose="assistants")


def test_a_job_of_preferences_ends_in_models_that_answer(sdk: openai.OpenAI, file_id: str) -> None:
    made = sdk.fine_tuning.jobs.create(
        model="tiny", training_file=file_id, method=QUICK_MPO, seed=5, suffix="of the sdk",
        metadata={"team": "red"},
    )  # fmt: skip
    assert made.status in ("queued", "running", "validating_files")
    job = finished(sdk, made.id)
    assert (job.status, job.error, job.seed) == ("succeeded", None, 5)
    assert job.fine_tuned_model == f"{job.id}:ppo"
    assert made.id in {each.id for each in sdk.fine_tuning.jobs.list()}

    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=5))
    numbers = [int(event.id.removeprefix("ftevent-")) for event in events]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == 1
    assert events[0].message == "The job has succeeded"

    checkpoints = list(sdk.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    names = {each.fine_tuned_model_checkpoint for each in checkpoints}
    assert {f"{job.id}:{stage}" for stage in ("sft", "dpo", "ppo")} <= names
    assert len(names) == len(checkpoints)

    text = sdk.completions.create(model=job.fine_tuned_model, prompt="red", max_tokens=8, seed=1)
    streamed = sdk.completions.create(
        model=job.fine_tuned_model, prompt="red", max_tokens=8, seed=1, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.choices[0].text
    assert sdk.models.retrieve(job.fine_tuned_model).owned_by


def test_dpo_with_openai_s_hyperparameters(sdk: openai.OpenAI, file_id: str) -> None:
    made = sdk.fine_tuning.jobs.create(model="tiny", training_file=file_id, method=SHORT_DPO)
    assert made.method is not None
    assert made.method.type == "dpo"
    assert made.hyperparameters.n_epochs == 1
    cancelled = sdk.fine_tuning.jobs.cancel(made.id)
    assert cancelled.status == "cancelled"
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.fine_tuning.jobs.create(
            model="tiny", training_file=file_id, method={"type": "mpo", "mpo": {"dpo": {"bata": 1}}}
        )
    assert "bata" in str(refused.value)


def test_a_job_is_paused_resumed_and_cancelled(sdk: openai.OpenAI, file_id: str) -> None:
    job = sdk.fine_tuning.jobs.create(model="tiny", training_file=file_id, method=LONG_MPO, seed=9)
    until(sdk, job.id, "running")
    sdk.fine_tuning.jobs.pause(job.id)
    until(sdk, job.id, "paused")
    assert sdk.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    until(sdk, job.id, "running")
    assert sdk.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        sdk.fine_tuning.jobs.resume(job.id)
