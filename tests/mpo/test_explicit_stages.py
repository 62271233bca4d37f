"""Explicit stages that do not fit together are refused, with the place in the spec."""

from collections.abc import Callable
from typing import Any

import pytest

from mpo.errors import InvalidSpec
from mpo.job_spec import JobSpec
from mpo.plan import Source, check_plan, expand

Nodes = list[dict[str, Any]]
Change = Callable[[Nodes], object]
THINGS: dict[Source, Any] = {
    Source.model("tiny"): "policy",
    Source.model("job_1:rm"): "reward_model",
    Source.dataset("ds_pairs"): "pairs",
    Source.dataset("ds_texts"): "texts",
    Source.dataset("ds_prompts"): "prompts",
}


def nodes() -> Nodes:
    return [
        {"name": "rows", "kind": "hold_out", "inputs": {"data": "ds_pairs"}},
        {"name": "first", "kind": "sft", "inputs": {"policy": "tiny", "data": "rows"}},
        {"name": "rm", "kind": "reward_model", "inputs": {"backbone": "tiny", "data": "rows.train"}},
        {
            "name": "score",
            "kind": "score",
            "scheme": "in_sample",
            "inputs": {"reward_models": "rm", "data": "rows"},
        },
        {"name": "parts", "kind": "split", "inputs": {"scores": "score", "data": "rows"}},
        {
            "name": "last",
            "kind": "ppo",
            "inputs": {
                "policy": "first",
                "reference": "first",
                "reward_model": "rm",
                "prompts": "parts.difficult",
            },
        },
    ]


def planned(given: Nodes) -> None:
    spec = JobSpec.model_validate({"stages": given})
    check_plan(spec, expand(spec, model=None, dataset=None), THINGS)


def reads(place: int, **inputs: Any) -> Change:
    return lambda given: given[place]["inputs"].update(inputs)


def lacks(place: int, role: str) -> Change:
    return lambda given: given[place]["inputs"].pop(role)


def has(place: int, **values: Any) -> Change:
    return lambda given: given[place].update(values)


def cross_fit(given: Nodes, folds: int, data: str = "rows") -> dict[str, Any]:
    """A score by folds, which are added to the stages. data: what the folds are trained on."""
    names = [f"fold_{fold}" for fold in range(1, folds + 1)]
    given += [
        {
            "name": name,
            "kind": "reward_model",
            "inputs": {"backbone": "tiny", "data": data},
            # What asks for more folds than there can be is refused where it says so.
            "fold": min(place, 20),
            "folds": min(folds, 20),
        }
        for place, name in enumerate(names, start=1)
    ]
    return {"name": "score", "kind": "score", "inputs": {"reward_models": names, "data": "rows"}}


def adapt(given: Nodes, place: int, lora: dict[str, Any] | None = None) -> None:
    given[place].setdefault("lora", lora or {})
    given[place]["inputs"]["base"] = "tiny"


def evaluation(models: list[str]) -> dict[str, Any]:
    inputs = {"models": models, "judge": "rm", "data": "rows.eval"}
    return {"name": "look", "kind": "evaluate", "inputs": inputs}


REFUSED: dict[str, tuple[Change, tuple[str | int, ...], str]] = {
    "two of a name": (has(2, name="first"), ("stages", 2, "name"), "earlier stage"),
    "no such role": (reads(1, teacher="tiny"), ("stages", 1, "inputs", "teacher"), "policy, data, base"),
    "a role left out": (
        lacks(5, "prompts"),
        ("stages", 5, "inputs", "prompts"),
        "preference pairs or prompts",
    ),
    "no such output": (reads(1, data="parts.hard"), ("stages", 1, "inputs", "data"), "parts.easy"),
    "a split without its output": (
        reads(1, data="parts"),
        ("stages", 1, "inputs", "data"),
        "parts.difficult",
    ),
    "an evaluation read": (
        lambda given: given.append(
            {"name": "x", "kind": "sft", "inputs": {"policy": "rm.report", "data": "rows"}}
        ),
        ("stages", 6, "inputs", "policy"),
        "rm.model",
    ),
    "a list for one": (reads(1, policy=["tiny"]), ("stages", 1, "inputs", "policy"), "not a list"),
    "a reward model as policy": (reads(5, policy="rm"), ("stages", 5, "inputs", "policy"), "a policy"),
    "an earlier reward model as policy": (
        reads(1, policy="job_1:rm"),
        ("stages", 1, "inputs", "policy"),
        "this is a reward model",
    ),
    "a policy as reward model": (
        reads(5, reward_model="first"),
        ("stages", 5, "inputs", "reward_model"),
        "a policy",
    ),
    "a model as data": (reads(1, data="rm"), ("stages", 1, "inputs", "data"), "preference pairs or texts"),
    "rows as a model": (reads(1, policy="rows"), ("stages", 1, "inputs", "policy"), "a policy"),
    "texts as pairs": (reads(2, data="ds_texts"), ("stages", 2, "inputs", "data"), "this is texts"),
    "texts through a hold-out": (reads(0, data="ds_texts"), ("stages", 2, "inputs", "data"), "this is texts"),
    "a policy that scores": (
        reads(3, reward_models=["first"]),
        ("stages", 3, "inputs", "reward_models", 0),
        "a reward model",
    ),
    "gaps as pairs": (reads(1, data="parts.gaps"), ("stages", 1, "inputs", "data"), "no stage reads"),
    "evaluation rows of another kind": (
        reads(0, eval="ds_texts"),
        ("stages", 0, "inputs", "eval"),
        "preference pairs, as data is",
    ),
    "a cycle": (reads(2, backbone="last"), ("stages", 2, "inputs"), "rm -> score -> parts -> last -> rm"),
    "itself": (reads(1, policy="first"), ("stages", 1, "inputs"), "first -> first"),
    "one model for several folds": (
        has(3, scheme="cross_fit"),
        ("stages", 3, "inputs", "reward_models"),
        "a reward model a fold",
    ),
    "two models in sample": (
        reads(3, reward_models=["rm", "job_1:rm"]),
        ("stages", 3, "inputs", "reward_models"),
        "one reward model",
    ),
    "a scorer that has seen the fold": (
        has(3, scheme="held_out"),
        ("stages", 3, "inputs", "reward_models", 0),
        "fold 1 and folds 2",
    ),
    "more folds than a score takes": (
        lambda given: given.__setitem__(3, cross_fit(given, 21)),
        ("stages", 3, "inputs", "reward_models"),
        "at most 20",
    ),
    "other pairs than were scored": (
        reads(4, data="ds_pairs"),
        ("stages", 4, "inputs", "data"),
        "not the pairs that score scores",
    ),
    "folds of other pairs": (
        lambda given: given.__setitem__(3, cross_fit(given, 2, data="ds_pairs")),
        ("stages", 3, "inputs", "reward_models", 0),
        "other pairs than are scored",
    ),
    "a reward model that is asked what to do when weak": (
        has(2, on_weak="fail"),
        ("stages", 2, "on_weak"),
        "on_weak of the score",
    ),
    "an adapter that goes on in another shape": (
        lambda given: [has(1, lora={"rank": 4})(given), adapt(given, 1), adapt(given, 5, lora={"rank": 8})],
        ("stages", 5, "lora"),
        "lora of first",
    ),
    "an adapter of another shape under a reward model": (
        lambda given: [adapt(given, 1, lora={"rank": 4}), reads(2, backbone="first")(given), adapt(given, 2)],
        ("stages", 2, "lora"),
        "lora of first",
    ),
    "an evaluation on nothing": (
        lambda given: [has(0, fraction=0)(given), given.append(evaluation(["first", "tiny"]))],
        ("stages", 6, "inputs", "data"),
        "rows holds nothing out",
    ),
    "a model compared with itself": (
        lambda given: given.append(evaluation(["first", "tiny", "first.model"])),
        ("stages", 6, "inputs", "models", 2),
        "with itself",
    ),
    "a curriculum without gaps": (
        lambda given: given.append(
            {
                "name": "x",
                "kind": "dpo",
                "curriculum": [2.0, 1.0],
                "inputs": {"policy": "first", "reference": "first", "data": "rows"},
            }
        ),
        ("stages", 6, "curriculum"),
        "gaps",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_place(case: str) -> None:
    change, place, said = REFUSED[case]
    given = nodes()
    change(given)
    with pytest.raises(InvalidSpec) as caught:
        planned(given)
    assert caught.value.facts["loc"] == place
    assert said in caught.value.detail


@pytest.mark.parametrize(
    "change",
    [
        reads(5, prompts="ds_prompts"),
        reads(5, prompts="rows"),
        reads(5, reward_model="job_1:rm", sft="tiny"),
        reads(1, data="ds_texts"),
        reads(0, eval="ds_pairs"),
        lambda given: given.reverse(),
        lambda given: [adapt(given, 1), adapt(given, 5)],
        # Over the merged model of the stage before it an adapter is a new one.
        lambda given: [adapt(given, 1), has(5, lora={"rank": 8})(given)],
        lambda given: [has(1, lora={"rank": 4})(given), has(5, lora={"rank": 8})(given)],
        lambda given: given.__setitem__(3, cross_fit(given, 2)),
        lambda given: given.append(evaluation(["first", "tiny"])),
        lambda given: [
            given[0].update(fraction=0),
            given[0]["inputs"].update(eval="ds_pairs"),
            given.append(evaluation(["tiny"])),
        ],
    ],
)
def test_what_fits_is_taken(change: Change) -> None:
    given = nodes()
    change(given)
    planned(given)


def test_folds_that_are_given_must_be_as_many_as_the_models() -> None:
    given = nodes()
    inputs = {"backbone": "tiny", "data": "rows"}
    given += [
        {"name": f"fold_{k}", "kind": "reward_model", "fold": k, "folds": 2, "inputs": inputs} for k in (1, 2)
    ]
    given[3] = {
        "name": "score",
        "kind": "score",
        "folds": 3,
        "inputs": {"reward_models": ["fold_1", "fold_2"], "data": "rows"},
    }
    with pytest.raises(InvalidSpec) as caught:
        planned(given)
    assert caught.value.facts["field"] == "stages.3.folds"
    del given[3]["folds"]
    planned(given)
    given[3]["inputs"]["reward_models"].reverse()
    with pytest.raises(InvalidSpec) as caught:
        planned(given)
    assert caught.value.facts["field"] == "stages.3.inputs.reward_models.0"


def test_a_name_that_nobody_knows_is_refused_with_those_that_are() -> None:
    spec = JobSpec.model_validate({"stages": nodes()})
    with pytest.raises(InvalidSpec, match="rows, first, rm, score, parts, last") as caught:
        expand(spec, model=None, dataset=None, leaf={"ds_pairs": Source.dataset("ds_pairs")}.get)
    assert caught.value.facts["field"] == "stages.1.inputs.policy"
