"""What a dry run forecasts over HTTP: from the dataset's rows, the model's folder and past runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from app.jobs import fitting
from app.jobs.past_runs import PastRun, factor_for
from core.settings import settings
from mpo.records import PreferencePair
from mpo.tokenization import encode_pairs, load_tokenizer
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import make_dataset, make_model, publish, work_until

TINY = Path(__file__).resolve().parents[3] / "examples" / "tiny"
LITTLE = 530 * 2**20
PAIRS = [PreferencePair(str(i), f"Question {i}?", f"An answer {i} {'long ' * i}", "No.") for i in range(20)]


@pytest.fixture
def model(client: TestClient) -> str:
    return make_model(path=str(TINY), context_tokens=512)


@pytest.fixture
def dataset(client: TestClient, tmp_path: Path) -> str:
    return make_dataset(tmp_path, PAIRS)


def forecast(client: TestClient, spec: dict[str, Any], **changes: Any) -> dict[str, dict[str, Any]]:
    answer = client.post("/v1/jobs?dry_run=true", json=spec | changes)
    assert answer.status_code == 200, answer.text
    return {stage["name"]: stage for stage in answer.json()["stages"]}


def test_every_stage_says_what_it_will_cost(client: TestClient, spec: dict[str, Any]) -> None:
    method = {"type": "mpo", "hold_out": {"fraction": 0}, "evaluate": None, "sft": {"epochs": 2}}
    stages = forecast(client, spec, method=method)
    rows, _ = encode_pairs(PAIRS, load_tokenizer(TINY), max_prompt_tokens=256, max_response_tokens=128)
    assert stages["sft"]["tokens"] == 2 * sum(len(row.prompt_ids) + len(row.chosen_ids) for row in rows)
    assert stages["split"]["tokens"] == 0
    assert all(stage["problems"] == [] for stage in stages.values() if stage["kind"] != "evaluate")
    assert {stage["basis"] for stage in stages.values()} == {"estimated"}
    assert all(stage["seconds"] > 0 and stage["memory_bytes"] > 0 for stage in stages.values())


def test_adapters_of_one_base_share_it_and_whole_models_do_not(
    client: TestClient, spec: dict[str, Any]
) -> None:
    lora: dict[str, Any] = {"lora": {}}
    adapted = {"type": "mpo", "sft": lora, "reward_model": lora, "dpo": lora, "ppo": lora}
    shared, beside = (
        forecast(client, spec, method=method)["ppo"]["memory_bytes"]
        for method in (adapted, {"type": "mpo", "ppo": lora})
    )
    assert shared < beside


def test_what_runs_took_is_what_the_next_ones_are_said_to_take(
    client: TestClient, spec: dict[str, Any], create_job: CreateJob
) -> None:
    create_job()
    work_until()  # every run is published with a wall time of one second
    cached, anew = forecast(client, spec), forecast(client, spec, seed=1)
    assert {(stage["seconds"], stage["basis"]) for stage in cached.values()} == {(0.0, "cached")}
    assert {stage["basis"] for stage in anew.values()} == {"measured"}
    assert anew["dpo"]["seconds"] == anew["sft"]["seconds"] == 1.0
    method = spec["method"] | {"sft": {"epochs": 50}}
    assert forecast(client, spec, method=method)["sft"]["seconds"] > 1.0


def test_of_past_runs_those_of_alike_models_on_the_newest_hardware_count() -> None:
    runs = [
        PastRun("dpo", "gpu", 1_000_000, 0.01),
        PastRun("dpo", "cpu", 1_000_000, 5.0),
        PastRun("sft", "gpu", 1_000_000, 7.0),
        *(PastRun("dpo", "gpu", 100_000_000, factor) for factor in (0.02, 0.03, 0.04)),
    ]
    assert factor_for("dpo", 90_000_000, runs) == 0.03
    assert factor_for("ppo", 90_000_000, runs) is None


def test_rows_that_are_still_validated_are_not_counted(
    client: TestClient, spec: dict[str, Any], tmp_path: Path
) -> None:
    waiting = make_dataset(tmp_path, PAIRS, status="validating")
    sft = forecast(client, spec, dataset=waiting)["sft"]
    assert (sft["tokens"], sft["seconds"], sft["basis"]) == (None, None, None)
    assert sft["memory_bytes"] > 0  # lengths are bounded whatever the rows are
    assert sft["problems"] == [f"{waiting} is validating: its rows are counted once it is ready"]


def test_a_threshold_is_told_once_the_pairs_are_scored(
    client: TestClient, spec: dict[str, Any], create_job: CreateJob
) -> None:
    method = {"type": "mpo", "hold_out": {"fraction": 0}, "evaluate": None, "split": {"threshold": 1.0}}
    before = forecast(client, spec, method=method)["dpo"]
    assert before["tokens"] is None
    assert "easy_fraction" in before["problems"][0]
    create_job(method=method)
    score = work_until("score")
    assert score is not None
    gaps = pa.table({"gap": [float(i) for i in range(20)]})
    with TemporaryDirectory() as folder:
        pq.write_table(gaps, Path(folder) / "scores.parquet")
        publish(score, {"scores": (Path(folder) / "scores.parquet").read_bytes()})
    after = forecast(client, spec, method=method)
    # 19 of the 20 gaps lie at 1 or above.
    assert after["dpo"]["tokens"] == pytest.approx(0.95 * after["reward_model"]["tokens"], rel=0.01)
    assert after["dpo"]["problems"] == []


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Has the server read these settings from its environment."""

    def set_anew(**variables: int) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"MPO_{name.upper()}", str(value))
        settings.cache_clear()

    yield set_anew
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def little_memory(deploy: Callable[..., None]) -> None:
    """A deployment whose trainings have little more than the process and the weights of `tiny` need."""
    deploy(training_memory_bytes=LITTLE)


def test_memory_is_that_of_all_processes_that_the_deployment_trains_with(
    client: TestClient, spec: dict[str, Any], deploy: Callable[..., None]
) -> None:
    memory = []
    for variables in ({}, {"ranks": 2}, {"sharded": 1}):
        deploy(**variables)
        memory.append({name: stage["memory_bytes"] for name, stage in forecast(client, spec).items()})
    alone, both, in_shards = memory
    assert both["sft"] > 1.9 * alone["sft"]
    assert in_shards["sft"] != both["sft"]
    assert in_shards["ppo"] == both["ppo"]
    assert in_shards["score"] == both["score"] == alone["score"]


@pytest.mark.usefixtures("little_memory")
def test_what_does_not_fit_is_told_and_refused_with_what_does(
    client: TestClient, spec: dict[str, Any]
) -> None:
    method = {"type": "sft", "sft": {"max_steps": 1}}
    told = forecast(client, spec, method=method)["sft"]
    assert told["memory_bytes"] > LITTLE
    assert "The nearest setting that fits is gradient_checkpointing true" in told["problems"][-1]
    refused = client.post("/v1/jobs", json=spec | {"method": method})
    assert refused.status_code == 422
    problem = refused.json()
    assert (problem["code"], problem["stage"]) == ("not_enough_memory", "sft")
    assert problem["memory_bytes"] == told["memory_bytes"]
    assert problem["limit_bytes"] == LITTLE
    assert client.get("/v1/jobs").json()["data"] == []
    fitting = {"type": "sft", "sft": {"max_steps": 1, **problem["nearest"]}}
    stages = forecast(client, spec, method=fitting)
    assert stages["sft"]["memory_bytes"] == problem["nearest_bytes"] <= LITTLE
    assert client.post("/v1/jobs", json=spec | {"method": fitting}).status_code == 202


def test_what_a_plan_needs_is_counted_once_for_all_its_jobs(
    client: TestClient, spec: dict[str, Any], deploy: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job's status, and how often all stages were counted until then."""
    counted, stage_costs = [], fitting.stage_costs

    def counting(*given: Any) -> Any:
        counted.append(given)
        return stage_costs(*given)

    def submitted(**changes: Any) -> tuple[int, int]:
        return client.post("/v1/jobs", json=spec | changes).status_code, len(counted)

    monkeypatch.setattr(fitting, "stage_costs", counting)
    deploy(training_memory_bytes=2**40)
    assert [submitted(seed=seed) for seed in (1, 2, 3)] == [(202, 1)] * 3
    another = {"type": "mpo", "sft": {"epochs": 3}}
    assert submitted(method=another) == submitted(method=another, name="once more") == (202, 2)
    deploy(training_memory_bytes=LITTLE)
    assert [submitted(seed=seed) for seed in (4, 5)] == [(422, 3)] * 2


@pytest.mark.usefixtures("little_memory")
def test_nothing_is_refused_for_lengths_that_nobody_knows_yet(
    client: TestClient, spec: dict[str, Any], tmp_path: Path
) -> None:
    """The same job, while its dataset is validated and once it is ready: the example's texts are short."""
    few = PAIRS[:4]
    waiting, ready = make_dataset(tmp_path, few, status="validating"), make_dataset(tmp_path, few)
    method = {"type": "sft", "hold_out": {"fraction": 0}, "sft": {"batch_pairs": 4}}
    unknown = forecast(client, spec, method=method, dataset=waiting)["sft"]
    assert unknown["memory_bytes"] > LITTLE
    assert unknown["problems"][-1].startswith("With the longest texts that it allows this stage would need")
    known = forecast(client, spec, method=method, dataset=ready)["sft"]
    assert known["memory_bytes"] <= LITTLE
    assert known["problems"] == []
    for dataset in (waiting, ready):
        answer = client.post("/v1/jobs", json=spec | {"method": method, "dataset": dataset})
        assert answer.status_code == 202, answer.text


def test_a_model_whose_folder_tells_nothing_is_named_as_the_reason(
    client: TestClient, spec: dict[str, Any]
) -> None:
    bare = make_model("bare", path="/nowhere", sha256="2" * 64)
    sft = forecast(client, spec, model=bare)["sft"]
    assert (sft["tokens"], sft["memory_bytes"], sft["seconds"]) == (None, None, None)
    assert sft["problems"][0].startswith("Nothing is estimated: The model's folder does not tell its shape")
