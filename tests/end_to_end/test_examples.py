"""The examples, as their user runs them: against a running stack, small."""

import json
from pathlib import Path
from typing import Any

import pytest

from examples import ablation, threshold_sweep
from mpo.job_spec import JobSpec
from mpo_client import Client
from tests.end_to_end.running_stack import QUICK_METHOD, RunningStack, example_rows

TRAINED_ANEW = {"split", "dpo", "ppo", "evaluate"}
PROMPTS = ["\n\nHuman: My kettle leaks.\n\nAssistant:", "\n\nHuman: Where is my parcel?\n\nAssistant:"]


@pytest.fixture
def client(stack: RunningStack) -> Any:
    with Client(stack.url, (stack.state / "api-key").read_text().strip()) as client:
        yield client


def quick(method: dict[str, Any]) -> dict[str, Any]:
    """The method's own stages with settings that take seconds."""
    return {name: QUICK_METHOD.get(name, value) for name, value in method.items() if name != "type"} | {
        "type": method["type"]
    }


def test_a_sweep_trains_no_reward_model_again(
    stack: RunningStack, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = stack.upload(example_rows(48))["id"]
    first = stack.submit({"model": "tiny", "dataset": dataset, "method": QUICK_METHOD})
    stack.wait_for(f"/v1/jobs/{first['id']}", {"succeeded", "failed"})
    picture = tmp_path / "sweep.png"

    threshold_sweep.main(
        [first["id"], "--state", str(stack.state), "--easy", "0.3", "0.6", "--plot", str(picture)]
    )

    head, *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.30", "0.60"]
    stages = len(first["stages"])
    assert all(f"{stages - len(TRAINED_ANEW)}/ {stages}" in line for line in lines)
    assert "ppo against sft" in head
    assert last == f"plot: {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_mpo_meets_dpo_alone_and_ppo_alone(stack: RunningStack, client: Client) -> None:
    dataset = stack.upload(example_rows(48), name="ablation")["id"]
    asked = {name: {**spec, "method": quick(spec["method"])} for name, spec in ablation.specs().items()}

    models = ablation.train(client, dataset, asked)
    rewards, wins = ablation.compare(client, models, PROMPTS)

    assert {name: len(values) for name, values in rewards.items()} == dict.fromkeys(asked, len(PROMPTS))
    assert {(each.model, each.against) for each in wins} == {
        ("ppo_only", "dpo_only"),
        ("mpo", "dpo_only"),
        ("mpo", "ppo_only"),
    }


@pytest.mark.parametrize("name", list(ablation.FINAL))
def test_the_shipped_specs_are_what_the_demo_trains(name: str) -> None:
    spec = ablation.specs()[name]
    JobSpec.model_validate({**spec, "dataset": "ds_1"})
    demo = json.loads((ablation.HERE / "demo_job.json").read_text())["method"]
    for stage, settings in spec["method"].items():
        assert stage == "type" or settings == demo[stage]
