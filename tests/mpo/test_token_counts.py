"""Tokens of sampled rows, counted without torch, against the ids that stages train on."""

from pathlib import Path

import pytest

from mpo import token_counts
from mpo.errors import NoChatTemplate, UnusableModel
from mpo.records import Content, PreferencePair, write_rows
from mpo.token_counts import WHOLLY_READ, count_tokens, sample_rows
from mpo.tokenization import encode_pairs, load_tokenizer
from tests.mpo.tiny import word_pairs, write_policy

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"


def counted(folder: Path, pairs: list[PreferencePair], model: Path) -> dict[str, list[int]]:
    write_rows(folder / "rows.parquet", pairs)
    lengths = count_tokens(sample_rows(folder / "rows.parquet"), model)
    return {name: column.tolist() for name, column in lengths.items()}


def encoded(pairs: list[PreferencePair], model: Path) -> dict[str, list[int]]:
    """What training reads, less the terminator of each response."""
    rows, _ = encode_pairs(pairs, load_tokenizer(model), max_prompt_tokens=None, max_response_tokens=None)
    return {
        "prompt": [len(row.prompt_ids) for row in rows],
        "chosen": [len(row.chosen_ids) - 1 for row in rows],
        "rejected": [len(row.rejected_ids) - 1 for row in rows],
    }


def test_texts_have_as_many_tokens_as_training_reads(tmp_path: Path) -> None:
    pairs, model = word_pairs(40), write_policy(tmp_path / "model")
    assert counted(tmp_path, pairs, model) == encoded(pairs, model)


def test_messages_are_rendered_by_the_model_s_template(tmp_path: Path) -> None:
    asked: Content = [{"role": "user", "content": "Where is my parcel?"}]
    pairs = [
        PreferencePair(
            str(i),
            asked,
            [{"role": "assistant", "content": "It is " + "very " * i + "late."}],
            [{"role": "assistant", "content": "Who knows?"}],
        )
        for i in range(3)
    ]
    assert counted(tmp_path, pairs, TINY) == encoded(pairs, TINY)
    with pytest.raises(NoChatTemplate):
        counted(tmp_path, pairs, write_policy(tmp_path / "model"))


def test_a_sample_is_spread_over_the_file_and_knows_its_size(tmp_path: Path) -> None:
    rows = [PreferencePair(str(i), f"prompt {i // 2}", "a", "b") for i in range(1000)]
    write_rows(tmp_path / "rows.parquet", rows)
    sampled = sample_rows(tmp_path / "rows.parquet", 10)
    assert (sampled.rows, sampled.complete, sampled.distinct_prompts) == (1000, False, 0.5)
    assert sampled.contents["prompt"] == [f"prompt {i}" for i in range(0, 500, 50)]
    assert sample_rows(tmp_path / "rows.parquet", 1000).complete


def test_a_sample_of_long_rows_is_thinned_to_what_a_server_can_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [PreferencePair(str(i), f"{i}", "a" * 1000, "b") for i in range(100)]
    write_rows(tmp_path / "rows.parquet", rows)
    monkeypatch.setattr(token_counts, "SAMPLED_BYTES", 16_000)
    sampled = sample_rows(tmp_path / "rows.parquet", 50)
    assert [int(str(prompt)) for prompt in sampled.contents["prompt"]] == list(range(0, 100, 8))
    assert (sampled.rows, sampled.complete, sampled.distinct_prompts) == (100, False, 1.0)
    monkeypatch.setattr(token_counts, "SAMPLED_BYTES", 1)
    assert sample_rows(tmp_path / "rows.parquet", 50).contents["prompt"] == ["0"]


def test_of_a_large_file_only_some_row_groups_are_read(tmp_path: Path) -> None:
    count = WHOLLY_READ + 2048
    write_rows(tmp_path / "rows.parquet", (PreferencePair(str(i), f"{i}", "a", "b") for i in range(count)))
    sampled = sample_rows(tmp_path / "rows.parquet", 100)
    numbers = [int(str(prompt)) for prompt in sampled.contents["prompt"]]
    assert sampled.rows == count
    assert len(numbers) == 100
    assert numbers == sorted(numbers)
    assert numbers[-1] > count * 0.8


def test_a_folder_without_a_tokenizer_is_named_as_the_reason(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", word_pairs(2))
    with pytest.raises(UnusableModel, match=r"tokenizer\.json"):
        count_tokens(sample_rows(tmp_path / "rows.parquet"), tmp_path)
