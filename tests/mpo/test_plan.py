"""What a spec expands to, and which of its keys change with what."""

from typing import Any

import pytest

from mpo.config import DPOStage, PPOStage, RewardModelStage, ScoreStage
from mpo.errors import InvalidSpec
from mpo.job_spec import JobSpec
from mpo.plan import RANK, PlannedStage, Source, check_plan, expand, plan_keys, plan_warnings, ranks, resolve

MODEL, PAIRS = Source.model("tiny"), Source.dataset("ds_1")
LEAVES = {MODEL: ("m" * 64, "model"), PAIRS: ("d" * 64, "pairs"), Source.dataset("ds_2"): ("e" * 64, "pairs")}
MPO_STAGES = [
    "hold_out",
    "sft",
    "reward_model_fold_1",
    "reward_model_fold_2",
    "reward_model_fold_3",
    "reward_model",
    "score",
    "split",
    "dpo",
    "ppo",
    "judge",
    "evaluate",
]


def spec(method: dict[str, Any] | None = None, **values: Any) -> JobSpec:
    return JobSpec.model_validate({"model": "tiny", "dataset": "ds_1", "method": method, **values})


def plan(method: dict[str, Any] | None = None, **values: Any) -> dict[str, PlannedStage]:
    stages = expand(spec(method, **values), model="tiny", dataset="ds_1")
    return {stage.name: stage for stage in stages}


def keys(method: dict[str, Any] | None = None, **values: Any) -> dict[str, str]:
    asked = spec(method, **values)
    stages = expand(asked, model="tiny", dataset="ds_1")
    return plan_keys(resolve(asked, stages, 512), LEAVES)


def written(stage: PlannedStage) -> dict[str, Any]:
    return {role: [str(source) for source in sources] for role, sources in stage.inputs.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def test_mpo_trains_on_easy_pairs_then_on_the_prompts_of_difficult_ones() -> None:
    stages = plan({"type": "mpo"})
    assert list(stages) == MPO_STAGES
    assert written(stages["dpo"]) == {
        "policy": ["sft.model"],
        "reference": ["sft.model"],
        "data": ["split.easy"],
    }
    assert written(stages["ppo"]) == {
        "policy": ["dpo.model"],
        "reference": ["dpo.model"],
        "reward_model": ["reward_model.model"],
        "prompts": ["split.difficult"],
        "sft": ["sft.model"],
    }


@pytest.mark.parametrize(
    ("type_", "names"),
    [
        ("sft", ["hold_out", "sft"]),
        ("reward_model", ["hold_out", "reward_model"]),
        ("dpo", ["hold_out", "sft", "dpo", "judge", "evaluate"]),
        ("ppo", ["hold_out", "sft", "reward_model", "ppo", "judge", "evaluate"]),
    ],
)
def test_every_preset_has_its_stages(type_: str, names: list[str]) -> None:
    assert list(plan({"type": type_})) == names


def test_the_dpo_preset_reads_all_training_pairs_and_has_no_reward_model() -> None:
    stages = plan({"type": "dpo"})
    assert written(stages["dpo"])["data"] == ["hold_out.train"]
    assert written(stages["evaluate"]) == {
        "models": ["sft.model", "dpo.model"],
        "judge": ["judge.model"],
        "data": ["hold_out.eval"],
        "sft": ["sft.model"],
        "dpo": ["dpo.model"],
    }
    assert stages["judge"].config == RewardModelStage()
    assert (stages["dpo"].seed, stages["judge"].seed) == (0, 1)


def test_the_judge_s_seed_is_one_that_a_stage_takes() -> None:
    assert plan({"type": "dpo"}, seed=2**31 - 1)["judge"].seed == 0


def test_a_reward_model_on_an_adapted_sft_has_its_adapter_s_shape() -> None:
    method = {"type": "mpo", "sft": {"lora": {"rank": 4}}, "reward_model": {"backbone": "sft", "lora": {}}}
    with pytest.raises(InvalidSpec) as caught:
        plan(method)
    assert caught.value.facts["loc"] == ("method", "reward_model", "lora")


@pytest.mark.parametrize(("type_", "after"), [("mpo", "dpo"), ("ppo", "ppo")])
def test_an_adapter_goes_on_in_the_shape_that_it_has(type_: str, after: str) -> None:
    small, large = {"lora": {"rank": 4}}, {"lora": {"rank": 8}}
    with pytest.raises(InvalidSpec) as caught:
        plan({"type": type_, "sft": small, after: large})
    assert caught.value.facts["loc"] == ("method", after, "lora")
    plan({"type": type_, "sft": small, after: small})
    # A model that is trained whole in between is a base of its own.
    plan({"type": "mpo", "sft": small, "dpo": {}, "ppo": large})


def test_the_ppo_preset_keeps_to_the_sft_model() -> None:
    stages = plan({"type": "ppo"})
    ppo = written(stages["ppo"])
    assert (ppo["policy"], ppo["reference"], ppo["prompts"]) == (
        ["sft.model"],
        ["sft.model"],
        ["hold_out.train"],
    )
    assert written(stages["evaluate"])["models"] == ["sft.model", "ppo.model"]


@pytest.mark.parametrize("type_", ["mpo", "dpo", "ppo"])
def test_without_sft_the_model_takes_its_place(type_: str) -> None:
    stages = plan({"type": type_, "sft": None})
    assert "sft" not in stages
    first = stages["ppo" if type_ == "ppo" else "dpo"]
    assert (written(first)["policy"], written(first)["reference"]) == (["tiny"], ["tiny"])
    assert written(stages["evaluate"])["models"][0] == "tiny"


@pytest.mark.parametrize("type_", ["mpo", "dpo", "ppo"])
def test_a_job_without_evaluation_trains_no_judge(type_: str) -> None:
    assert not {"judge", "evaluate"} & plan({"type": type_, "evaluate": None}).keys()


def test_a_held_out_half_is_scored_by_the_model_that_has_not_seen_it() -> None:
    stages = plan({"type": "mpo", "score": {"scheme": "held_out", "folds": 7}})
    assert [name for name in stages if "fold" in name] == ["reward_model_fold_1"]
    fold, score = stages["reward_model_fold_1"].config, stages["score"].config
    assert isinstance(fold, RewardModelStage)
    assert isinstance(score, ScoreStage)
    assert (fold.fold, fold.folds, score.folds) == (1, 2, 2)
    assert written(stages["score"])["reward_models"] == ["reward_model_fold_1.model"]


@pytest.mark.parametrize(
    ("score", "reward_model", "asked"),
    [(None, "pause", "pause"), (None, "fail", "fail"), ("warn", "fail", "warn"), ("pause", "warn", "pause")],
)
def test_a_score_s_own_word_on_weak_models_comes_first(
    score: str | None, reward_model: str, asked: str
) -> None:
    stages = plan({"type": "mpo", "score": {"on_weak": score}, "reward_model": {"on_weak": reward_model}})
    assert stages["score"].config.model_dump()["on_weak"] == asked


def test_in_sample_the_final_reward_model_scores() -> None:
    stages = plan({"type": "mpo", "score": {"scheme": "in_sample"}})
    assert not [name for name in stages if "fold" in name]
    assert written(stages["score"])["reward_models"] == ["reward_model.model"]


@pytest.mark.parametrize("scheme", ["held_out", "in_sample"])
def test_no_key_depends_on_folds_that_nobody_trains(scheme: str) -> None:
    def with_folds(folds: int) -> dict[str, str]:
        return keys({"type": "mpo", "score": {"scheme": scheme, "folds": folds}})

    assert with_folds(2) == with_folds(5)


def test_each_scheme_has_a_score_of_its_own_and_leaves_the_rest_before_it_alone() -> None:
    found = {s: keys({"type": "mpo", "score": {"scheme": s}}) for s in ("cross_fit", "held_out", "in_sample")}
    assert len({of["score"] for of in found.values()}) == 3
    assert len({of["reward_model"] for of in found.values()}) == 1
    assert changed(found["cross_fit"], found["in_sample"]) == {"score", "split", "dpo", "ppo", "evaluate"}


def test_a_key_changes_with_what_the_result_depends_on_and_with_nothing_else() -> None:
    before = keys({"type": "mpo"})
    assert changed(before, keys({"type": "mpo"}, name="other", priority=3, labels={"a": "b"})) == set()
    after_split = {"split", "dpo", "ppo", "evaluate"}
    assert changed(before, keys({"type": "mpo", "split": {"threshold": 1.0}})) == after_split
    assert changed(before, keys({"type": "mpo", "reward_model": {"on_weak": "fail"}})) == set()
    assert changed(before, keys({"type": "mpo", "ppo": {"checkpoint_seconds": 1}})) == set()
    assert changed(before, keys({"type": "mpo", "ppo": {"clip": 0.3}})) == {"ppo", "evaluate"}
    assert changed(before, keys({"type": "mpo"}, seed=1)) == set(before)


@pytest.mark.parametrize("stage", ["score", "evaluate"])
def test_what_trains_nothing_has_no_key_of_how_to_train(stage: str) -> None:
    before = keys({"type": "mpo"})
    training = {"learning_rate": 0.5, "epochs": 9, "max_steps": 3, "batch_pairs": 4, "lora": {"rank": 2}}
    assert changed(before, keys({"type": "mpo", stage: training})) == set()
    assert stage in changed(before, keys({"type": "mpo", stage: {"max_response_tokens": 40}}))
    assert changed(before, keys({"type": "mpo", "dpo": {"batch_pairs": 4}})) == {"dpo", "ppo", "evaluate"}


def test_presets_share_what_is_the_same_work() -> None:
    mpo, dpo, ppo = (keys({"type": type_}) for type_ in ("mpo", "dpo", "ppo"))
    assert mpo["sft"] == dpo["sft"] == ppo["sft"] == keys({"type": "sft"})["sft"]
    assert mpo["reward_model"] == ppo["reward_model"] == keys({"type": "reward_model"})["reward_model"]
    assert len({mpo["ppo"], ppo["ppo"]}) == 2


def test_a_stage_with_adapters_reads_the_frozen_base() -> None:
    lora = {"lora": {"rank": 4}}
    stages = plan({"type": "mpo", "sft": lora, "dpo": lora, "reward_model": lora})
    with_base = {name for name, stage in stages.items() if "base" in stage.inputs}
    folds = {f"reward_model_fold_{fold}" for fold in (1, 2, 3)}
    assert with_base == {"sft", "dpo", "reward_model", "judge"} | folds
    assert written(stages["dpo"])["base"] == ["tiny"]
    assert "base" not in stages["ppo"].inputs


def explicit_mpo() -> list[dict[str, Any]]:
    """The mpo preset with two folds, written out; not in order."""
    rows, trained = {"data": "hold_out"}, {"data": "hold_out.train", "eval": "hold_out.eval"}
    folds = [
        {
            "name": f"reward_model_fold_{k}",
            "kind": "reward_model",
            "fold": k,
            "folds": 2,
            "inputs": {"backbone": "tiny", **rows},
        }
        for k in (1, 2)
    ]
    return [
        {
            "name": "evaluate",
            "kind": "evaluate",
            "inputs": {
                "models": ["sft", "dpo", "ppo"],
                "reward_model": "reward_model",
                "judge": "judge",
                "data": "hold_out.eval",
                "sft": "sft",
                "dpo": "dpo",
            },
        },
        {
            "name": "ppo",
            "kind": "ppo",
            "inputs": {
                "policy": "dpo",
                "reference": "dpo.model",
                "reward_model": "reward_model",
                "prompts": "split.difficult",
                "sft": "sft",
            },
        },
        {"name": "dpo", "kind": "dpo", "inputs": {"policy": "sft", "reference": "sft", "data": "split.easy"}},
        {"name": "split", "kind": "split", "inputs": {"scores": "score", **rows}},
        {
            "name": "score",
            "kind": "score",
            "inputs": {"reward_models": ["reward_model_fold_1", "reward_model_fold_2"], **rows},
        },
        *folds,
        {"name": "reward_model", "kind": "reward_model", "inputs": {"backbone": "tiny", **trained}},
        {"name": "judge", "kind": "reward_model", "seed": 1, "inputs": {"backbone": "tiny", **trained}},
        {"name": "sft", "kind": "sft", "inputs": {"policy": "tiny", **rows}},
        {"name": "hold_out", "kind": "hold_out", "inputs": {"data": "ds_1"}},
    ]


def test_the_preset_written_out_has_the_preset_s_keys_and_ranks() -> None:
    method = {"type": "mpo", "score": {"folds": 2}}
    stages = plan(stages=explicit_mpo())
    assert keys(stages=explicit_mpo()) == keys(method)
    assert ranks(list(stages.values())) == ranks(list(plan(method).values()))
    names = list(stages)
    for name, stage in stages.items():
        assert all(names.index(before) < names.index(name) for before in stage.stages_before())


def test_a_reward_model_on_the_sft_has_the_same_key_however_it_is_written() -> None:
    nodes = explicit_mpo()
    for node in nodes:
        if node["kind"] == "reward_model" and node["name"] != "judge":
            node["inputs"]["backbone"] = "sft"
    method = {"type": "mpo", "score": {"folds": 2}, "reward_model": {"backbone": "sft"}}
    assert keys(stages=nodes) == keys(method)


def test_ranks_go_by_what_a_stage_is_and_not_by_its_name() -> None:
    nodes = explicit_mpo()
    for node in nodes:
        if node["kind"] == "evaluate":
            node["inputs"] |= {"judge": "second", "models": ["sft", "judge"]}
        node["name"] = {"judge": "second", "ppo": "judge"}.get(node["name"], node["name"])
    found = {name: RANK[rank] for name, rank in ranks(list(plan(stages=nodes).values())).items()}
    assert (found["second"], found["judge"], found["reward_model"]) == ("judge", "ppo", "reward_model")


def test_a_scoring_reward_model_on_the_sft_is_warned_about() -> None:
    def warned(**method: Any) -> dict[str, list[str]]:
        return plan_warnings(list(plan({"type": "mpo", **method}).values()))

    assert warned() == {}
    assert list(warned(reward_model={"backbone": "sft"})) == ["score"]
    in_sample = {"scheme": "in_sample"}
    assert warned(reward_model={"backbone": "sft"}, score=in_sample) == {}


@pytest.mark.parametrize(
    ("scheme", "models"), [("cross_fit", ["job_1:a", "job_1:b"]), ("held_out", ["job_1:a"])]
)
def test_folds_of_another_job_are_warned_about(scheme: str, models: list[str]) -> None:
    def warned(scheme: str) -> dict[str, list[str]]:
        inputs = {"reward_models": models, "data": "ds_1"}
        node = {"name": "gaps", "kind": "score", "scheme": scheme, "inputs": inputs}
        return plan_warnings(list(plan(stages=[node]).values()))

    assert "another job" in warned(scheme)["gaps"][0]
    if len(models) == 1:
        assert warned("in_sample") == {}


@pytest.mark.parametrize("judge", ["reward_model", "twin"])
def test_a_judge_that_was_trained_against_is_warned_about(judge: str) -> None:
    nodes = explicit_mpo()
    trained = next(node for node in nodes if node["name"] == "reward_model")
    nodes.append({**trained, "name": "twin", "checkpoint_seconds": 1})
    next(node for node in nodes if node["kind"] == "evaluate")["inputs"]["judge"] = judge
    nodes.remove(next(node for node in nodes if node["name"] == "judge"))
    assert list(plan_warnings(list(plan(stages=nodes).values()))) == ["evaluate"]


def test_lengths_come_from_the_smallest_context_behind_a_stage() -> None:
    nodes = [
        {"name": "long", "kind": "dpo", "inputs": {"policy": "big", "reference": "big", "data": "ds_1"}},
        {"name": "short", "kind": "dpo", "inputs": {"policy": "long", "reference": "small", "data": "ds_1"}},
    ]
    asked = spec(stages=nodes)
    stages = expand(asked, model=None, dataset=None)
    contexts = {Source.model("big"): 400, Source.model("small"): 64}
    resolved = [stage.config for stage in resolve(asked, stages, 8, contexts)]
    found = [config.max_prompt_tokens for config in resolved if isinstance(config, DPOStage)]
    assert found == [200, 32]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"method": {"type": "mpo", "ppo": {"max_new_tokens": 60}}}, ("method", "ppo", "max_new_tokens")),
        (
            {"method": {"type": "mpo", "reward_model": {"max_prompt_tokens": 64}, "judge": {}}},
            ("method", "reward_model", "max_prompt_tokens"),
        ),
        (
            {"method": {"type": "dpo", "judge": {"max_response_tokens": 64}}},
            ("method", "judge", "max_response_tokens"),
        ),
        (
            {
                "stages": [
                    {
                        "name": "a",
                        "kind": "dpo",
                        "max_response_tokens": 64,
                        "inputs": {"policy": "tiny", "reference": "tiny", "data": "ds_1"},
                    }
                ]
            },
            ("stages", 0, "max_response_tokens"),
        ),
    ],
)
def test_lengths_above_the_context_name_the_field(
    values: dict[str, Any], place: tuple[str | int, ...]
) -> None:
    asked = spec(**values)
    with pytest.raises(InvalidSpec) as caught:
        resolve(asked, expand(asked, model="tiny", dataset="ds_1"), 64)
    assert caught.value.facts["loc"] == place


@pytest.mark.parametrize(
    ("type_", "thing", "place"),
    [
        ("sft", "texts", None),
        ("sft", "prompts", ("dataset",)),
        ("dpo", "texts", ("dataset",)),
        ("mpo", "prompts", ("dataset",)),
    ],
)
def test_a_preset_says_which_rows_it_takes(type_: str, thing: Any, place: tuple[str, ...] | None) -> None:
    asked = spec({"type": type_})
    stages = expand(asked, model="tiny", dataset="ds_1")
    if place is None:
        check_plan(asked, stages, {MODEL: "policy", PAIRS: thing})
        return
    with pytest.raises(InvalidSpec) as caught:
        check_plan(asked, stages, {MODEL: "policy", PAIRS: thing})
    assert caught.value.facts["loc"] == place


def test_a_preset_s_model_is_a_policy() -> None:
    asked = spec({"type": "reward_model"})
    with pytest.raises(InvalidSpec, match="takes a policy; this is a reward model") as caught:
        check_plan(
            asked,
            expand(asked, model="tiny", dataset="ds_1"),
            {MODEL: "reward_model", PAIRS: "pairs"},
        )
    assert caught.value.facts["loc"] == ("model",)


def test_a_method_needs_a_model_and_a_dataset() -> None:
    with pytest.raises(InvalidSpec) as caught:
        expand(spec({"type": "sft"}), model="tiny", dataset=None)
    assert caught.value.facts["field"] == "dataset"


def test_ppo_in_explicit_stages_keeps_the_configuration_that_it_is_given() -> None:
    node = {
        "name": "p",
        "kind": "ppo",
        "clip": 0.3,
        "inputs": {"policy": "tiny", "reference": "tiny", "reward_model": "rm", "prompts": "ds_2"},
    }
    found = plan(stages=[node], seed=4)["p"]
    assert (found.config, found.seed) == (PPOStage(clip=0.3), 4)
