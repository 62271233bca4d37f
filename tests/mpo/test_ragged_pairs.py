import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from mpo.config import DPOStage
from mpo.dpo.loss import PairLogprobs
from mpo.dpo.objective import PairObjective
from mpo.ragged_pairs import (
    OtherTokens,
    RaggedIds,
    RaggedPairs,
    ids_of,
    lengths_of,
    read_encodings,
    take_pairs,
    token_counts,
    write_encodings,
)
from mpo.records import Message, PreferencePair
from mpo.reward_model.objective import PairRows
from mpo.sft.train import ResponseTokens
from mpo.tokenization import BATCH_PAIRS, EncodedPair, EncodingCounts, encode_pairs, stream_encodings
from tests.mpo.test_tokenization import CHATML, byte_tokenizer

LIMITS = {"max_prompt_tokens": 5, "max_response_tokens": 4}


def turn(role: str, content: str) -> list[Message]:
    return [Message(role=role, content=content)]


def mixed_pairs(count: int) -> list[PreferencePair]:
    """Strings and messages; some cut in their prompt, some in a response, and some responses empty."""
    pairs = []
    for row in range(count):
        texts = "p" * (row % 8), "c" * (row % 6), "r" * (row % 7)
        if row % 3 == 0:
            said = turn("user", texts[0]), turn("assistant", texts[1]), turn("assistant", texts[2])
            pairs.append(PreferencePair(f"chat {row}", *said))
        else:
            pairs.append(PreferencePair(f"text {row}", *texts))
    return pairs


def ragged(pairs: Sequence[PreferencePair], file: Path, key: str = "a key") -> RaggedPairs:
    encodings = stream_encodings(pairs, byte_tokenizer(chat_template=CHATML), **LIMITS)
    with pa.OSFile(str(file), "wb") as sink:
        write_encodings(sink, encodings, key)
    return read_encodings(pa.memory_map(str(file)), key)


def listed(pairs: Sequence[PreferencePair]) -> tuple[list[EncodedPair], EncodingCounts]:
    return encode_pairs(pairs, byte_tokenizer(chat_template=CHATML), **LIMITS)


def test_pairs_of_several_batches_are_those_that_lists_would_hold(tmp_path: Path) -> None:
    pairs = mixed_pairs(2 * BATCH_PAIRS + 7)
    found, (expected, counts) = ragged(pairs, tmp_path / "ids"), listed(pairs)
    assert list(found) == expected
    assert found.counts() == counts
    assert min(counts.prompts_cut, counts.chosen_cut, counts.rejected_cut) > 0
    assert (found[-1], found[BATCH_PAIRS]) == (expected[-1], expected[BATCH_PAIRS])
    assert list(found[BATCH_PAIRS - 2 : BATCH_PAIRS + 2]) == expected[BATCH_PAIRS - 2 : BATCH_PAIRS + 2]
    with pytest.raises(IndexError):
        found[len(expected)]


def test_ids_are_lists_of_python_s_own_integers(tmp_path: Path) -> None:
    pair = ragged(mixed_pairs(1), tmp_path / "ids")[0]
    assert [type(pair.prompt_ids), type(pair.prompt_ids[0])] == [list, int]
    assert pair.chosen_terminated is True


def test_a_part_has_the_pairs_and_the_counts_of_its_own_rows(tmp_path: Path) -> None:
    pairs = mixed_pairs(BATCH_PAIRS + 40)
    whole = ragged(pairs, tmp_path / "ids")
    rows = [row for row in range(len(pairs)) if row % 5 in {1, 4}]
    part, (expected, counts) = whole.take(rows), listed([pairs[row] for row in rows])
    assert list(part) == expected
    assert part.counts() == counts != whole.counts()
    part_of_it = part.take([70, 3])
    assert list(part_of_it) == [expected[70], expected[3]]
    assert part_of_it.ids == [expected[70].id, expected[3].id]


def test_no_pair_is_a_sequence_too(tmp_path: Path) -> None:
    found = ragged([], tmp_path / "ids")
    assert (len(found), found.ids, found.lengths.tokens) == (0, [], [])
    assert found.counts() == EncodingCounts()


def test_lists_and_arrays_tell_the_same_of_themselves(tmp_path: Path) -> None:
    pairs = mixed_pairs(30)
    found, (expected, _) = ragged(pairs, tmp_path / "ids"), listed(pairs)
    assert lengths_of(found).tokens == lengths_of(expected).tokens == [pair.tokens for pair in expected]
    assert lengths_of(found).longest == lengths_of(expected).longest == [pair.longest for pair in expected]
    assert ids_of(found) == ids_of(expected)
    assert list(take_pairs(found, [4, 2])) == take_pairs(expected, [4, 2])
    assert lengths_of([]).tokens == []


def test_objectives_learn_lengths_without_a_look_at_the_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = mixed_pairs(BATCH_PAIRS + 3)
    found, (expected, _) = ragged(pairs, tmp_path / "ids"), listed(pairs)
    found = found.take(range(9, len(pairs)))

    def read(*_: object) -> None:
        raise AssertionError("ids were read")

    monkeypatch.setattr(RaggedIds, "__getitem__", read)
    none = torch.zeros(len(found))
    longest = [pair.longest for pair in expected[9:]]
    assert PairRows(found, [], []).lengths == longest
    assert PairObjective(found, PairLogprobs(none, none), DPOStage(), 0).lengths == longest
    sft = ResponseTokens(found.ids, found.prompts, found.chosen, 0, 260)
    assert sft.lengths == [len(pair.prompt_ids) + len(pair.chosen_ids) for pair in expected[9:]]
    assert sft.weight(0) == len(expected[9].chosen_ids)
    with pytest.raises(AssertionError, match="ids were read"):
        found[0]


def test_token_counts_of_plain_rows_are_their_lengths() -> None:
    assert token_counts([[1, 2], [], [3]]) == [2, 0, 1]


def test_twenty_thousand_pairs_take_a_fraction_of_what_lists_do(tmp_path: Path) -> None:
    tokenizer, text = byte_tokenizer(), "the same hundred bytes " * 4
    pairs = [PreferencePair(str(row), text, text, text) for row in range(20_000)]
    limits = {"max_prompt_tokens": None, "max_response_tokens": None}
    (one,), _ = encode_pairs(pairs[:1], tokenizer, **limits)
    with pa.OSFile(str(tmp_path / "ids"), "wb") as sink:
        tracemalloc.start()
        write_encodings(sink, stream_encodings(pairs, tokenizer, **limits), "")
        _, written = tracemalloc.get_traced_memory()
    before = pa.total_allocated_bytes()
    tracemalloc.reset_peak()
    found = read_encodings(pa.memory_map(str(tmp_path / "ids")), "")
    lengths, last = found.lengths, found[-1]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pointers = 8 * one.tokens * len(pairs)
    assert last.tokens == lengths.tokens[-1] == one.tokens
    assert held + pa.total_allocated_bytes() - before < pointers / 10
    assert written < pointers / 4


def test_a_file_of_another_key_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    ragged(mixed_pairs(40), tmp_path / "ids", "one key")
    with pytest.raises(OtherTokens):
        read_encodings(pa.memory_map(str(tmp_path / "ids")), "another")
    whole = (tmp_path / "ids").read_bytes()
    for cut in (whole[:-20], whole[: len(whole) // 2], b"no Arrow at all"):
        with pytest.raises((OSError, pa.ArrowException)):
            read_encodings(pa.BufferReader(cut), "one key")
