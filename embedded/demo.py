"""`mpo demo`: a first job from start to end, through the same client and service that anybody else uses."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from embedded import demo_report as report
from embedded.errors import DemoFailed
from embedded.gold_report import DPO, MPO, SFT, gold_findings, tell_answers, tell_gaps, tell_gold
from embedded.shipped import examples_folder
from embedded.state import StateFolder
from mpo_client.cli.screen import Screen
from mpo_client.cli.watching import shown
from mpo_client.client import Client
from mpo_client.comparisons import Row
from mpo_client.errors import ClientError
from mpo_client.jobs import Job

JOB_SECONDS = 1800.0
COMPARISON_SECONDS = 300.0
COMPARED = (SFT, DPO, MPO)
BINS = 24
MAX_TOKENS = 64
_SHOWN_PROMPTS = 3


def run(folder: Path, *, port: int, keep: bool, seed: int = 0) -> None:
    """Starts a stack, trains, compares, reports, stops the stack unless it is to be kept.

    seed: of every training and draw of the job. Raises StackError: the stack does not start, or the job does
    not succeed.
    """
    signal.signal(signal.SIGTERM, leave)
    examples = _examples()
    state = StateFolder.at(folder)
    with service(state, port=port, keep=keep) as url, Client(url, state.api_key()) as client:
        try:
            _train_and_compare(client, examples, state, seed)
        except ClientError as error:
            raise DemoFailed(str(error)) from error
        report.what_next(url, state, keep=keep)


def _train_and_compare(client: Client, examples: Path, state: StateFolder, seed: int) -> None:
    dataset = client.datasets.upload(examples / "pairs.jsonl.gz", name="example pairs")
    report.say(f"uploaded {examples / 'pairs.jsonl.gz'} as {dataset.id}")
    dataset = client.datasets.wait(dataset.id)
    if dataset.status != "ready":
        why = dataset.error.message if dataset.error else dataset.status
        raise DemoFailed(f"the example pairs were refused: {why}")
    report.say(f"{dataset.rows} preference pairs are ready")

    job = client.jobs.create(_spec(examples, dataset.id, seed))
    report.say(f"job {job.id} is queued")
    screen = Screen()
    with shown(screen) as show:
        job = client.jobs.wait(job.id, deadline_seconds=JOB_SECONDS, on_change=show)
    if job.status != "succeeded":
        raise DemoFailed(report.failure(job))

    picture = state.root / "reward-gaps.png"
    client.gaps.save_picture(job.id, picture)
    found = client.jobs.report(job.id)
    tell_gaps(screen, client.gaps.get(job.id, bins=BINS), found, picture)
    report.say("asking the models what none was trained on")
    gold = gold_findings(_ask(client, examples, job), COMPARED, found)
    tell_gold(screen, gold)
    tell_answers(screen, gold, COMPARED, _SHOWN_PROMPTS)


def _ask(client: Client, examples: Path, job: Job) -> list[Row]:
    """The answers of all models to the held-out prompts, a row a prompt."""
    prompts = [json.loads(line)["prompt"] for line in (examples / "prompts.jsonl").read_text().splitlines()]
    begun = client.comparisons.create(
        models=[job.models[stage] for stage in COMPARED], prompts=prompts, max_tokens=MAX_TOKENS, seed=0
    )
    comparison = client.comparisons.wait(begun.id, deadline_seconds=COMPARISON_SECONDS)
    if comparison.status != "succeeded":
        why = comparison.error.message if comparison.error else comparison.status
        raise DemoFailed(f"comparison {comparison.id}: {why}")
    return list(client.comparisons.rows(comparison.id))


def _examples() -> Path:
    folder = examples_folder()
    if folder is None:
        raise DemoFailed("the examples are not installed; make them with: make example-data")
    return folder


def _spec(examples: Path, dataset_id: str, seed: int) -> dict[str, JsonValue]:
    spec: dict[str, JsonValue] = json.loads((examples / "demo_job.json").read_text())
    return {**spec, "dataset": dataset_id, "seed": seed}


@contextmanager
def service(state: StateFolder, *, port: int, keep: bool) -> Iterator[str]:
    """The URL of a stack in the folder, started as `mpo up` starts it."""
    log = state.log("up")
    command = [sys.executable, "-m", "embedded", "up", "--state", str(state.root), "--port", str(port)]
    report.say(f"starting the service in {state.root}")
    with log.open("wb") as errors:
        # A session of its own: Ctrl-C ends the demo, which then stops the service in good order.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
    succeeded = False
    try:
        yield _url(process, log)
        succeeded = True
    finally:
        if process.poll() is None and not (keep and succeeded):
            report.say("stopping the service")
            process.terminate()
            process.wait()


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline().decode()
    if not line.startswith("ready "):
        process.wait()
        raise DemoFailed(f"the service did not start:\n{log.read_text().strip()}")
    url = line.removeprefix("ready ").strip()
    report.say(f"it answers at {url}")
    return url


def leave(number: int, _frame: object) -> None:
    """As Ctrl-C does: on the way out the service is stopped."""
    raise SystemExit(128 + number)
