import json
import shutil
from dataclasses import replace
from math import fsum
from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.answers import answer_prompts, choose_prompts
from mpo.config import EvaluateStage
from mpo.diversity import diversity_report
from mpo.errors import TooFewPrompts, UnusableModel
from mpo.evaluation import evaluate
from mpo.generation import never_stop
from mpo.intervals import bootstrap_interval, wilson_interval
from mpo.model_tokens import ModelTokens
from mpo.policies import load_policy, load_reward_model
from mpo.records import PreferencePair, read_pairs, write_rows
from mpo.reporter import StageInput, StageTask
from mpo.reward_model.score import score_encoded
from mpo.tokenization import encode_pairs, load_tokenizer
from tests.mpo.tiny import (
    RecordingReporter,
    task_of,
    tiny_llama,
    train_tokenizer,
    word_pairs,
    write_policy,
    write_reward_model,
)

LENGTHS = {"max_new_tokens": 6, "max_prompt_tokens": 16, "max_response_tokens": 8}


def write_foreigner(folder: Path) -> Path:
    """A policy of another vocabulary than `write_policy`'s, of the same size."""
    tokenizer = train_tokenizer(["some other words that nobody else has merged"] * 3, 290)
    tiny_llama(300, seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    for seed, name in enumerate(("sft", "dpo", "ppo")):
        write_policy(folder / name, seed)
    write_foreigner(folder / "foreigner")
    write_reward_model(folder / "reward_model", folder / "sft")
    write_reward_model(folder / "judge", folder / "sft", seed=1)
    again = [PreferencePair(f"again-{p.id}", p.prompt, p.rejected, p.chosen[:-1]) for p in word_pairs(4)]
    write_rows(folder / "eval.parquet", [*word_pairs(16), *again])
    write_rows(folder / "nothing.parquet", [])
    return folder


def evaluate_task(
    house: Path,
    output: Path,
    models: tuple[str, ...] = ("sft", "dpo", "ppo"),
    roles: dict[str, str | None] | None = None,
    **changes: Any,
) -> StageTask:
    config = EvaluateStage(**{"prompts": 12, **LENGTHS, **changes})
    named = {"reward_model": "reward_model", "judge": "judge", "data": "eval.parquet"} | (roles or {})
    inputs: dict[str, Path | list[Path]] = {role: house / name for role, name in named.items() if name}
    return task_of(config, output, inputs | {"models": [house / name for name in models]}, seed=3)


def run(house: Path, output: Path, *models: str, **options: Any) -> tuple[dict[str, Any], RecordingReporter]:
    reporter = RecordingReporter()
    evaluate(evaluate_task(house, output, models or ("sft", "dpo", "ppo"), **options), reporter)
    return json.loads((output / "report.json").read_text()), reporter


def sampled(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def test_the_report_compares_every_two_models_and_says_who_judged(house: Path, tmp_path: Path) -> None:
    report, reporter = run(house, tmp_path)
    assert report == json.loads((tmp_path / "summary.json").read_text())
    assert (report["prompts"], report["samples"]) == (12, 1)
    assert report["judge"]["name"] == "judge"
    assert report["judge"]["pairs"] == 20
    right = report["judge"]["accuracy"] * 20
    assert report["judge"]["accuracy_ci95"] == list(wilson_interval(right, 20))
    compared = [(rate["model_a"], rate["model_b"]) for rate in report["win_rates"]]
    assert compared == [("dpo", "sft"), ("ppo", "sft"), ("ppo", "dpo")]
    assert all(rate["n"] == 12 for rate in report["win_rates"])
    steps = [step[:2] for step in reporter.steps]
    assert steps == [(i, steps[0][1]) for i in range(1, steps[0][1] + 1)]
    assert reporter.warnings == []


def test_the_judge_s_calibration_and_each_model_s_diversity_are_told(house: Path, tmp_path: Path) -> None:
    report, _ = run(house, tmp_path, "sft", "ppo", samples=2)
    calibration = report["judge"]["calibration"]
    assert sum(part["pairs"] for part in calibration["reliability"]) == 20
    assert sum(part["pairs"] for part in calibration["accuracy_by_length"]) == 20
    right = sum(part["pairs"] * part["accuracy"] for part in calibration["reliability"])
    assert right / 20 == pytest.approx(report["judge"]["accuracy"])
    for model in report["models"]:
        texts = [
            r["text"] for row in sampled(tmp_path) for r in row["responses"] if r["model"] == model["model"]
        ]
        assert model["diversity"] == diversity_report(texts, lambda: None)
        assert 0 < model["diversity"]["self_bleu"] < 1
    assert report["contamination"] is None


def test_prompts_that_a_model_was_trained_on_are_counted_and_warned_of(house: Path, tmp_path: Path) -> None:
    seen = write_rows(tmp_path / "seen.parquet", [word_pairs(16)[3], word_pairs(40)[39]])
    assert seen == 2
    task = evaluate_task(house, tmp_path / "out", ("sft", "ppo"), prompts=16)
    data = StageInput("job_1:hold_out.train", tmp_path / "seen.parquet")
    reporter = RecordingReporter()
    evaluate(replace(task, inputs={**task.inputs, "training_of_1": (data,)}), reporter)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    prompts = [row["prompt"] for row in sampled(tmp_path / "out")]
    place = prompts.index(word_pairs(16)[3].prompt)
    sft, ppo = report["contamination"]["models"]
    assert sft == {"model": "sft", "data": None, "equal": None, "shared_13_grams": None}
    assert (ppo["data"], ppo["equal"]) == (["job_1:hold_out.train"], {"prompts": 1, "first": [place]})
    assert [w for w in reporter.warnings if "trained on" in w] == [
        "1 of the 16 prompts are in what ppo was trained on: its numbers are not of unseen prompts."
    ]


def test_kl_is_told_to_sft_and_to_dpo(house: Path, tmp_path: Path) -> None:
    report, _ = run(house, tmp_path, roles={"dpo": "dpo"})
    by_name = {model["model"]: model["kl"] for model in report["models"]}
    assert {name: set(kl) for name, kl in by_name.items()} == {
        "sft": {"dpo"},
        "dpo": {"sft"},
        "ppo": {"sft", "dpo"},
    }
    kl = by_name["ppo"]["dpo"]
    assert 0 < kl["ci95"][0] < kl["mean"] < kl["ci95"][1]


def test_roles_say_which_models_kl_is_told_to_where_stages_have_other_names(
    house: Path, tmp_path: Path
) -> None:
    report, _ = run(house, tmp_path, "dpo", "ppo", roles={"sft": "ppo", "dpo": "sft"}, prompts=2)
    assert {model["model"]: set(model["kl"]) for model in report["models"]} == {
        "dpo": {"ppo", "sft"},
        "ppo": {"sft"},
    }


def test_no_name_of_a_model_decides_what_kl_is_told_to(house: Path, tmp_path: Path) -> None:
    report, _ = run(house, tmp_path, "sft", "dpo", "ppo", prompts=2)
    assert [set(model["kl"]) for model in report["models"]] == [set(), {"sft"}, {"sft"}]


def test_equal_responses_tie_whatever_batch_they_are_scored_in(house: Path, tmp_path: Path) -> None:
    report, _ = run(house, tmp_path, "sft", "ppo", "sft", samples=3)
    of_ppo, of_itself, _ = report["win_rates"]
    assert of_ppo["ties"] < 12
    assert (of_itself["ties"], of_itself["win_rate"], of_itself["significant"]) == (12, 0.5, False)


def test_several_samples_count_as_their_prompt_s_mean(house: Path, tmp_path: Path) -> None:
    report, _ = run(house, tmp_path, "sft", "ppo", samples=3)
    rows = sampled(tmp_path)
    assert [row["index"] for row in rows] == list(range(12))
    assert len({row["prompt"] for row in rows}) == 12
    means: dict[str, list[float]] = {"sft": [], "ppo": []}
    for row in rows:
        assert [(r["model"], r["sample"]) for r in row["responses"]] == [
            (name, sample) for name in ("sft", "ppo") for sample in range(3)
        ]
        assert len({r["text"] for r in row["responses"][:3]}) > 1, "each sample has a seed of its own"
        assert all(1 <= r["tokens"] <= 6 for r in row["responses"])
        for name, of_prompt in means.items():
            of_prompt.append(fsum(r["score"] for r in row["responses"] if r["model"] == name) / 3)
    wins = sum(b > a for a, b in zip(means["sft"], means["ppo"], strict=True))
    (rate,) = report["win_rates"]
    assert (rate["wins"], rate["n"], rate["ci95"]) == (wins, 12, list(wilson_interval(wins, 12)))
    reward = report["models"][1]["reward"]
    assert reward["mean"] == pytest.approx(fsum(means["ppo"]) / 12, abs=1e-12)
    # Over prompts: an interval over all 36 responses would be narrower than the data allow.
    assert reward["ci95"] == pytest.approx(bootstrap_interval(means["ppo"], seed=3), abs=1e-12)


def test_kl_of_several_samples_equals_sums_over_the_vocabulary_written_out(
    house: Path, tmp_path: Path
) -> None:
    report, _ = run(house, tmp_path, "sft", "ppo", samples=2, prompts=3)
    config = EvaluateStage(prompts=3, samples=2, **LENGTHS)
    prompts = choose_prompts(read_pairs(house / "eval.parquet"), 3, 3)
    model = StageInput("ppo", house / "ppo")
    tokens = ModelTokens.of(model)
    answers = answer_prompts(model, tokens, prompts, config, 3, never_stop)
    policy, reference = load_policy(house / "ppo"), load_policy(house / "sft")
    kls = []
    for place, response in enumerate(answers.responses):
        (prompt,) = tokens.encode([prompts[place // 2]], 16)
        ids = torch.tensor([prompt + response.token_ids])
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(prompt) - 1 : -1].double().softmax(-1) for m in (policy, reference))
        kls.append(float((p * (p / q).log()).sum()))
    assert report["models"][1]["kl"]["sft"]["mean"] == pytest.approx(sum(kls) / 6, rel=1e-4)


def test_numbers_come_by_the_gap_that_the_reward_model_gives_the_held_out_pairs(
    house: Path, tmp_path: Path
) -> None:
    report, _ = run(house, tmp_path, roles={"dpo": "dpo"})
    pairs = read_pairs(house / "eval.parquet")
    encoded, _ = encode_pairs(
        pairs, load_tokenizer(house / "reward_model"), max_prompt_tokens=16, max_response_tokens=8
    )
    chosen, rejected = score_encoded(load_reward_model(house / "reward_model"), encoded).double().unbind(-1)
    sizes: dict[str, list[float]] = {row["prompt"]: [] for row in sampled(tmp_path)}
    for pair, gap in zip(pairs, (chosen - rejected).abs().tolist(), strict=True):
        if pair.prompt in sizes:
            sizes[str(pair.prompt)].append(gap)
    assert {len(of_prompt) for of_prompt in sizes.values()} == {1, 2}
    rising = sorted(sum(of_prompt) / len(of_prompt) for of_prompt in sizes.values())
    low, high = report["by_gap"]
    assert [low["n"], high["n"]] == [6, 6]
    assert low["gap"] == pytest.approx([rising[0], rising[5]], abs=1e-5)
    assert high["gap"] == pytest.approx([rising[6], rising[11]], abs=1e-5)
    for name in ("wins", "losses", "ties"):
        in_groups = [low["win_rates"][1][name], high["win_rates"][1][name]]
        assert sum(in_groups) == report["win_rates"][1][name]
    kls = [group["models"][2]["kl"]["dpo"]["mean"] for group in (low, high)]
    assert sum(kls) / 2 == pytest.approx(report["models"][2]["kl"]["dpo"]["mean"])


def test_without_a_reward_model_there_is_nothing_by_gap(house: Path, tmp_path: Path) -> None:
    report, _ = run(house, tmp_path, "sft", "dpo", roles={"reward_model": None})
    assert report["by_gap"] is None
    assert [model["training_reward"] for model in report["models"]] == [None, None]
    assert report["models"][0]["reward"]["mean"] != report["models"][1]["reward"]["mean"]


@pytest.mark.parametrize("independence", ["other_seed", "other_data", "llm", "gold"])
def test_only_a_judge_of_the_same_labels_shares_their_noise(
    house: Path, tmp_path: Path, independence: str
) -> None:
    report, _ = run(house, tmp_path, "sft", prompts=1, judge_independence=independence)
    assert report["judge_independence"] == independence
    assert (report["note"] is not None) == (independence == "other_seed")


def test_a_judge_that_was_trained_against_is_no_evidence(house: Path, tmp_path: Path) -> None:
    _, reporter = run(house, tmp_path, "sft", prompts=1, roles={"judge": "reward_model"})
    assert "no evidence" in reporter.warnings[0]


def test_each_model_is_prompted_and_stopped_by_its_own_tokens(house: Path, tmp_path: Path) -> None:
    shutil.copytree(house / "ppo", hasty := tmp_path / "hasty")
    (hasty / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(300))}))
    for name in ("sft", "foreigner", "judge", "reward_model"):
        (tmp_path / name).symlink_to(house / name)
    (tmp_path / "eval.parquet").symlink_to(house / "eval.parquet")
    report, _ = run(tmp_path, tmp_path / "first", "sft", "hasty", "foreigner")
    slow, fast, foreign = report["models"]
    assert (fast["eos_rate"], fast["response_tokens"]["mean"]) == (1.0, 1.0)
    assert slow["response_tokens"]["mean"] > 3
    run(tmp_path, tmp_path / "alone", "foreigner")
    together, alone = (
        [r["text"] for row in sampled(tmp_path / out) for r in row["responses"] if r["model"] == "foreigner"]
        for out in ("first", "alone")
    )
    assert together == alone
    assert foreign["kl"] == {}


def test_kl_between_vocabularies_is_left_out_and_said_so(house: Path, tmp_path: Path) -> None:
    report, reporter = run(house, tmp_path, "sft", "foreigner", "dpo", roles={"dpo": "dpo"}, prompts=2)
    assert [set(model["kl"]) for model in report["models"]] == [{"dpo"}, set(), {"sft"}]
    assert [w for w in reporter.warnings if "KL" in w] == [
        "There is no KL of foreigner to sft: their vocabularies differ.",
        "There is no KL of foreigner to dpo: their vocabularies differ.",
    ]


def test_a_policy_for_a_judge_is_refused_before_anything_is_sampled(house: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    with pytest.raises(UnusableModel, match=r"ppo cannot be the judge: .*kind reward_model") as caught:
        evaluate(evaluate_task(house, tmp_path, roles={"judge": "ppo"}), reporter)
    assert caught.value.facts["role"] == "judge"
    assert reporter.steps == []


def test_no_held_out_prompt_is_refused_with_what_to_do(house: Path, tmp_path: Path) -> None:
    with pytest.raises(TooFewPrompts, match=r"hold_out\.fraction above 0.*eval_dataset"):
        run(house, tmp_path, roles={"data": "nothing.parquet"})


def test_lengths_beyond_a_model_s_context_are_refused_with_the_numbers(house: Path, tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match="sft has a context of 64 tokens") as caught:
        run(house, tmp_path, max_prompt_tokens=56)
    assert caught.value.facts["tokens"] == 56 + 8 + 1
    run(house, tmp_path, "sft", prompts=1, max_prompt_tokens=55)
