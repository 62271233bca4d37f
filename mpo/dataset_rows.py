"""Uploaded rows of every accepted shape to canonical ones. Torch-free.

Texts stay verbatim, strings stay strings, messages stay messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from mpo.errors import BadRow
from mpo.records import Content, Message, shared_prefix

DatasetKind = Literal["preference", "prompts", "text"]
Row = Mapping[str, object]

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_ID_CHARACTERS = 1000
"""Of an id and of an annotator: both stand in answers and reports."""
ASSISTANT = "\n\nAssistant:"
CONVERSATION = "messages"
"""The column of OpenAI's supervised rows."""
PAIR_SHAPES = (
    "accepted are prompt, chosen and rejected as strings or as lists of messages; chosen and rejected "
    "without a prompt as HH-RLHF transcripts or as conversations that begin alike; or OpenAI's input, "
    "preferred_output and non_preferred_output"
)


@dataclass(slots=True)
class CanonicalRow:
    """The contents of a row in the order of its kind's columns, and what else it carries. id: as uploaded."""

    contents: tuple[Content, ...]
    id: str | None = None
    annotator: str | None = None
    margin: float | None = None
    weight: float | None = None
    source: str | None = None


def canonical_row(row: Row, kind: DatasetKind, line: int) -> CanonicalRow:
    """The canonical row of an uploaded object: of `preference`, (prompt, chosen, rejected); of `prompts`,
    (prompt,); of `text`, (text,). Raises BadRow, naming the column and what would be accepted."""
    try:
        _refuse_conversation(row)
        if kind == "preference":
            return _with_options(row, _pair_contents(row))
        name = "prompt" if kind == "prompts" else "text"
        if name not in row:
            raise _Refused(
                f'The column "{name}" is missing; accepted is {{"{name}": …}} (and an optional id).'
            )
        content = row[name]
        if kind == "prompts" and isinstance(content, list):
            return CanonicalRow((_prompt_messages(content),), id=_identity(row, "id"))
        if not isinstance(content, str):
            raise _Refused(f'The column "{name}" holds {_type(content)}; accepted is a string.')
        return CanonicalRow((_filled(name, content),), id=_identity(row, "id"))
    except _Refused as refused:
        raise BadRow(str(refused), line=line) from None


class _Refused(ValueError):
    """Why a row cannot be used, before its line is known."""


def _refuse_conversation(row: Row) -> None:
    """Else it would be told of a column that its writer never meant to fill."""
    if CONVERSATION in row and not row.keys() & {"prompt", "chosen", "rejected", "text", "preferred_output"}:
        raise _Refused(
            'Rows of "messages" alone, conversations for supervised training, are not accepted; accepted are '
            'rows of {"text": …} for it, or preferences, whose "chosen" responses it can train on.'
        )


def _with_options(row: Row, contents: tuple[Content, Content, Content]) -> CanonicalRow:
    canonical = CanonicalRow(contents)
    for name in ("id", "annotator", "source"):
        if name in row:
            setattr(canonical, name, _identity(row, name))
    if "margin" in row:
        canonical.margin = _number(row, "margin")
    if "weight" in row:
        canonical.weight = _number(row, "weight")
        if canonical.weight is not None and canonical.weight < 0:
            raise _Refused('The column "weight" is negative; accepted is a number from 0.')
    return canonical


def _pair_contents(row: Row) -> tuple[Content, Content, Content]:
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    if row.get("preferred_output") is not None or row.get("non_preferred_output") is not None:
        prompt, chosen, rejected = _openai_columns(row)
    for name, content in (("chosen", chosen), ("rejected", rejected)):
        if content is None:
            raise _Refused(f'The column "{name}" is missing; {PAIR_SHAPES}.')
        if not isinstance(content, str | list):
            raise _Refused(f'The column "{name}" holds {_type(content)}; {PAIR_SHAPES}.')
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            prompt = _transcript_prompt(chosen, rejected)
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if isinstance(prompt, str):
            return _filled("prompt", prompt), _filled("chosen", chosen), _filled("rejected", rejected)
    if isinstance(chosen, list) and isinstance(rejected, list) and isinstance(prompt, list | None):
        return _message_contents(prompt, chosen, rejected)
    raise _Refused(
        f'The column "prompt" holds {_type(prompt)}, "chosen" {_type(chosen)}, "rejected" {_type(rejected)}: '
        f"all must be strings, or all lists of messages."
    )


def _openai_columns(row: Row) -> tuple[object, object, object]:
    given = row.get("input")
    prompt = given.get("messages") if isinstance(given, dict) else None
    if not isinstance(prompt, list):
        raise _Refused('The column "input" must be {"messages": [{"role": …, "content": …}, …]}.')
    return prompt, row.get("preferred_output"), row.get("non_preferred_output")


def _transcript_prompt(chosen: str, rejected: str) -> str:
    """HH-RLHF: all up to and including the last common opening of an assistant's turn."""
    shared = shared_prefix(chosen, rejected)
    end = shared.rfind(ASSISTANT)
    if end < 0:
        raise _Refused(
            'The column "prompt" is missing, and "chosen" and "rejected" are not transcripts that begin '
            rf'alike up to a common "\n\nAssistant:"; {PAIR_SHAPES}.'
        )
    return shared[: end + len(ASSISTANT)]


def _message_contents(
    prompt: list[object] | None, chosen: list[object], rejected: list[object]
) -> tuple[Content, Content, Content]:
    sides = _messages("chosen", chosen), _messages("rejected", rejected)
    opening = _common_opening(*sides) if prompt is None else _prompt_messages(prompt)
    answers: list[list[Message]] = []
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        # A response may repeat the conversation that it answers.
        answer = side[len(opening) :] if side[: len(opening)] == opening else side
        if not answer or answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
            raise _Refused(
                f'The column "{name}" must begin (after the prompt) and end with a message of the assistant.'
            )
        _filled(name, answer[-1]["content"])
        answers.append(answer)
    return opening, answers[0], answers[1]


def _common_opening(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    if not shared:
        raise _Refused(
            'The column "prompt" is missing, and the conversations "chosen" and "rejected" do not begin with '
            f"the same message of a user; {PAIR_SHAPES}."
        )
    return chosen[:shared]


def _prompt_messages(content: list[object]) -> list[Message]:
    messages = _messages("prompt", content)
    if messages[-1]["role"] == "assistant":
        raise _Refused('The column "prompt" ends with a message of the assistant: it must end before one.')
    return messages


def _messages(name: str, content: list[object]) -> list[Message]:
    if not content:
        raise _Refused(f'The column "{name}" holds no message.')
    found: list[Message] = []
    for number, message in enumerate(content):
        role = message.get("role") if isinstance(message, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise _Refused(
                f'Message {number} of the column "{name}" is not {{"role": string, "content": string}}.'
            )
        if role not in ROLES:
            raise _Refused(
                f'Message {number} of "{name}" has an unknown role; accepted are {", ".join(ROLES)}.'
            )
        found.append(Message(role=role, content=text))
    return found


def _filled(name: str, text: str) -> str:
    if not text or text.isspace():
        raise _Refused(f'The column "{name}" is empty.')
    return text


def _identity(row: Row, name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _Refused(
            f'The column "{name}" holds {_type(value)}; accepted is a filled string, or an integer.'
        )
    text = str(value)
    if name != "source" and len(text) > MAX_ID_CHARACTERS:
        raise _Refused(f'The column "{name}" is longer than {MAX_ID_CHARACTERS} characters.')
    return text


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused(f'The column "{name}" holds {_type(value)}; accepted is a number.')
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        raise _Refused(f'The column "{name}" holds a number that is too large, or none.')
    # Of the two zeros one: JSON's integer -0 has no sign, its -0.0 has.
    return number + 0.0


def _type(value: object) -> str:
    """What JSON calls a value; values themselves are never echoed."""
    names: Mapping[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string" if value else "an empty string",
        list: "a list",
    }
    return names.get(type(value), "an object")
