import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.config import HoldOutStage
from mpo.errors import TooFewPrompts
from mpo.hold_out import assign_folds, group_key, held_out_groups, hold_out_groups
from mpo.records import (
    TEXT_SCHEMA,
    Content,
    Message,
    PreferencePair,
    read_pairs,
    read_texts,
    write_rows,
)
from mpo.reporter import StageInput, StageTask
from tests.mpo.recording import RecordingReporter


def pair(number: int, prompt: Content) -> PreferencePair:
    return PreferencePair(str(number), prompt, f" good {number}", f" bad {number}")


def hh(*turns: str) -> str:
    return (
        "".join(f"\n\n{'Human' if n % 2 == 0 else 'Assistant'}: {t}" for n, t in enumerate(turns))
        + "\n\nAssistant:"
    )


def hold_out(
    tmp_path: Path,
    pairs: list[PreferencePair],
    fraction: float = 0.1,
    eval_pairs: list[PreferencePair] | None = None,
) -> tuple[list[PreferencePair], list[PreferencePair], dict[str, int], RecordingReporter]:
    write_rows(tmp_path / "pairs.parquet", pairs)
    inputs = {"data": (StageInput("pairs", tmp_path / "pairs.parquet"),)}
    if eval_pairs is not None:
        write_rows(tmp_path / "others.parquet", eval_pairs)
        inputs["eval"] = (StageInput("others", tmp_path / "others.parquet"),)
    output, reporter = tmp_path / "out", RecordingReporter()
    output.mkdir()
    hold_out_groups(StageTask(HoldOutStage(fraction=fraction), inputs, output, seed=0), reporter)
    summary = json.loads((output / "summary.json").read_text())
    return read_pairs(output / "train.parquet"), read_pairs(output / "eval.parquet"), summary, reporter


def test_conversations_belong_together_by_their_first_human_turn_at_any_depth() -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there"}]
    later = [*messages, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
    keys = {group_key(p) for p in (messages, later, hh("Hello there"), hh("Hello there", "Hi", "And then?"))}
    assert len(keys) == 1
    assert group_key(hh("Hello you")) not in keys


def test_other_strings_belong_together_only_when_equal() -> None:
    assert group_key("Hello there") == group_key("Hello there")
    assert group_key("Hello there") != group_key("Hello there ")
    assert group_key("Hello there") != group_key(hh("Hello there"))


def test_groups_are_held_out_in_the_order_of_their_hash(tmp_path: Path) -> None:
    prompts = [f"prompt {n}" for n in range(40)]
    _, held_out, summary, _ = hold_out(tmp_path, [pair(n, p) for n, p in enumerate(prompts)])
    first = sorted(prompts, key=lambda p: hashlib.sha256(p.encode()).digest())[:4]
    assert {p.prompt for p in held_out} == set(first)
    assert (summary["pairs"], summary["train"], summary["eval"], summary["groups"]) == (40, 36, 4, 40)


def test_conversations_are_held_out_in_the_order_of_their_first_turn_s_hash(tmp_path: Path) -> None:
    turns = [f"question {n}" for n in range(40)]
    pairs = [pair(n, hh(turn, f"answer {n}", "And?")) for n, turn in enumerate(turns)]
    _, held_out, _, _ = hold_out(tmp_path, pairs)
    first = sorted(turns, key=lambda turn: hashlib.sha256(turn.encode()).digest())[:4]
    assert {p.prompt for p in held_out} == {pairs[turns.index(turn)].prompt for turn in first}


def test_a_conversation_is_held_out_at_every_depth_or_at_none(tmp_path: Path) -> None:
    pairs = []
    for topic in (f"topic {n}" for n in range(12)):
        talk = [
            Message(role="user", content=topic),
            Message(role="assistant", content="no"),
            Message(role="user", content="why?"),
        ]
        good, bad = ([Message(role="assistant", content=content)] for content in ("so", "because"))
        pairs += [pair(len(pairs), hh(topic)), pair(len(pairs) + 1, hh(topic, "yes", "and?"))]
        pairs.append(PreferencePair(str(len(pairs)), talk, good, bad))
    train, held_out, summary, _ = hold_out(tmp_path, pairs)
    assert (summary["groups"], summary["eval_groups"]) == (12, 1)
    assert len({int(p.id) // 3 for p in held_out}) == 1
    assert (len(held_out), len(train)) == (3, 33)


def test_no_more_groups_are_taken_than_the_fraction_needs() -> None:
    sizes = {bytes([n]): 3 for n in range(20)}
    # A tenth of 60 pairs is 6: two groups in the order of their hashes.
    assert held_out_groups(sizes, 0.1) == {b"\x00", b"\x01"}
    assert held_out_groups(sizes, 0.11) == {b"\x00", b"\x01", b"\x02"}


@given(st.lists(st.integers(1, 30), min_size=2, max_size=40), st.floats(0.01, 0.5))
def test_held_out_pairs_stay_within_half_again_of_their_share(sizes: list[int], fraction: float) -> None:
    groups = {bytes([n]): size for n, size in enumerate(sizes)}
    target = max(1.0, fraction * sum(sizes))
    try:
        taken = held_out_groups(groups, fraction)
    except TooFewPrompts:
        assert all(size > 1.5 * target for size in sizes)
        return
    held = sum(groups[name] for name in taken)
    assert 1 <= len(taken) < len(groups)
    assert held <= 1.5 * target
    passed_over = [name for name in groups if name not in taken and name < max(taken)]
    assert all(
        sum(groups[n] for n in taken if n < name) + groups[name] > 1.5 * target for name in passed_over
    )


def test_no_group_is_in_both_parts_and_no_row_is_lost(tmp_path: Path) -> None:
    pairs = [pair(n, hh(f"topic {n % 17}", "yes", f"question {n}")) for n in range(100)]
    train, held_out, _, _ = hold_out(tmp_path, pairs)
    assert not {p.group for p in train} & {p.group for p in held_out}
    assert sorted(int(p.id) for p in train + held_out) == list(range(100))
    by_group = {p.group: p.prompt[:20] for p in train + held_out}
    assert len(set(by_group.values())) == 17
    assert [int(p.id) for p in train] == sorted(int(p.id) for p in train)


def test_group_that_would_overshoot_by_half_is_passed_over() -> None:
    names = [hashlib.sha256(bytes([n])).digest() for n in range(12)]
    big, *small = sorted(names)
    sizes = {big: 40, **dict.fromkeys(small, 6)}
    taken = held_out_groups(sizes, 0.1)
    assert big not in taken
    assert sum(sizes[name] for name in taken) == 12


def test_a_group_of_just_half_more_is_still_taken() -> None:
    others = {bytes([n]): 1 for n in range(1, 86)}
    # Target 10 of 100 pairs: 15 are just one and a half times that.
    assert held_out_groups({b"\x00": 15} | others, 0.1) == {b"\x00"}
    others[bytes([85])] = 0
    sixteen = held_out_groups({b"\x00": 16} | others, 0.1)
    assert sixteen == {bytes([n]) for n in range(1, 11)}


def test_at_least_one_group_is_held_out_and_never_all() -> None:
    assert len(held_out_groups({b"a": 1, b"b": 1}, 0.01)) == 1
    assert len(held_out_groups({b"a": 1, b"b": 1}, 0.99)) == 1


@pytest.mark.parametrize("sizes", [{b"a": 10}, {b"a": 50, b"b": 50}, {}])
def test_nothing_takeable_is_refused(sizes: dict[bytes, int]) -> None:
    with pytest.raises(TooFewPrompts) as caught:
        held_out_groups(sizes, 0.1)
    assert caught.value.facts["groups"] == len(sizes)
    assert caught.value.code == "too_few_prompts"


def test_one_conversation_alone_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(TooFewPrompts, match="form 1 group"):
        hold_out(tmp_path, [pair(n, hh("the same", *["yes", "go on"] * n)) for n in range(8)])


def test_fraction_zero_holds_nothing_out(tmp_path: Path) -> None:
    train, held_out, summary, _ = hold_out(tmp_path, [pair(0, "only one")], fraction=0)
    assert (len(train), held_out, summary["eval"]) == (1, [], 0)
    assert pq.read_schema(tmp_path / "out" / "eval.parquet").names[-1] == "group"


def test_evaluation_dataset_takes_the_held_out_share_s_place(tmp_path: Path) -> None:
    others = [pair(0, "elsewhere"), pair(1, "prompt 3")]
    train, held_out, summary, reporter = hold_out(
        tmp_path, [pair(n, f"prompt {n}") for n in range(20)], eval_pairs=others
    )
    assert len(train) == 20
    assert [p.prompt for p in held_out] == ["elsewhere", "prompt 3"]
    assert held_out[1].group == train[3].group
    assert summary["shared_groups"] == 1
    assert "1 prompt group" in reporter.warnings[0]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=200), st.integers(2, 6))
def test_folds_keep_groups_whole_and_balanced(groups: list[int], folds: int) -> None:
    sizes = Counter(groups)
    if len(sizes) < folds:
        with pytest.raises(TooFewPrompts):
            assign_folds(groups, folds)
        return
    assigned = assign_folds(groups, folds)
    fold_of: dict[int, int] = {}
    assert all(fold_of.setdefault(g, f) == f for g, f in zip(groups, assigned, strict=True))
    rows = Counter(assigned)
    assert set(rows) == set(range(1, folds + 1))
    # Dealing the largest to the smallest leaves no two folds further apart than the largest group.
    assert max(rows.values()) - min(rows.values()) <= max(sizes.values())
    assert assigned == assign_folds(groups, folds)


def test_fewer_groups_than_folds_is_the_same_error() -> None:
    with pytest.raises(TooFewPrompts) as caught:
        assign_folds([4, 4, 4, 8], 3)
    assert (caught.value.code, caught.value.facts) == ("too_few_prompts", {"groups": 2, "folds": 3})


def test_each_group_goes_to_the_fold_that_is_smallest_then() -> None:
    # Sizes 5, 4, 3, 3, 2: 5 -> 1, 4 -> 2, 3 -> 3, 3 -> 3 (3 < 4 < 5), 2 -> 2 (4 < 5 < 6).
    groups = [number for number, size in enumerate((5, 4, 3, 3, 2)) for _ in range(size)]
    fold_of = dict(zip(groups, assign_folds(groups, 3), strict=True))
    assert fold_of == {0: 1, 1: 2, 2: 3, 3: 3, 4: 2}


def test_folds_deal_the_largest_group_first() -> None:
    assert assign_folds([7, 7, 7, 5, 5, 9, 9, 1], 2) == [1, 1, 1, 2, 2, 2, 2, 1]


def test_equal_texts_stay_together(tmp_path: Path) -> None:
    texts = [f"text {n % 10}" for n in range(40)]
    columns = {"id": [str(n) for n in range(40)], "text": texts}
    pq.write_table(pa.table(columns, schema=TEXT_SCHEMA), tmp_path / "texts.parquet")
    output = tmp_path / "out"
    output.mkdir()
    inputs = {"data": (StageInput("texts", tmp_path / "texts.parquet"),)}
    hold_out_groups(StageTask(HoldOutStage(fraction=0.2), inputs, output, seed=0), RecordingReporter())
    train, held_out = (pq.read_table(output / f"{name}.parquet") for name in ("train", "eval"))
    assert train.column_names == ["id", "text", "group"]
    assert (train.num_rows, held_out.num_rows) == (32, 8)
    assert not set(train["text"].to_pylist()) & set(held_out["text"].to_pylist())
    assert [text.id for text in read_texts(output / "train.parquet")] == train["id"].to_pylist()


def test_held_out_rows_can_be_held_out_from_again(tmp_path: Path) -> None:
    hold_out(tmp_path, [pair(n, f"prompt {n}") for n in range(40)])
    (tmp_path / "again").mkdir()
    inputs = {"data": (StageInput("train", tmp_path / "out" / "train.parquet"),)}
    hold_out_groups(StageTask(HoldOutStage(), inputs, tmp_path / "again", seed=0), RecordingReporter())
    groups = [row.group for row in read_pairs(tmp_path / "again" / "train.parquet")]
    assert sorted(g for g in groups if g is not None) == sorted(set(groups))  # type: ignore[type-var]
