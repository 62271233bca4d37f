import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mpo_client import errors
from mpo_client.client import Client

Handler = Callable[[httpx.Request], httpx.Response]
DATASET = {
    "id": "ds_1",
    "object": "dataset",
    "name": "pairs",
    "kind": "preference",
    "status": "validating",
    "new": 1,
}


@pytest.fixture
def client_for() -> Iterator[Callable[[Handler], Client]]:
    made: list[Client] = []

    def make(handler: Handler) -> Client:
        made.append(Client("http://service", "mpo_sk_key", transport=httpx.MockTransport(handler)))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which no test waits for."""
    pauses: list[float] = []
    monkeypatch.setattr("mpo_client.transport.time.sleep", pauses.append)
    return pauses


@pytest.mark.parametrize(
    "away",
    [
        httpx.Response(503, headers={"Retry-After": "3"}),
        httpx.Response(429, headers={"Retry-After": "3"}),
        httpx.Response(409, headers={"x-should-retry": "true", "Retry-After": "3"}),
    ],
    ids=lambda response: str(response.status_code),
)
def test_what_is_made_is_asked_for_again_under_the_same_key(
    client_for: Callable[[Handler], Client], slept: list[float], away: httpx.Response
) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["idempotency-key"])
        if len(asked) == 2:
            raise httpx.ReadError("reset", request=request)
        return away if len(asked) == 1 else httpx.Response(202, json={"id": "job_1", "status": "queued"})

    client = client_for(answer)
    assert client.jobs.create({"model": "m"}).id == "job_1"
    assert len(asked) == 3
    assert len(set(asked)) == 1
    assert slept[0] == 3
    assert 0 < slept[1] <= 1
    client.jobs.create({"model": "m"})
    assert asked[3] != asked[0]


def test_what_cannot_help_or_could_double_is_sent_once(client_for: Callable[[Handler], Client]) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path.endswith("resume"):
            return httpx.Response(503, headers={"Retry-After": "1"})
        return httpx.Response(409, headers={"x-should-retry": "false"})

    client = client_for(answer)
    with pytest.raises(errors.Conflict):
        client.jobs.create({"model": "m"})
    with pytest.raises(errors.NotAvailable):
        client.jobs.resume("job_1")
    assert asked == ["/v1/jobs", "/v1/jobs/job_1/resume"]


def test_tries_end(client_for: Callable[[Handler], Client], slept: list[float]) -> None:
    client = client_for(lambda _: httpx.Response(503, headers={"Retry-After": "2"}))
    with pytest.raises(errors.NotAvailable):
        client.jobs.get("job_1")
    assert slept == [2, 2, 2]


def test_nobody_is_kept_waiting_for_minutes(
    client_for: Callable[[Handler], Client], slept: list[float]
) -> None:
    client = client_for(lambda _: httpx.Response(503, headers={"Retry-After": "120"}))
    with pytest.raises(errors.NotAvailable):
        client.jobs.get("job_1")
    assert slept == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.NotAuthenticated),
        (403, errors.NotAllowed),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (418, errors.Refused),
        (422, errors.NotValid),
        (429, errors.TooManyRequests),
        (500, errors.ServerFailed),
        (503, errors.NotAvailable),
    ],
)
def test_each_status_is_an_exception_of_its_own(
    client_for: Callable[[Handler], Client], status: int, kind: type[errors.Refused]
) -> None:
    problem = {
        "title": "No",
        "status": status,
        "detail": "it is too late",
        "code": "too_late",
        "request_id": "req_1",
        "errors": [{"loc": ["body", "model"], "message": "no such model"}],
        "error": {"message": "for others"},
    }
    client = client_for(lambda _: httpx.Response(status, json=problem, headers={"Retry-After": "7"}))

    with pytest.raises(kind) as caught:
        client.jobs.get("job_1")

    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.detail, caught.value.request_id) == (
        "too_late",
        "it is too late",
        "req_1",
    )
    assert caught.value.retry_after_seconds == 7
    assert "body.model: no such model" in str(caught.value)


def test_an_answer_of_something_in_between_is_refused_too(client_for: Callable[[Handler], Client]) -> None:
    client = client_for(lambda _: httpx.Response(502, html="<h1>Bad Gateway</h1>"))

    with pytest.raises(errors.ServerFailed, match="502 unknown: Bad Gateway"):
        client.jobs.get("job_1")


def test_no_answer_says_whose(client_for: Callable[[Handler], Client]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(errors.Unreachable, match="no answer from http://service: connection refused"):
        next(client_for(refuse).models.list())


def test_an_upload_is_streamed_with_its_length(
    client_for: Callable[[Handler], Client], tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b'{"prompt":"a"}\n' * 200_000)
    seen: list[tuple[str, str, int, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = request.read()
        seen.append((request.method, request.url.path, len(body), request.headers.get("transfer-encoding")))
        assert request.headers["authorization"] == "Bearer mpo_sk_key"
        return httpx.Response(202, json=DATASET)

    dataset = client_for(answer).datasets.upload(file)

    assert dataset.id == "ds_1"
    assert seen[0][:2] == ("POST", "/v1/datasets")
    assert seen[1] == ("PUT", "/v1/datasets/ds_1/content", file.stat().st_size, None)


def test_waiting_takes_answers_held_back_until_something_changes(
    client_for: Callable[[Handler], Client],
) -> None:
    answers = iter(["validating", None, "ready"])
    asked: list[tuple[str | None, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.params.get("wait"), request.headers.get("if-none-match")))
        status = next(answers)
        if status is None:
            return httpx.Response(304)
        return httpx.Response(200, json={**DATASET, "status": status}, headers={"ETag": f'"{status}"'})

    dataset = client_for(answer).datasets.wait("ds_1")

    assert dataset.status == "ready"
    assert asked == [(None, None), ("30", '"validating"'), ("30", '"validating"')]


def test_waiting_gives_up_at_the_deadline(client_for: Callable[[Handler], Client]) -> None:
    client = client_for(lambda _: httpx.Response(200, json=DATASET))

    with pytest.raises(errors.DeadlinePassed, match=r"dataset ds_1 was not done within 0\.1 s"):
        client.datasets.wait("ds_1", deadline_seconds=0.1)


def test_a_paused_job_ends_the_wait_and_every_change_is_told(client_for: Callable[[Handler], Client]) -> None:
    statuses = iter(["queued", "running", "paused"])
    told: list[str] = []

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": "job_1", "status": next(statuses)})

    job = client_for(answer).jobs.wait(
        "job_1", deadline_seconds=10, on_change=lambda job: told.append(job.status)
    )

    assert job.status == "paused"
    assert not job.is_finished
    assert told == ["queued", "running", "paused"]


def test_models_are_listed_over_all_pages(client_for: Callable[[Handler], Client]) -> None:
    pages = {
        None: {"data": [{"id": "b"}], "last_id": "b", "has_more": True},
        "b": {"data": [{"id": "a"}], "last_id": "a", "has_more": False},
    }
    client = client_for(lambda request: httpx.Response(200, json=pages[request.url.params.get("after")]))

    assert [model.id for model in client.models.list()] == ["b", "a"]


def test_a_broken_download_leaves_no_file(client_for: Callable[[Handler], Client], tmp_path: Path) -> None:
    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"PNG"
            raise httpx.ReadError("reset")

    client = client_for(lambda _: httpx.Response(200, stream=Broken()))

    with pytest.raises(errors.Unreachable):
        client.gaps.save_picture("job_1", tmp_path / "gaps.png")
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_asks_for_what_was_given_only(client_for: Callable[[Handler], Client]) -> None:
    bodies: list[object] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(202, json={"id": "cmp_1", "status": "queued", "models": ["a", "b"]})

    client_for(answer).comparisons.create(models=["a", "b"], prompts=["hi"], seed=0)

    assert bodies == [{"models": ["a", "b"], "prompts": ["hi"], "sampling": {"seed": 0}, "scorer": None}]
