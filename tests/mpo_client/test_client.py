"""Both clients against the real service: what one can, the other can."""

import asyncio
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from core.database import open_transaction
from core.settings import settings
from core.tables import Metric
from mpo_client import errors, waiting
from mpo_client.client import AsyncClient, Client
from mpo_client.jobs import Job
from mpo_client.nouns import Answers, Iterates
from tests.app.artifacts.factories import score, split
from tests.app.jobs.factories import claim, make_dataset, make_model, publish, work_until
from tests.app.jobs.factories import pairs as preference_pairs
from tests.app.models.test_routes import model_folder, trained
from tests.factories import json_lines, pairs, validate

GAPS = [-2.0, -0.5, 0.5, 1.5, 2.5, 3.0, 0.25, 1.0]


def nouns(client: object) -> dict[str, object]:
    return {name: noun for name, noun in vars(client).items() if not name.startswith("_")}


def methods(noun: object) -> dict[str, Any]:
    found = {name: inspect.getattr_static(noun, name) for name in dir(noun) if not name.startswith("_")}
    return {name: each for name, each in found.items() if isinstance(each, Answers | Iterates)}


def test_both_clients_have_the_same_methods_and_each_says_what_it_does() -> None:
    blocking, awaiting = nouns(Client("http://a", "k")), nouns(AsyncClient("http://a", "k"))

    assert blocking.keys() == awaiting.keys()
    for name, noun in blocking.items():
        assert methods(noun) == methods(awaiting[name]) != {}
        for method in methods(noun):
            signature = inspect.signature(getattr(noun, method))
            kinds = [each.kind for each in signature.parameters.values()]
            # What it is about may be given by its place, everything else by its name.
            assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 3, f"{name}.{method}"


def test_a_dataset_from_upload_to_deletion(sdk: Client, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(json_lines(pairs(400)))
    told: list[tuple[int, int]] = []

    made = sdk.datasets.upload(file, on_progress=lambda sent, total: told.append((sent, total)))
    assert (made.name, made.status) == ("pairs.jsonl", "validating")
    assert told[-1] == (file.stat().st_size, file.stat().st_size)
    assert sdk.datasets.get(made.id).bytes == file.stat().st_size
    assert sdk.datasets.put_content(made.id, file).id == made.id  # the same content again

    validate(made.id, tmp_path)
    ready = sdk.datasets.wait(made.id, deadline_seconds=10)
    assert (ready.status, ready.rows) == ("ready", 400)
    assert len({row.id for row in sdk.datasets.rows(made.id)}) == 400
    assert [row.chosen for row in sdk.datasets.rows(made.id, limit=3)][2] == "A good answer to 2."
    assert sdk.datasets.report(made.id).rows == 400
    assert [each.id for each in sdk.datasets.list()] == [made.id]
    assert sdk.datasets.delete(made.id).deleted
    with pytest.raises(errors.NotFound):
        sdk.datasets.get(made.id)


def test_a_file_that_is_not_there_makes_no_dataset(sdk: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sdk.datasets.upload(tmp_path / "none.jsonl")
    assert list(sdk.datasets.list()) == []


def test_a_job_is_made_listed_steered_and_deleted(sdk: Client, spec: dict[str, Any]) -> None:
    planned = sdk.jobs.dry_run(spec)
    assert {stage.cached for stage in planned.stages} == {False}
    assert list(sdk.jobs.list()) == []

    job = sdk.jobs.create(spec)
    other = sdk.jobs.create({**spec, "labels": {}})
    assert [each.id for each in sdk.jobs.list()] == [other.id, job.id]
    assert [each.id for each in sdk.jobs.list(labels={"team": "a"}, status="queued")] == [job.id]
    assert [each.id for each in sdk.jobs.list(dataset=spec["dataset"], method="mpo", limit=1)] == [other.id]
    assert list(sdk.jobs.list(method="dpo")) == []

    assert sdk.jobs.pause(job.id).status == "paused"
    resumed = sdk.jobs.resume(job.id, split={"easy_fraction": 0.5})
    assert resumed.status in ("queued", "running")
    with pytest.raises(errors.Conflict):
        sdk.jobs.delete(job.id)
    assert sdk.jobs.cancel(job.id).is_finished
    with pytest.raises(errors.Conflict, match="not_finished"):
        sdk.jobs.report(job.id)
    types = [event.type for event in sdk.jobs.events(job.id)]
    assert types[0] == "job.created"
    assert types[-1] == "job.cancelled"
    assert [event.type for event in sdk.jobs.stream_events(job.id, after=1)] == types[1:]
    assert sdk.jobs.delete(job.id).deleted


def test_gaps_pairs_and_lineage_of_a_scored_job(sdk: Client, spec: dict[str, Any], tmp_path: Path) -> None:
    job = sdk.jobs.create(spec)
    with pytest.raises(errors.Conflict, match="not_scored_yet"):
        sdk.gaps.get(job.id)
    score(GAPS)
    split(tmp_path)

    gaps = sdk.gaps.get(job.id, bins=4, lower=-1.0, upper=3.0)
    assert sum(gaps.counts) + gaps.below + gaps.above == gaps.pairs == len(GAPS)
    assert (gaps.easy, gaps.difficult) == (4, 4)
    assert sdk.gaps.preview(job.id, easy_fraction=0.5).easy.pairs == 4
    assert [pair.gap for pair in sdk.gaps.pairs(job.id, order="-gap", limit=2)] == [3.0, 2.5]
    table = sdk.gaps.pairs_as_arrow(job.id, part="easy", order="gap")
    assert table.column("gap").to_pylist() == [1.0, 1.5, 2.5, 3.0]
    frame = sdk.gaps.pairs_as_pandas(job.id)
    assert sorted(frame["gap"]) == sorted(GAPS)
    sdk.gaps.save_picture(job.id, tmp_path / "gaps.svg")
    assert b"<svg" in (tmp_path / "gaps.svg").read_bytes()
    sdk.gaps.save_picture(job.id, tmp_path / "gaps.csv", bins=4)
    assert (tmp_path / "gaps.csv").read_text().count("\n") == 5

    stage = next(each for each in sdk.jobs.get(job.id).stages if each.name == "split")
    artifact = sdk.artifacts.get(stage.artifacts["easy"])
    assert stage.run_id == artifact.run_id
    assert sdk.runs.get(artifact.run_id).status == "succeeded"
    assert sdk.runs.log(artifact.run_id) == ""


def test_metrics_as_series_table_and_frame(sdk: Client, spec: dict[str, Any]) -> None:
    job = sdk.jobs.create(spec)
    sft = work_until("sft")
    assert sft is not None
    with open_transaction() as tx:
        for step in (1, 2, 3):
            tx.session.add(Metric(run_id=sft.id, step=step, values={"loss": 1.0 / step, "accuracy": 0.5}))

    (loss,) = sdk.jobs.metrics(job.id, stage="sft", names=["loss"])
    assert (loss.steps, loss.values[0]) == ([1, 2, 3], 1.0)
    assert sdk.jobs.metrics_as_arrow(job.id).num_rows == 6
    assert list(sdk.jobs.metrics_as_pandas(job.id).columns) == ["stage", "name", "step", "value"]


def test_without_pandas_it_says_what_to_install(
    sdk: Client, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    job = sdk.jobs.create(spec)
    with pytest.raises(errors.Missing, match="pip install pandas"):
        sdk.jobs.metrics_as_pandas(job.id)


def test_models_are_registered_downloaded_and_deleted(
    sdk: Client, store: Path, tmp_path: Path, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv("MPO_MODEL_ROOTS", str(tmp_path))
    settings.cache_clear()
    assert sdk.models.register(name="base", folder=str(model_folder(tmp_path / "m"))).id == "base"
    name, _ = trained(store, adapter=True)
    assert {model.id for model in sdk.models.list()} == {"base", name}

    told: list[int] = []
    files = sdk.models.download(name, tmp_path / "here", on_bytes=lambda _, count: told.append(count))
    assert [file.name for file in files] == ["model.safetensors"]
    assert (tmp_path / "here/model.safetensors").read_bytes() == b"0123456789"
    assert sum(told) == 10
    sdk.models.download(name, tmp_path / "here", form="adapter")
    assert (tmp_path / "here/adapter_model.safetensors").exists()
    assert sdk.models.delete("base").deleted


def test_a_damaged_download_is_not_kept(sdk: Client, store: Path, tmp_path: Path) -> None:
    name, _ = trained(store)
    (store / "runs/run_1/1/model/model.safetensors").write_bytes(b"9876543210")

    with pytest.raises(errors.Damaged):
        sdk.models.download(name, tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_keys_and_the_service_itself(sdk: Client, url: str) -> None:
    made = sdk.keys.create(name="reader", scopes=["read"])
    assert made.key is not None
    with Client(url, made.key) as reader:
        assert list(reader.models.list()) == []
        with pytest.raises(errors.NotAllowed):
            reader.keys.create()
        sdk.keys.delete(made.id)
        with pytest.raises(errors.NotAuthenticated):
            next(reader.models.list())
    assert sdk.operations.health().status == "ok"
    ready = sdk.operations.ready()
    assert not ready.ready  # no worker runs
    assert ready.checks["postgres"].ok
    assert sdk.operations.workers() == []
    assert {slot.slot for slot in sdk.operations.queue()} == {"cpu", "gpu"}


def test_an_id_stays_within_its_place_in_the_path(sdk: Client) -> None:
    with pytest.raises(errors.NotFound):
        sdk.jobs.get("../models?x=1#y")


def test_another_server_s_answer_is_no_traceback_of_ours() -> None:
    def other(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, html="<h1>It works!</h1>")

    client = Client("http://else", "k", transport=httpx.MockTransport(other))
    with client, pytest.raises(errors.NotUnderstood, match="is the URL right"):
        client.jobs.get("job_1")


class Cutting(httpx.HTTPTransport):
    """The real service behind a line that breaks: each stream ends after its first event."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if request.headers.get("accept") == "text/event-stream":
            self.asked.append(request.headers["last-event-id"])
            response.stream = _FirstEvent(response.stream)
        return response


class _FirstEvent(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        read = b""
        for chunk in self._stream:
            read += chunk
            if b"id: " in read and b"\n\n" in read[read.index(b"id: ") :]:
                yield read[: read.index(b"\n\n", read.index(b"id: ")) + 2]
                raise httpx.ReadError("the line broke")
        yield read

    def close(self) -> None:
        self._stream.close()


def test_a_stream_of_events_survives_a_broken_line(
    url: str, admin_key: str, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_AWAY_SECONDS", 0.0)
    line = Cutting()
    with Client(url, admin_key, transport=line) as client:
        job = client.jobs.create(spec)
        client.jobs.cancel(job.id)
        listed = [event.id for event in client.jobs.events(job.id)]
        seen = [event.id for event in client.jobs.stream_events(job.id)]
    assert seen == listed
    assert line.asked == [str(known) for known in range(len(listed))]


def test_a_wait_outlives_a_service_that_is_away_for_a_while(
    url: str, admin_key: str, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_AWAY_SECONDS", 0.0)
    monkeypatch.setattr("mpo_client.retries._FIRST_SECONDS", 0.0)
    away = iter([False, *[True] * 10, False])

    class Flaky(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "GET" and next(away, False):
                raise httpx.ConnectError("refused", request=request)
            return super().handle_request(request)

    with Client(url, admin_key, transport=Flaky()) as client:
        job = client.jobs.create(spec)

        def cancel(found: Job) -> None:
            if not found.is_finished:
                client.jobs.cancel(job.id)

        assert client.jobs.wait(job.id, deadline_seconds=20, on_change=cancel).status == "cancelled"


def test_the_awaiting_client_does_the_same(
    url: str, admin_key: str, spec: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(json_lines(pairs(100)))
    told: list[str] = []

    async def work() -> None:
        async with AsyncClient(url, admin_key) as client:
            dataset = await client.datasets.upload(file)
            assert dataset.bytes == file.stat().st_size
            job = await client.jobs.create(spec)
            assert [each.id async for each in client.jobs.list(labels={"team": "a"})] == [job.id]
            with pytest.raises(errors.NotFound):
                await client.jobs.get("job_none")

            async def cancel_later() -> None:
                await asyncio.sleep(0.2)
                await client.jobs.cancel(job.id)

            streamed = asyncio.create_task(_types(client, job.id))
            ended, _ = await asyncio.gather(
                client.jobs.wait(
                    job.id, deadline_seconds=20, on_change=lambda found: told.append(found.status)
                ),
                cancel_later(),
            )
            assert ended.status == told[-1] == "cancelled"
            assert (await streamed)[-1] == "job.cancelled"
            await client.models.download(name, tmp_path / "here")

    name, _ = trained(store)
    asyncio.run(work())
    assert (tmp_path / "here/model.safetensors").read_bytes() == b"0123456789"


async def _types(client: AsyncClient, job_id: str) -> list[str]:
    return [event.type async for event in client.jobs.stream_events(job_id)]


def test_the_awaiting_client_reads_tables_over_all_pages(
    url: str, admin_key: str, client: TestClient, tmp_path: Path
) -> None:
    make_model()
    many = make_dataset(tmp_path, preference_pairs(230))

    async def count() -> int:
        async with AsyncClient(url, admin_key) as asking:
            return len([row async for row in asking.datasets.rows(many)])

    assert asyncio.run(count()) == 230


def test_a_wait_ends_at_its_deadline(sdk: Client, spec: dict[str, Any]) -> None:
    job = sdk.jobs.create(spec)
    with pytest.raises(errors.DeadlinePassed):
        sdk.jobs.wait(job.id, deadline_seconds=0.2)
    hold_out = claim("cpu")
    assert hold_out is not None
    publish(hold_out, {})
    assert sdk.jobs.get(job.id).status == "running"
