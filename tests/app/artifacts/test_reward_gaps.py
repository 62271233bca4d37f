"""What a person sees of the scored pairs, before the split and after it."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.app.artifacts.factories import score, split
from tests.app.conftest import CreateJob

GAPS = [-2.0, -1.0, -0.25, 0.0, 0.1, 0.5, 0.9, 1.0, 1.5, 3.0]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(params=["scored", "split"])
def path(request: pytest.FixtureRequest, create_job: CreateJob, tmp_path: Path) -> str:
    """A job's path: its pairs are scored only, or split too; what is read must be the same."""
    job = create_job(method={"type": "mpo", "split": {"threshold": 1.0}})
    score(GAPS)
    if request.param == "split":
        split(tmp_path)
    return f"/v1/jobs/{job['id']}"


def read(client: TestClient, path: str, **query: object) -> dict[str, Any]:
    response = client.get(path, params={name: str(value) for name, value in query.items()})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_histogram_is_numpy_s(client: TestClient, path: str) -> None:
    gaps = read(client, f"{path}/reward-gaps", bins=7)
    counts, edges = np.histogram(GAPS, 7)
    assert gaps["counts"] == counts.tolist()
    assert gaps["bin_edges"] == pytest.approx(edges.tolist())
    assert (gaps["below"], gaps["above"], gaps["pairs"], gaps["sign"]) == (0, 0, 10, "signed")
    assert gaps["accuracy"] == 0.65
    assert gaps["accuracy_ci95"] == pytest.approx([0.35367, 0.86307], abs=1e-5)
    assert gaps["bin_accuracy"] is None
    assert gaps["share_within_one"] == 0.7
    assert gaps["mean"] == pytest.approx(np.mean(GAPS))
    assert gaps["std"] == pytest.approx(np.std(GAPS))
    assert gaps["quantiles"]["0.25"] == pytest.approx(np.quantile(GAPS, 0.25))
    assert (gaps["threshold"], gaps["easy"], gaps["difficult"], gaps["dropped"]) == (1.0, 3, 7, 0)
    assert gaps["scored_by"] == "cross_fit"
    assert gaps["reward_model"] == f"{gaps['job']}:reward_model"


def test_every_pair_is_counted_once(client: TestClient, path: str) -> None:
    for part, size in {"all": 10, "easy": 3, "difficult": 7, "dropped": 0}.items():
        gaps = read(client, f"{path}/reward-gaps", bins=3, lower=-1, upper=1, part=part)
        assert gaps["bin_edges"] == pytest.approx([-1, -1 / 3, 1 / 3, 1])
        assert sum(gaps["counts"]) + gaps["below"] + gaps["above"] == gaps["pairs"] == size
        assert gaps["easy"] + gaps["difficult"] + gaps["dropped"] == size


def test_an_unchanged_histogram_is_not_sent_again(client: TestClient, path: str) -> None:
    first = client.get(f"{path}/reward-gaps")
    again = client.get(f"{path}/reward-gaps", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304


def test_it_is_drawn_and_listed_on_request(client: TestClient, path: str) -> None:
    drawn = client.get(f"{path}/reward-gaps", headers={"Accept": "image/png"})
    assert drawn.headers["content-type"] == "image/png"
    assert drawn.content.startswith(PNG)
    vector = client.get(f"{path}/reward-gaps?format=svg&part=easy")
    assert vector.headers["content-type"] == "image/svg+xml"
    assert b"<svg" in vector.content
    table = client.get(f"{path}/reward-gaps?bins=5", headers={"Accept": "text/csv"})
    assert table.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert len(rows) == 5
    assert sum(int(row["count"]) for row in rows) == 10
    assert sum(int(row["easy"]) for row in rows) == 3
    assert client.get(f"{path}/reward-gaps", headers={"Accept": "*/*"}).json()["object"] == "reward_gaps"


def test_a_preview_tells_what_another_threshold_would_give(client: TestClient, path: str) -> None:
    own = read(client, f"{path}/reward-gaps/preview")
    assert (own["threshold"], own["easy"]["pairs"]) == (1.0, 3)
    other = read(client, f"{path}/reward-gaps/preview", threshold=0.5)
    assert [other[part]["pairs"] for part in ("easy", "difficult", "dropped")] == [5, 5, 0]
    assert other["easy"]["mean_gap"] == pytest.approx(np.mean([0.5, 0.9, 1.0, 1.5, 3.0]))
    assert other["easy"]["accuracy"] == 1.0
    assert other["easy"]["tokens"] == sum(10 + place for place in range(5, 10))
    assert 0.5 < other["easy"]["expected_accuracy"] <= 1.0
    assert other["dropped"] == {
        "pairs": 0,
        "accuracy": None,
        "expected_accuracy": None,
        "mean_gap": None,
        "tokens": 0,
    }
    half = read(client, f"{path}/reward-gaps/preview", easy_fraction=0.5)
    assert half["threshold"] == read(client, f"{path}/reward-gaps/preview", quantile=0.5)["threshold"] == 0.3


WRONG = {
    "reward-gaps": ["bins=0", "bins=1001", "lower=2&upper=1", "lower=nan", "part=hard", "format=gif"],
    "reward-gaps/preview": ["quantile=0.5&threshold=1", "quantile=1", "easy_fraction=0", "threshold=inf"],
    "pairs": ["part=easy&after=0", "order=size", "limit=0"],
}
NAMED = {"quantile=0.5&threshold=1": "quantile", "part=easy&after=0": "after"}


def test_a_wrong_query_names_the_field(client: TestClient, path: str) -> None:
    for what, queries in WRONG.items():
        for query in queries:
            response = client.get(f"{path}/{what}?{query}")
            assert response.status_code == 422, response.text
            named = NAMED.get(query, query.split("=")[0])
            assert response.json()["errors"][0]["loc"] == ["query", named]


def test_pairs_come_in_the_order_asked_for_page_by_page(client: TestClient, path: str) -> None:
    for order in ("gap", "-gap", "abs_gap", "-abs_gap"):
        found = read(client, f"{path}/pairs", order=order, limit=3)["data"]
        while (page := read(client, f"{path}/pairs", order=order, limit=3, after=found[-1]["id"]))["data"]:
            found += page["data"]
            assert page["has_more"] == (len(found) < len(GAPS))
        shown = [abs(pair["gap"]) if "abs" in order else pair["gap"] for pair in found]
        assert shown == sorted(shown, reverse=order.startswith("-"))
    assert sorted(int(pair["id"]) for pair in found) == list(range(10))
    for pair in found:
        place = int(pair["id"])
        assert pair["gap"] == GAPS[place] == pytest.approx(pair["reward_chosen"] - pair["reward_rejected"])
        assert (pair["prompt"], pair["chosen"]) == (f"prompt {place}", f"chosen {place}")
        assert (pair["part"], pair["fold"]) == ("easy" if pair["gap"] >= 1 else "difficult", place % 3 + 1)
        assert pair["why"]


def test_pairs_of_one_part_come_in_the_data_s_order(client: TestClient, path: str) -> None:
    easy = read(client, f"{path}/pairs", part="easy")
    assert [pair["id"] for pair in easy["data"]] == ["7", "8", "9"]
    assert {pair["why"] for pair in easy["data"]} == {"at_or_above_threshold"}
    assert not easy["has_more"]
    assert read(client, f"{path}/pairs", part="dropped")["data"] == []


@pytest.mark.parametrize("has_run", [False, True])
def test_flipped_pairs_are_easy_with_their_sides_exchanged(
    client: TestClient, create_job: CreateJob, tmp_path: Path, has_run: bool
) -> None:
    job = create_job(method={"type": "mpo", "split": {"threshold": 1.0, "negative": "flip"}})
    score(GAPS)
    if has_run:
        split(tmp_path)
    path = f"/v1/jobs/{job['id']}"
    easy = read(client, f"{path}/pairs", part="easy", order="gap")["data"]
    assert [(pair["id"], pair["gap"]) for pair in easy] == [
        ("1", 1.0),
        ("7", 1.0),
        ("8", 1.5),
        ("0", 2.0),
        ("9", 3.0),
    ]
    assert (easy[0]["chosen"], easy[0]["rejected"], easy[0]["why"]) == (
        "rejected 1",
        "chosen 1",
        "negative_flip",
    )
    whole = read(client, f"{path}/pairs", part="all", order="gap")["data"]
    assert [pair["gap"] for pair in whole] == GAPS
    assert (whole[0]["chosen"], whole[0]["part"]) == ("chosen 0", "easy")
    gaps = read(client, f"{path}/reward-gaps", part="easy", bins=2)
    assert (gaps["accuracy"], gaps["pairs"], gaps["bin_edges"]) == (1.0, 5, [1.0, 2.0, 3.0])


def test_before_the_score_there_is_nothing_to_see(client: TestClient, create_job: CreateJob) -> None:
    job = create_job()
    for what in WRONG:
        response = client.get(f"/v1/jobs/{job['id']}/{what}")
        assert (response.status_code, response.json()["code"]) == (409, "not_scored_yet")
        assert response.headers["x-should-retry"] == "true"
    client.post(f"/v1/jobs/{job['id']}/cancel")
    for what in WRONG:
        response = client.get(f"/v1/jobs/{job['id']}/{what}")
        assert (response.status_code, response.json()["code"]) == (409, "not_scored_yet")
        assert response.headers["x-should-retry"] == "false"
        assert client.get(f"/v1/jobs/job_x/{what}").status_code == 404
