"""Evaluations by SDK and command, against the real service; the stage works in the test's own process."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mpo_client import AsyncClient, errors
from mpo_client.client import Client
from mpo_client.evaluations import Evaluation
from tests.app.evaluations.performing import LENGTHS, held_out, perform, register_models, write_models
from tests.mpo_client.conftest import Mpo


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def dataset(sdk: Client, folders: Path, tmp_path: Path) -> str:
    register_models(folders)
    return held_out(tmp_path)


def create(sdk: Client, dataset: str) -> Evaluation:
    return sdk.evaluations.create(
        models=["second", "first"], judge="judge", dataset=dataset, prompts=4, samples=2, seed=3, **LENGTHS
    )


def on_a_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_evaluation_is_made_waited_for_and_read(sdk: Client, dataset: str, tmp_path: Path) -> None:
    made = create(sdk, dataset)
    assert (made.status, made.models, made.report) == ("queued", ["second", "first"], None)
    with pytest.raises(errors.Conflict):
        list(sdk.evaluations.samples(made.id))
    changes: list[str] = []
    worker = on_a_thread(lambda: perform(made.run_id or "", tmp_path))
    done = sdk.evaluations.wait(
        made.id, deadline_seconds=120, on_change=lambda found: changes.append(found.status)
    )
    worker.join()
    assert (done.status, changes[-1]) == ("succeeded", "succeeded")
    assert done.report is not None
    assert [model.model for model in done.report.models] == ["second", "first"]
    (rate,) = done.report.win_rates
    assert (rate.model_a, rate.model_b, rate.n) == ("first", "second", 4)
    assert done.report.models[0].diversity.distinct_1 is not None
    assert done.report.models[0].diversity.self_bleu is not None
    rows = list(sdk.evaluations.samples(made.id))
    assert [row.index for row in rows] == [0, 1, 2, 3]
    sdk.evaluations.save_samples(made.id, tmp_path / "samples.jsonl")
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [row.prompt for row in rows]
    assert [each.id for each in sdk.evaluations.list(limit=5)] == [made.id]


def test_what_is_refused_names_its_field(sdk: Client, dataset: str) -> None:
    with pytest.raises(errors.Refused, match="judge of evaluate takes a reward model"):
        sdk.evaluations.create(models=["first"], judge="second", dataset=dataset)


def test_an_awaiting_client_does_the_same(url: str, admin_key: str, dataset: str) -> None:
    async def work() -> None:
        async with AsyncClient(url, admin_key) as client:
            made = await client.evaluations.create(
                models=["first"], judge="judge", dataset=dataset, **LENGTHS
            )
            assert [each.id async for each in client.evaluations.list()] == [made.id]
            assert (await client.evaluations.cancel(made.id)).status == "cancelled"
            assert (await client.evaluations.wait(made.id, deadline_seconds=5)).status == "cancelled"

    asyncio.run(work())


def test_the_command_evaluates(sdk: Client, at_service: Mpo, dataset: str, tmp_path: Path) -> None:
    asked = ("evaluations", "create", "first", "second", "--judge", "judge", "--dataset", dataset)
    begun = at_service(*asked, "--prompts", "4", "--max-tokens", "6", "--sft", "first", "--no-wait")
    assert begun.exit_code == 0, begun.output
    made = begun.stdout.strip()
    assert f"mpo evaluations show {made}" in begun.stderr
    assert made in at_service("evaluations", "list").stdout
    perform(sdk.evaluations.get(made).run_id or "", tmp_path)
    shown = at_service("evaluations", "show", made)
    assert shown.exit_code == 0, shown.output
    for word in ("succeeded", "distinct-1", "self-BLEU", "won/lost/tied", "not known", "to first"):
        assert word in shown.stdout, word
    document = json.loads(at_service("evaluations", "show", made, "--json").stdout)
    assert document["report"]["prompts"] == 4
    saved = at_service("evaluations", "samples", made, str(tmp_path / "samples.jsonl"))
    assert saved.exit_code == 0, saved.output
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 4


def test_an_evaluation_that_is_cancelled_under_the_command_ends_it(
    sdk: Client, at_service: Mpo, dataset: str
) -> None:
    def cancel() -> None:
        while not (found := list(sdk.evaluations.list())):
            threading.Event().wait(0.05)
        sdk.evaluations.cancel(found[0].id)

    other = on_a_thread(cancel)
    ended = at_service("evaluations", "create", "first", "--judge", "judge", "--dataset", dataset)
    other.join()
    assert ended.exit_code == 4, ended.output
    assert "cancelled" in ended.stdout
    again = at_service("evaluations", "cancel", next(iter(sdk.evaluations.list())).id)
    assert (again.exit_code, "is cancelled" in again.stderr) == (0, True)
