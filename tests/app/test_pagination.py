"""Lists: every object once, newest first, whatever is made or deleted meanwhile."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from core.database import open_transaction
from core.ids import new_id
from core.tables import Comparison, Evaluation
from tests.app.jobs.factories import make_model
from tests.factories import evaluation_request, make_dataset, make_job, make_key


def new_dataset(owner: str) -> str:
    with open_transaction() as tx:
        return make_dataset(tx, owner=owner).id


def new_job(owner: str) -> str:
    with open_transaction() as tx:
        return make_job(tx, make_dataset(tx, owner=owner).id, owner=owner).id


def new_comparison(owner: str) -> str:
    request = {"models": ["a", "b"], "prompts": ["p"], "sampling": {}}
    with open_transaction() as tx:
        made = Comparison(id=new_id("comparison"), owner=owner, models=["a", "b"], request=request)
        tx.session.add(made)
    return made.id


def new_evaluation(owner: str) -> str:
    request = evaluation_request("ds_any")
    with open_transaction() as tx:
        made = Evaluation(id=new_id("evaluation"), owner=owner, models=["a"], request=request)
        tx.session.add(made)
    return made.id


LISTS: dict[str, Callable[[str], str]] = {
    "/v1/datasets": new_dataset,
    "/v1/jobs": new_job,
    "/v1/comparisons": new_comparison,
    "/v1/evaluations": new_evaluation,
}


def pages(client: TestClient, path: str, order: str, limit: int = 2) -> list[list[str]]:
    found: list[list[str]] = []
    after = ""
    while True:
        page = client.get(f"{path}?order={order}&limit={limit}{after}").json()
        assert page["object"] == "list"
        ids = [each["id"] for each in page["data"]]
        assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
        found.append(ids)
        if not page["has_more"]:
            return found
        after = f"&after={page['last_id']}"


@pytest.mark.parametrize("path", LISTS)
def test_pages_hold_each_object_of_the_owner_once(client: TestClient, path: str) -> None:
    made = [LISTS[path]("admin") for _ in range(5)]
    LISTS[path]("bob")
    made.sort()  # two of one millisecond stand in the order of their ids
    assert pages(client, path, "asc") == [made[:2], made[2:4], made[4:]]
    newest = made[::-1]
    assert pages(client, path, "desc") == [newest[:2], newest[2:4], newest[4:]]
    assert [each["id"] for each in client.get(path).json()["data"]] == newest


@pytest.mark.parametrize("path", [*LISTS, "/v1/models"])
@pytest.mark.parametrize("query", ["after=nobody", "after=run_01", "limit=0", "limit=101", "order=up"])
def test_a_page_that_cannot_be_says_why(client: TestClient, path: str, query: str) -> None:
    response = client.get(f"{path}?{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", query.partition("=")[0]]


def test_pages_go_on_behind_what_was_deleted(client: TestClient) -> None:
    first, second = sorted(new_dataset("admin") for _ in range(2))
    assert client.delete(f"/v1/datasets/{second}").status_code == 200
    assert [d["id"] for d in client.get(f"/v1/datasets?after={second}").json()["data"]] == [first]


def test_models_of_one_moment_are_paged_too(client: TestClient) -> None:
    names = [make_model(name) for name in ("a", "b", "c")]
    found = [name for page in pages(client, "/v1/models", "asc", limit=1) for name in page]
    assert found == names


def test_what_others_have_made_is_no_one_s_page(client: TestClient) -> None:
    for path, make in LISTS.items():
        make("admin")
        page: Any = client.get(path, headers=make_key("read", owner="bob")).json()
        assert page["data"] == []
