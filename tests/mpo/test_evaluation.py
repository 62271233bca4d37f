import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mpo.config import EvaluateStage
from mpo.errors import StageInterrupted
from mpo.evaluation import Answers, EvaluationPrompts, Progress, evaluate, sampled_kl
from mpo.generation import SampledResponse
from mpo.policies import load_policy
from mpo.reporter import StageInput, StageTask
from tests.mpo.tiny import (
    PAD,
    RecordingReporter,
    task_of,
    write_pairs,
    write_policy,
    write_reward_model,
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    for seed, name in enumerate(("sft", "dpo", "ppo")):
        write_policy(folder / name, seed)
    write_reward_model(folder / "reward_model", folder / "sft")
    write_reward_model(folder / "judge", folder / "sft", seed=1)
    write_pairs(folder / "eval.parquet", 20)
    return folder


def evaluate_task(house: Path, output: Path, models: tuple[str, ...] = ("sft", "dpo", "ppo")) -> StageTask:
    config = EvaluateStage(prompts=12, max_new_tokens=6, max_prompt_tokens=16, max_response_tokens=8)
    inputs: dict[str, Path | list[Path]] = {
        "models": [house / name for name in models],
        "reward_model": house / "reward_model",
        "judge": house / "judge",
        "data": house / "eval.parquet",
    }
    return task_of(config, output, inputs)


def test_the_report_compares_every_two_models_and_says_who_judged(house: Path, tmp_path: Path) -> None:
    evaluate(evaluate_task(house, tmp_path), reporter := RecordingReporter())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == json.loads((tmp_path / "summary.json").read_text())
    assert report["prompts"] == 12
    assert report["judge_independence"] == "other_seed"
    low, high = report["judge"]["accuracy_ci95"]
    assert low <= report["judge"]["accuracy"] <= high
    assert report["judge"]["pairs"] == 20
    compared = [(rate["model_a"], rate["model_b"]) for rate in report["win_rates"]]
    assert compared == [("dpo", "sft"), ("ppo", "sft"), ("ppo", "dpo")]
    assert all(rate["n"] == 12 for rate in report["win_rates"])
    by_name = {model["model"]: model for model in report["models"]}
    assert {name: set(model["kl"]) for name, model in by_name.items()} == {
        "sft": {"dpo"},
        "dpo": {"sft"},
        "ppo": {"sft", "dpo"},
    }
    kl = by_name["ppo"]["kl"]["dpo"]
    assert 0 < kl["ci95"][0] < kl["mean"] < kl["ci95"][1]
    steps = [step[:2] for step in reporter.steps]
    assert steps == [(i, steps[0][1]) for i in range(1, steps[0][1] + 1)]


def test_samples_hold_every_models_response_to_every_prompt(house: Path, tmp_path: Path) -> None:
    evaluate(evaluate_task(house, tmp_path), RecordingReporter())
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(12))
    assert len({row["prompt"] for row in rows}) == 12
    for row in rows:
        assert [response["model"] for response in row["responses"]] == ["sft", "dpo", "ppo"]
        assert all(1 <= response["tokens"] <= 6 for response in row["responses"])
        assert row["responses"][0].keys() == {"model", "text", "finish_reason", "tokens", "score"}


def test_equal_responses_tie_whatever_batch_they_are_scored_in(house: Path, tmp_path: Path) -> None:
    evaluate(evaluate_task(house, tmp_path, ("sft", "ppo", "sft")), RecordingReporter())
    of_ppo, of_itself, _ = json.loads((tmp_path / "report.json").read_text())["win_rates"]
    assert of_ppo["ties"] < 12
    assert (of_itself["ties"], of_itself["win_rate"], of_itself["significant"]) == (12, 0.5, False)


def test_kl_equals_a_sum_over_the_vocabulary_written_out(house: Path) -> None:
    prompts, responses = [[1, 40, 50], [1, 60]], [[70, 80], [90, 100, 2]]
    model, base = StageInput("ppo", house / "ppo"), StageInput("sft", house / "sft")
    answers = Answers(model, ["", ""], [SampledResponse(ids) for ids in responses], [], [])
    progress = Progress(RecordingReporter(), 1)
    kls = sampled_kl(model, base, EvaluationPrompts(["", ""], prompts), answers, PAD, progress)
    policy, reference = load_policy(house / "ppo"), load_policy(house / "sft")
    for prompt, response, kl in zip(prompts, responses, kls, strict=True):
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(prompt) - 1 : -1].double().softmax(-1) for m in (policy, reference))
        assert_close(torch.tensor(kl).double(), (p * (p / q).log()).sum(), atol=1e-4, rtol=1e-4)


def test_evaluation_ends_at_once_when_it_is_asked_to(house: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter(stop_after=0)
    with pytest.raises(StageInterrupted):
        evaluate(evaluate_task(house, tmp_path), reporter)
    assert reporter.steps == []
