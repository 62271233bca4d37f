"""Jobs whose stages are written out: made, refused by place, paused, resumed, read; and what they hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from core.database import open_session
from core.tables import ArtifactReference
from mpo.records import PreferencePair
from tests.app.artifacts.factories import scores_file, train_file
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import make_dataset, make_model, publish, stage_row, work_until
from tests.app.jobs.stages import Nodes, mpo_nodes, node


@pytest.fixture
def nodes(model: str, dataset: str) -> Nodes:
    return mpo_nodes(model, dataset)


def create(client: TestClient, nodes: Nodes, **values: Any) -> dict[str, Any]:
    response = client.post("/v1/jobs", json={"name": "own", "stages": nodes, **values})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def refused(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=body)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    return problem


def test_a_job_of_explicit_stages_runs_to_its_end(
    client: TestClient, nodes: Nodes, model: str, dataset: str
) -> None:
    job = create(client, nodes, seed=3)
    assert (job["method"], job["model"], job["dataset"]) == ({"type": "stages"}, model, dataset)
    second = next(stage for stage in job["stages"] if stage["name"] == "second")
    assert second["inputs"] == {
        "policy": "first.model",
        "reference": "first.model",
        "reward_model": "rm.model",
        "prompts": "parts.difficult",
    }
    assert (second["config"]["max_new_tokens"], second["seed"]) == (64, 3)
    work_until()
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert (done["status"], done["progress"]["fraction"]) == ("succeeded", 1.0)
    assert done["models"] == {name: f"{job['id']}:{name}" for name in ("rm", "first", "second")}
    bases = {name: client.get(f"/v1/models/{id_}").json()["base"] for name, id_ in done["models"].items()}
    assert bases == {"rm": model, "first": model, "second": model}
    report = client.get(f"/v1/jobs/{job['id']}/report").json()
    assert set(report["stages"]) == {"rows", "rm", "gaps", "parts", "first", "second"}
    for query, count in (("method=stages", 1), ("method=mpo", 0), (f"dataset={dataset}", 1)):
        assert len(client.get(f"/v1/jobs?{query}").json()["data"]) == count


def test_the_stages_of_a_job_can_be_sent_again(client: TestClient, nodes: Nodes) -> None:
    job = create(client, nodes)
    again = [
        {"name": s["name"], "kind": s["kind"], "seed": s["seed"], "inputs": s["inputs"], **s["config"]}
        for s in job["stages"]
    ]
    planned = client.post("/v1/jobs?dry_run=true", json={"stages": again}).json()["stages"]
    assert {s["name"]: s["key"] for s in planned} == {
        s["name"]: stage_row(job["id"], s["name"]).key for s in job["stages"]
    }


Change = Callable[[Nodes], object]


def reads(name: str, **inputs: Any) -> Change:
    return lambda given: node(given, name)["inputs"].update(inputs)


WRONG: dict[str, tuple[Change, list[str | int]]] = {
    "cycle": (reads("rm", backbone="first"), ["stages", 1, "inputs"]),
    "unknown name": (reads("first", policy="frist"), ["stages", 4, "inputs", "policy"]),
    "unknown dataset": (reads("rows", data="ds_x"), ["stages", 0, "inputs", "data"]),
    "unknown job": (reads("first", policy="job_x:dpo"), ["stages", 4, "inputs", "policy"]),
    "no name at all": (reads("first", policy="../tiny\0"), ["stages", 4, "inputs", "policy"]),
    "wrong kind": (reads("second", policy="rm"), ["stages", 5, "inputs", "policy"]),
    "missing role": (
        lambda g: node(g, "second")["inputs"].pop("prompts"),
        ["stages", 5, "inputs", "prompts"],
    ),
    "unknown role": (reads("rm", judge="rm"), ["stages", 1, "inputs", "judge"]),
    "a list": (reads("rm", data=["rows"]), ["stages", 1, "inputs", "data"]),
    "unknown output": (reads("first", data="parts.hard"), ["stages", 4, "inputs", "data"]),
    "two of a name": (lambda g: node(g, "gaps").update(name="rm"), ["stages", 2, "name"]),
    "no slug": (lambda g: node(g, "gaps").update(name="a/b"), ["stages", 2, "name"]),
    "unknown option": (lambda g: node(g, "first").update(bta=1), ["stages", 4, "bta"]),
    "unknown kind": (lambda g: node(g, "first").update(kind="kto"), ["stages", 4, "kind"]),
    "too long": (
        lambda g: node(g, "first").update(max_prompt_tokens=999),
        ["stages", 4, "max_prompt_tokens"],
    ),
}


def test_a_wrong_stage_names_the_field(client: TestClient, model: str, dataset: str) -> None:
    for case, (change, loc) in WRONG.items():
        nodes = mpo_nodes(model, dataset)
        change(nodes)
        problem = refused(client, {"stages": nodes})
        assert [error["loc"] for error in problem["errors"]] == [["body", *loc]], case
        assert all(error["message"] for error in problem["errors"]), case


def test_a_spec_has_either_a_method_or_stages(client: TestClient, spec: dict[str, Any], nodes: Nodes) -> None:
    for body in (spec | {"stages": nodes}, {"name": "neither"}):
        assert refused(client, body)["errors"][0]["loc"] == ["body", "method"]
    make_model("other")
    for field, name in (("eval_dataset", "ds_other"), ("dataset", "ds_other"), ("model", "other")):
        problem = refused(client, {"stages": nodes, field: name})
        assert problem["errors"][0]["loc"] == ["body", field]
        assert problem["detail"].startswith(f"No stage reads {field}")
    create(client, nodes, model=spec["model"], dataset=spec["dataset"])
    unknown = client.post("/v1/jobs", json={"stages": [{**nodes[0], "frction": 1}]}).json()
    assert "fraction" in unknown["detail"]


def test_models_of_earlier_jobs_are_checked_held_and_inherited_from(
    client: TestClient, nodes: Nodes, create_job: CreateJob
) -> None:
    earlier = create_job(method={"type": "ppo", "sft": None, "evaluate": None})
    policy, scorer = f"{earlier['id']}:ppo", f"{earlier['id']}:reward_model"
    node(nodes, "second")["inputs"] |= {"policy": policy, "reference": "first", "reward_model": scorer}
    assert "not trained yet" in refused(client, {"stages": nodes})["detail"]
    work_until()
    swapped = mpo_nodes("tiny", earlier["dataset"])
    node(swapped, "second")["inputs"] |= {"policy": scorer}
    problem = refused(client, {"stages": swapped})
    assert problem["errors"][0]["loc"] == ["body", "stages", 5, "inputs", "policy"]
    assert "reward model" in problem["detail"]
    hold_out = {"stages": [{"name": "a", "kind": "sft", "inputs": {"policy": f"{earlier['id']}:hold_out"}}]}
    hold_out["stages"][0]["inputs"]["data"] = earlier["dataset"]
    assert "makes no model" in refused(client, hold_out)["detail"]
    job = create(client, nodes)
    for path in (f"/v1/models/{policy}", f"/v1/models/{scorer}", f"/v1/jobs/{earlier['id']}"):
        assert client.delete(path).status_code == 409, path
    with open_session() as session:
        held = select(ArtifactReference.artifact_id).where(
            ArtifactReference.job_id == job["id"], ArtifactReference.stage_name == ""
        )
        assert len(session.scalars(held).all()) == 2
    work_until()
    assert client.get(f"/v1/models/{job['id']}:second").json()["base"] == policy
    assert client.get(f"/v1/models/{job['id']}:first").json()["base"] == "tiny"
    assert client.delete(f"/v1/jobs/{earlier['id']}").status_code == 200


def test_every_dataset_of_a_live_job_is_kept_and_waited_for(
    client: TestClient, nodes: Nodes, tmp_path: Path
) -> None:
    other = make_dataset(tmp_path, status="validating")
    nodes.append({"name": "more", "kind": "sft", "inputs": {"policy": "second", "data": other}})
    job = create(client, nodes)
    assert {stage["status"] for stage in job["stages"]} == {"waiting"}
    assert client.delete(f"/v1/datasets/{other}").json()["code"] == "dataset_in_use"
    assert [found["id"] for found in client.get(f"/v1/jobs?dataset={other}").json()["data"]] == [job["id"]]
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/datasets/{other}").status_code == 200


def test_rows_go_where_their_kind_is_taken(client: TestClient, spec: dict[str, Any], tmp_path: Path) -> None:
    prompts, texts = (make_dataset(tmp_path, kind=kind) for kind in ("prompts", "text"))
    inputs = {"policy": "tiny", "reference": "tiny", "reward_model": "rm", "prompts": prompts}
    nodes = [
        {"name": "rm", "kind": "reward_model", "inputs": {"backbone": "tiny", "data": spec["dataset"]}},
        {"name": "go", "kind": "ppo", "inputs": inputs},
    ]
    create(client, nodes)
    inputs["prompts"] = texts
    assert "this is texts" in refused(client, {"stages": nodes})["detail"]
    method = {"type": "sft"}
    response = client.post("/v1/jobs", json=spec | {"dataset": texts, "method": method})
    assert response.status_code == 202, response.text
    problem = refused(client, spec | {"dataset": prompts, "method": method})
    assert problem["errors"][0]["loc"] == ["body", "dataset"]


def test_messages_need_a_chat_template_in_the_stages_that_render_them(
    client: TestClient, nodes: Nodes, tmp_path: Path
) -> None:
    turn = [{"role": "user", "content": "hello"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    talks = make_dataset(tmp_path, [PreferencePair(str(n), turn, *answers) for n in range(2)])  # type: ignore[arg-type]
    make_model("chatty", has_chat_template=True)
    more = {"name": "more", "kind": "sft", "inputs": {"policy": "tiny", "data": talks}}
    problem = refused(client, {"stages": [*nodes, more]})
    assert (problem["code"], problem["errors"][0]["loc"]) == (
        "no_chat_template",
        ["body", "stages", 6, "inputs"],
    )
    more["inputs"]["policy"] = "chatty"  # type: ignore[index]
    create(client, [*nodes, more])


def test_lengths_come_from_the_models_that_a_stage_reads(client: TestClient, nodes: Nodes) -> None:
    make_model("short", context_tokens=64)
    node(nodes, "first")["inputs"]["reference"] = "short"
    job = create(client, nodes)
    lengths = {s["name"]: s["config"].get("max_prompt_tokens") for s in job["stages"]}
    assert (lengths["rm"], lengths["first"], lengths["second"]) == (128, 32, 32)


def test_a_paused_job_is_resumed_by_the_names_of_its_splits(client: TestClient, nodes: Nodes) -> None:
    twin = {**node(nodes, "parts"), "name": "halves"}
    nodes += [
        twin,
        {
            "name": "third",
            "kind": "dpo",
            "inputs": {"policy": "first", "reference": "first", "data": "halves.easy"},
        },
    ]
    job = create(client, nodes, pause_after=["parts", "halves"])
    path = f"/v1/jobs/{job['id']}"
    work_until()
    assert client.get(path).json()["pause"]["stage"] == "parts"
    before = {name: stage_row(job["id"], name).key for name in ("parts", "first", "second", "third", "gaps")}
    for wrong in ({"split": {"threshold": 2}}, {"first": {}}, {"first": {"beta": 1}}):
        response = client.post(f"{path}/resume", json=wrong)
        assert response.status_code == 422, response.text
        assert response.json()["errors"][0]["loc"][:2] == ["body", next(iter(wrong))]
    assert "parts, halves" in client.post(f"{path}/resume", json={"split": {}}).json()["detail"]
    resumed = client.post(f"{path}/resume", json={"parts": {"threshold": 0.5}})
    assert resumed.status_code == 200, resumed.text
    after = {name: stage_row(job["id"], name).key for name in before}
    assert {name for name in before if before[name] != after[name]} == {"parts", "first", "second", "third"}
    work_until()
    assert client.get(path).json()["pause"]["stage"] == "halves"
    client.post(f"{path}/resume")
    work_until()
    assert client.get(path).json()["status"] == "succeeded"
    nodes[3]["threshold"] = 0.5
    planned = client.post("/v1/jobs?dry_run=true", json={"stages": nodes}).json()["stages"]
    assert all(stage["cached"] for stage in planned)


def test_a_weak_reward_model_holds_explicit_stages_too(client: TestClient, nodes: Nodes) -> None:
    job = create(client, nodes)
    claimed = work_until("gaps")
    assert claimed is not None
    publish(claimed, {}, {"weak": True, "weak_reason": "no better than chance"})
    work_until()
    paused = client.get(f"/v1/jobs/{job['id']}").json()
    assert paused["pause"] == {
        "reason": "weak_reward_model",
        "stage": "gaps",
        "message": "no better than chance",
    }
    client.post(f"/v1/jobs/{job['id']}/resume")
    work_until()
    assert client.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded"


def test_what_one_score_only_warns_about_holds_no_other_back_or_free(
    client: TestClient, nodes: Nodes
) -> None:
    nodes.insert(2, {**node(nodes, "gaps"), "name": "also", "on_weak": "warn", "max_prompt_tokens": 9})
    job = create(client, nodes)
    for name in ("also", "gaps"):
        claimed = work_until(name)
        assert claimed is not None
        publish(claimed, {}, {"weak": True, "weak_reason": "no better than chance"})
    paused = client.get(f"/v1/jobs/{job['id']}").json()
    assert (paused["status"], paused["pause"]["stage"]) == ("paused", "gaps")
    events = client.get(f"/v1/jobs/{job['id']}/events?limit=100").json()["data"]
    assert [event["stage"] for event in events if event["type"] == "stage.warning"] == ["also"]


def test_gaps_and_pairs_are_found_by_kind(client: TestClient, nodes: Nodes) -> None:
    job = create(client, nodes)
    path = f"/v1/jobs/{job['id']}"
    assert client.get(f"{path}/reward-gaps").json()["code"] == "not_scored_yet"
    rows = work_until("rows")
    assert rows is not None
    publish(rows, {"train": train_file(4)})
    scored = work_until("gaps")
    assert scored is not None
    publish(scored, {"scores": scores_file([-1.0, 0.5, 1.5, 3.0])}, {"scored_by": "in_sample"})
    gaps = client.get(f"{path}/reward-gaps").json()
    assert (gaps["easy"], gaps["difficult"], gaps["scored_by"]) == (2, 2, "in_sample")
    assert gaps["reward_model"] == f"{job['id']}:rm"
    assert client.get(f"{path}/reward-gaps/preview?threshold=2").json()["easy"]["pairs"] == 1
    pairs = client.get(f"{path}/pairs?part=easy").json()["data"]
    assert [pair["id"] for pair in pairs] == ["2", "3"]


def test_scores_without_a_split_are_shown_as_the_default_would_part_them(
    client: TestClient, nodes: Nodes
) -> None:
    job = create(client, nodes[:3])
    rows = work_until("rows")
    assert rows is not None
    publish(rows, {"train": train_file(4)})
    scored = work_until("gaps")
    assert scored is not None
    publish(scored, {"scores": scores_file([-1.0, 0.5, 1.5, 3.0])})
    gaps = client.get(f"/v1/jobs/{job['id']}/reward-gaps").json()
    assert (gaps["threshold"], gaps["easy"], gaps["reward_model"]) == (1.0, 2, f"{job['id']}:rm")
