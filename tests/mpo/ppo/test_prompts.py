from pathlib import Path

from mpo.ppo.prompts import read_distinct_prompts
from mpo.records import PreferencePair, write_rows
from tests.mpo.tiny import RecordingReporter, train_tokenizer


def write(path: Path, *prompts: str) -> Path:
    write_rows(path, [PreferencePair(f"row {i}", prompt, "a", "b") for i, prompt in enumerate(prompts)])
    return path


def test_a_prompt_counts_once_and_has_the_id_of_its_first_row(tmp_path: Path) -> None:
    path, tokenizer = write(tmp_path / "p.parquet", "red", "blue", "red"), train_tokenizer(["red blue"])
    prompts = read_distinct_prompts(path, tokenizer, 2, reporter := RecordingReporter())
    assert [prompt.id for prompt in prompts] == ["row 0", "row 1"]
    assert [len(prompt.token_ids) for prompt in prompts] == [2, 2]
    assert reporter.warnings == []


def test_a_prompt_without_a_token_is_left_out_and_named(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["red"])
    tokenizer.backend_tokenizer.post_processor = None  # so that no <s> stands before a text
    path = write(tmp_path / "p.parquet", "red", "", "blue")
    prompts = read_distinct_prompts(path, tokenizer, None, reporter := RecordingReporter())
    assert [prompt.id for prompt in prompts] == ["row 0", "row 2"]
    (warning,) = reporter.warnings
    assert warning.startswith("1 prompts have no token")
    assert "row 1" in warning
