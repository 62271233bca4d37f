"""A preset alone, and then a job of explicit stages that goes on from what it trained: over HTTP."""

from typing import Any

from tests.end_to_end.running_stack import RunningStack, example_rows

ENDED = {"succeeded", "failed", "cancelled"}


def run(stack: RunningStack, spec: dict[str, Any]) -> dict[str, Any]:
    done = stack.wait_for(f"/v1/jobs/{stack.submit(spec)['id']}", ENDED)
    assert done["status"] == "succeeded", done["error"]
    return done


def test_explicit_stages_go_on_from_a_model_of_an_earlier_job(stack: RunningStack) -> None:
    dataset = stack.upload(example_rows(40), "for stages")["id"]
    method = {"type": "dpo", "sft": None, "dpo": {"max_steps": 2}, "evaluate": None}
    earlier = run(stack, {"model": "tiny", "dataset": dataset, "method": method, "seed": 11})
    assert set(earlier["models"]) == {"dpo"}
    policy = earlier["models"]["dpo"]
    stages: list[dict[str, Any]] = [
        {
            "name": "further",
            "kind": "dpo",
            "max_steps": 2,
            "inputs": {"policy": policy, "reference": policy, "data": "rows"},
        },
        {"name": "rows", "kind": "hold_out", "inputs": {"data": dataset}},
    ]
    later = run(stack, {"stages": stages, "seed": 11})
    assert [stage["cached"] for stage in later["stages"]] == [True, False]  # the hold-out is the same work
    model = stack.get(f"/v1/models/{later['models']['further']}")
    assert (model["kind"], model["base"]) == ("policy", policy)
    report = stack.get(f"/v1/jobs/{later['id']}/report")
    assert report["stages"]["further"]["steps"] == 2
    answer = stack.client.post(
        "/v1/completions",
        json={"model": model["id"], "prompt": "\n\nHuman: Hi\n\nAssistant:", "max_tokens": 4},
    )
    assert answer.status_code == 200, answer.text
