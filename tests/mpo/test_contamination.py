from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mpo.contamination import PromptIndex, contamination_report, grams, normalised
from mpo.errors import StageInterrupted
from mpo.records import (
    PROMPT_SCHEMA,
    TEXT_SCHEMA,
    Content,
    PreferencePair,
    dump_content,
    parquet_writer,
    write_rows,
)

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
TWELVE = THIRTEEN.removesuffix(" thirteen")


def on() -> None:
    """Nothing stops it."""


def pairs_file(path: Path, *rows: tuple[Content, str, str]) -> Path:
    write_rows(path, [PreferencePair(str(i), *row) for i, row in enumerate(rows)])
    return path


def rows_file(path: Path, schema: pa.Schema, rows: list[dict[str, Any]]) -> Path:
    with parquet_writer(path, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return path


def test_texts_are_compared_by_their_words() -> None:
    assert normalised("  Red, RED\n\nbird's ") == ("red", "red", "bird", "s")
    turns: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Red?"},
        {"role": "assistant", "content": "No."},
    ]
    assert normalised(turns) == ("red", "no")


def test_thirteen_words_in_a_row_are_a_gram_and_twelve_are_none() -> None:
    assert list(grams(normalised(TWELVE))) == []
    assert len(list(grams(normalised(THIRTEEN)))) == 1
    assert len(list(grams(normalised(f"{THIRTEEN} fourteen")))) == 2


def test_a_prompt_is_found_however_it_is_spelt(tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "train", ("What is RED?", "a", "b"), ("Other", "what is red", "b"))
    found = PromptIndex(["what  is red", "other one", "OTHER!"]).overlap(file, on)
    # A response that equals a prompt is no prompt.
    assert (found.equal, found.shared) == ({0, 2}, set())


@pytest.mark.parametrize("place", ["prompt", "chosen", "rejected"])
def test_thirteen_words_are_found_in_prompts_and_responses(tmp_path: Path, place: str) -> None:
    row = {"prompt": "p", "chosen": "c", "rejected": "r"} | {place: f"Before. {THIRTEEN.upper()}! after"}
    file = pairs_file(tmp_path / "train", (row["prompt"], row["chosen"], row["rejected"]))
    prompts: list[Content] = [f"say: {THIRTEEN} now", f"say: {TWELVE} now", "short"]
    found = PromptIndex(prompts).overlap(file, on)
    assert (found.equal, found.shared) == (set(), {0})


def test_what_spans_two_columns_or_two_rows_is_no_overlap(tmp_path: Path) -> None:
    first, second = THIRTEEN.split(" seven ")
    file = pairs_file(tmp_path / "train", (f"{first} seven", second, "r"), (second, "c", "r"))
    assert PromptIndex([THIRTEEN]).overlap(file, on).shared == set()


def test_files_of_prompts_and_of_texts_are_read_too(tmp_path: Path) -> None:
    turns: Any = [{"role": "user", "content": THIRTEEN}]
    prompts = [{"id": "0", "prompt": dump_content(turns), "form": "messages"}]
    of_prompts = rows_file(tmp_path / "prompts", PROMPT_SCHEMA, prompts)
    of_texts = rows_file(tmp_path / "texts", TEXT_SCHEMA, [{"id": "0", "text": f"{THIRTEEN} and on"}])
    index = PromptIndex(["other", THIRTEEN])
    assert index.overlap(of_prompts, on).equal == index.overlap(of_prompts, on).shared == {1}
    found = index.overlap(of_texts, on)
    assert (found.equal, found.shared) == (set(), {1})


def test_prompts_without_a_word_are_not_all_the_same(tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "train", ("???", "c", "r"))
    assert PromptIndex(["!!!"]).overlap(file, on).equal == set()


def test_the_report_counts_by_model_and_lists_the_first(tmp_path: Path) -> None:
    prompts: list[Content] = [f"prompt {n}" for n in range(14)] + [THIRTEEN]
    half = pairs_file(tmp_path / "half", *((f"Prompt {n}", "c", "r") for n in range(0, 14, 2)))
    whole = pairs_file(tmp_path / "whole", *((f"prompt {n}", "c", THIRTEEN) for n in range(14)))
    known = [
        ("base", None),
        ("half", [("a", half)]),
        ("both", [("a", half), ("b", whole)]),
        ("nothing", []),
    ]
    report, seen = contamination_report(prompts, known, on)
    assert (report["prompts"], report["shorter_than_13_words"]) == (15, 14)
    none = {"prompts": 0, "first": []}
    assert report["models"] == [
        {"model": "base", "data": None, "equal": None, "shared_13_grams": None},
        {
            "model": "half",
            "data": ["a"],
            "equal": {"prompts": 7, "first": [0, 2, 4, 6, 8, 10, 12]},
            "shared_13_grams": none,
        },
        {
            "model": "both",
            "data": ["a", "b"],
            "equal": {"prompts": 14, "first": list(range(10))},
            "shared_13_grams": {"prompts": 1, "first": [14]},
        },
        {"model": "nothing", "data": [], "equal": none, "shared_13_grams": none},
    ]
    assert seen == {"half": 7, "both": 15}


def test_reading_long_files_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise StageInterrupted(phases=0)

    with pytest.raises(StageInterrupted):
        PromptIndex(["p"]).overlap(pairs_file(tmp_path / "train", ("p", "c", "r")), stop)
