from typing import Any

import pytest

from mpo.dataset_rows import CanonicalRow, canonical_row
from mpo.errors import BadRow


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASK, GOOD, BAD = turn("user", "Why?"), turn("assistant", "Because."), turn("assistant", "No idea.")
PLAIN = {"prompt": "p", "chosen": "c", "rejected": "r"}


def contents(row: dict[str, Any]) -> tuple[Any, ...]:
    return canonical_row(row, "preference", 1).contents


def test_strings_stay_verbatim() -> None:
    row = {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": "  yes \r\n", "rejected": " no\t"}
    assert contents(row) == ("\n\nHuman: hi\n\nAssistant:", "  yes \r\n", " no\t")


def test_hh_transcripts_are_cut_after_the_last_common_assistant_turn_opens() -> None:
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    row = {"chosen": dialogue + " Because.", "rejected": dialogue + " Before."}
    assert contents(row) == (dialogue, " Because.", " Before.")


def test_hh_transcripts_may_differ_before_the_last_turn() -> None:
    start = "\n\nHuman: Hi\n\nAssistant:"
    row = {"chosen": start + " A\n\nHuman: x\n\nAssistant: y", "rejected": start + " B"}
    assert contents(row) == (start, " A\n\nHuman: x\n\nAssistant: y", " B")


def test_messages_stay_messages() -> None:
    assert contents({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}) == ([ASK], [GOOD], [BAD])


def test_responses_may_repeat_the_conversation_that_they_answer() -> None:
    row = {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
    assert contents(row) == ([ASK], [GOOD], [BAD])


def test_prompt_of_conversations_may_be_implicit() -> None:
    opening = [turn("system", "Be brief."), ASK]
    row = {"chosen": [*opening, GOOD], "rejected": [*opening, BAD]}
    assert contents(row) == (opening, [GOOD], [BAD])
    same = {"chosen": [*opening, GOOD], "rejected": [*opening, GOOD]}
    assert contents(same) == (opening, [GOOD], [GOOD])


def test_openai_s_shape_is_accepted() -> None:
    row = {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
    assert contents(row) == ([ASK], [GOOD], [BAD])


@pytest.mark.parametrize("kind", ["preference", "prompts", "text"])
def test_a_supervised_conversation_is_refused_by_its_name(kind: Any) -> None:
    with pytest.raises(BadRow) as refused:
        canonical_row({"messages": [ASK, GOOD], "id": "a"}, kind, 3)
    assert "messages" in refused.value.detail
    assert '{"text": …}' in refused.value.detail
    assert refused.value.line == 3
    # Beside a row that is whole it is a column like any other that is not known.
    assert contents(PLAIN | {"messages": [ASK]}) == ("p", "c", "r")


def test_optional_columns_are_kept() -> None:
    row = PLAIN | {"id": 7, "annotator": "ann", "margin": 1, "weight": 0.5, "source": None, "other": [1]}
    assert canonical_row(row, "preference", 1) == CanonicalRow(
        ("p", "c", "r"), id="7", annotator="ann", margin=1.0, weight=0.5, source=None
    )


def test_prompts_and_texts_have_one_column() -> None:
    assert canonical_row({"prompt": "p", "id": "a"}, "prompts", 1) == CanonicalRow(("p",), id="a")
    assert canonical_row({"prompt": [ASK]}, "prompts", 1).contents == ([ASK],)
    assert canonical_row({"text": " t "}, "text", 1).contents == (" t ",)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "p", "chosen": "c"}, "rejected"),
        ({"prompt": "p", "chosen": None, "rejected": "r"}, "chosen"),
        ({"prompt": "p", "chosen": 3, "rejected": "r"}, "chosen"),
        ({"prompt": {"a": 1}, "chosen": "c", "rejected": "r"}, "prompt"),
        ({"prompt": [ASK], "chosen": "c", "rejected": "r"}, "prompt"),
        ({"prompt": "p", "chosen": [GOOD], "rejected": [BAD]}, "prompt"),
        ({"chosen": "no transcript", "rejected": "none either"}, "prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "prompt"),
        (PLAIN | {"prompt": ""}, "prompt"),
        (PLAIN | {"chosen": ""}, "chosen"),
        (PLAIN | {"rejected": " \n"}, "rejected"),
        ({"prompt": [], "chosen": [GOOD], "rejected": [BAD]}, "prompt"),
        ({"prompt": [ASK, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "prompt"),
        ({"prompt": [ASK], "chosen": [ASK], "rejected": [BAD]}, "chosen"),
        ({"prompt": [ASK], "chosen": [turn("assistant", "")], "rejected": [BAD]}, "chosen"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [turn("wizard", "x")]}, "rejected"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": ["x"]}, "rejected"),
        ({"input": "x", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "input"),
        (PLAIN | {"id": ""}, "id"),
        (PLAIN | {"id": True}, "id"),
        (PLAIN | {"margin": "1"}, "margin"),
        (PLAIN | {"margin": float("inf")}, "margin"),
        (PLAIN | {"weight": -1}, "weight"),
        (PLAIN | {"weight": 10**400}, "weight"),
        (PLAIN | {"annotator": []}, "annotator"),
    ],
)
def test_refusal_names_the_column_and_never_echoes_it(row: dict[str, Any], column: str) -> None:
    with pytest.raises(BadRow) as caught:
        canonical_row(row, "preference", 12)
    assert f'"{column}"' in caught.value.message
    assert caught.value.line == 12


def test_missing_column_says_what_would_be_accepted() -> None:
    with pytest.raises(BadRow, match="prompt, chosen and rejected as strings or as lists of messages"):
        canonical_row({"prompt": "p", "response": "c"}, "preference", 1)
    with pytest.raises(BadRow, match=r'accepted is \{"text": …\}'):
        canonical_row({"content": "p"}, "text", 1)
