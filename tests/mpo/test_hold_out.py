import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.config import HoldOutStage
from mpo.errors import TooFewPrompts
from mpo.hold_out import assign_folds, group_key, held_out_groups, hold_out_groups
from mpo.records import PreferencePair, read_pairs, write_rows
from mpo.reporter import StageInput, StageTask
from tests.mpo.recording import RecordingReporter


def pair(number: int, prompt: str) -> PreferencePair:
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


def test_at_least_one_group_is_held_out_and_never_all() -> None:
    assert len(held_out_groups({b"a": 1, b"b": 1}, 0.01)) == 1
    assert len(held_out_groups({b"a": 1, b"b": 1}, 0.99)) == 1


@pytest.mark.parametrize("sizes", [{b"a": 10}, {b"a": 50, b"b": 50}, {}])
def test_nothing_takeable_is_refused(sizes: dict[bytes, int]) -> None:
    with pytest.raises(TooFewPrompts) as caught:
        held_out_groups(sizes, 0.1)
    assert caught.value.facts["groups"] == len(sizes)


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


def test_folds_deal_the_largest_group_first() -> None:
    assert assign_folds([7, 7, 7, 5, 5, 9, 9, 1], 2) == [1, 1, 1, 2, 2, 2, 2, 1]
