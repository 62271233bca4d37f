"""`mpo demo --model`: the whole job on a real model and one's own pairs, and a page about what came of it."""

import gzip
import json
import signal
import tempfile
import time
import zlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from embedded import demo_report as told
from embedded import real_report
from embedded.added_models import add_model
from embedded.demo import leave, service
from embedded.errors import DemoFailed
from embedded.shipped import examples_folder
from embedded.state import StateFolder
from mpo_client.client import Client
from mpo_client.comparisons import Comparison
from mpo_client.errors import ClientError
from mpo_client.jobs import Job

SPEC = "real_job.json"
GZIP = b"\x1f\x8b"
JOB_SECONDS = 4 * 3600.0
COMPARISON_SECONDS = 900.0
COMPARED = ("sft", "dpo", "ppo")
SHOWN_PROMPTS = 3
SHOWN_TOKENS, SHOWN_TEMPERATURE = 64, 0.7
MOST_PROMPT_CHARACTERS = 100
"""Of a prompt that the page shows."""


@dataclass(frozen=True)
class RealRun:
    """What is asked for. model: as `mpo models add` takes it; limit: pairs from the file's beginning."""

    model: str
    pairs: Path
    limit: int
    page: Path | None
    command: str


def run(folder: Path, asked: RealRun, *, port: int, keep: bool) -> None:
    """Adds the model, starts a stack, trains, compares, writes the page, stops the stack.

    Raises StackError: a model or file cannot be used, the stack does not start, the job does not succeed.
    """
    signal.signal(signal.SIGTERM, leave)
    rows = read_rows(asked.pairs)
    state = StateFolder.at(folder)
    model = add_model(asked.model, None, state, told.say).name
    with service(state, port=port, keep=keep) as url, Client(url, state.api_key()) as client:
        try:
            findings = _train_and_compare(client, asked, model, rows)
        except ClientError as error:
            raise DemoFailed(str(error)) from error
        told.stages(findings.job)
        told.comparison(findings.comparison, SHOWN_PROMPTS)
        if asked.page is not None:
            asked.page.parent.mkdir(parents=True, exist_ok=True)
            asked.page.write_text(real_report.page(findings), encoding="utf-8")
            told.say(f"wrote {asked.page}")
        told.what_next(url, state, keep=keep)


def read_rows(path: Path) -> list[dict[str, JsonValue]]:
    """The rows of a file in JSON Lines, plain or gzip. Raises DemoFailed."""
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if content.startswith(GZIP) else content
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DemoFailed(f"{path} cannot be read as JSON Lines: {error}") from error
    if not rows or not all(isinstance(row, dict) and "prompt" in row for row in rows):
        raise DemoFailed(f"{path} needs rows with prompt, chosen and rejected")
    return rows


def job_spec(model: str, dataset: str, limit: int) -> dict[str, JsonValue]:
    """The settings of `examples/real_job.json`, which are for 200 pairs; fewer pairs get fewer episodes."""
    examples = examples_folder()
    if examples is None:
        raise DemoFailed("the examples are not installed")
    spec: dict[str, Any] = json.loads((examples / SPEC).read_text())
    ppo = spec["method"]["ppo"]
    ppo["episodes"] = min(ppo["episodes"], max(1, limit // 2))
    ppo["rollout_prompts"] = min(ppo["rollout_prompts"], ppo["episodes"])
    return {**spec, "model": model, "dataset": dataset}


def unseen_prompts(rows: list[dict[str, JsonValue]], limit: int) -> list[str]:
    """Short questions from behind the pairs that are uploaded, whose first turn occurs in none of those."""
    seen = {_first_turn(str(row["prompt"])) for row in rows[:limit]}
    short = (
        prompt
        for row in rows[limit:]
        if isinstance(prompt := row["prompt"], str)
        and len(prompt) <= MOST_PROMPT_CHARACTERS
        and _first_turn(prompt) not in seen
    )
    return list(islice(short, SHOWN_PROMPTS))


def _first_turn(prompt: str) -> str:
    return prompt.partition("\n\nAssistant:")[0].strip()


def _train_and_compare(
    client: Client, asked: RealRun, model: str, rows: list[dict[str, JsonValue]]
) -> real_report.Findings:
    limit = min(asked.limit, len(rows))
    began = time.monotonic()
    dataset = _upload(client, rows[:limit], asked.pairs.name)
    told.say(f"{limit} pairs of {asked.pairs.name} are ready as {dataset}")
    job = client.jobs.create(job_spec(model, dataset, limit))
    told.say(f"job {job.id} is queued: {' → '.join(stage.name for stage in job.stages)}")
    job = client.jobs.wait(job.id, deadline_seconds=JOB_SECONDS, on_change=told.Progress().show)
    if job.status != "succeeded":
        raise DemoFailed(told.failure(job))
    seconds = time.monotonic() - began
    told.say("asking the models questions that none was trained on")
    comparison = _compare(client, model, job, unseen_prompts(rows, limit) or [str(rows[0]["prompt"])])
    return real_report.Findings(
        command=asked.command,
        model=model,
        pairs=asked.pairs.name,
        sources=sorted({str(row["source"]) for row in rows[:limit] if row.get("source")}),
        used=limit,
        job=job,
        report=client.jobs.report(job.id),
        gaps=client.gaps.get(job.id, bins=20),
        comparison=comparison,
        temperature=SHOWN_TEMPERATURE,
        seconds=seconds,
    )


def _upload(client: Client, rows: list[dict[str, JsonValue]], name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        dataset = client.datasets.upload(file, name=f"{name}, first {len(rows)}")
    dataset = client.datasets.wait(dataset.id)
    if dataset.status != "ready":
        raise DemoFailed(
            f"the pairs were refused: {dataset.error.message if dataset.error else dataset.status}"
        )
    return dataset.id


def _compare(client: Client, model: str, job: Job, prompts: list[str]) -> Comparison:
    begun = client.comparisons.create(
        models=[model, *(job.models[stage] for stage in COMPARED)],
        prompts=prompts,
        max_tokens=SHOWN_TOKENS,
        temperature=SHOWN_TEMPERATURE,
        seed=0,
        reward_model=job.models["judge"],
    )
    comparison = client.comparisons.wait(begun.id, deadline_seconds=COMPARISON_SECONDS)
    if comparison.status != "succeeded":
        why = comparison.error.message if comparison.error else comparison.status
        raise DemoFailed(f"comparison {comparison.id}: {why}")
    return comparison
