"""Conversations as the model's chat template writes them. There is never a guessed template."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mpo.errors import ChatTemplateRefused, NoChatTemplate
from mpo.records import Message, shared_prefix

MARK = "mark"


@dataclass(frozen=True)
class TurnEnd:
    """What the chat template sets after an assistant's content: as text, and its first special token's id."""

    text: str
    terminator_id: int | None


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    """Messages as text; raises NoChatTemplate, ChatTemplateRefused.

    With a generation prompt the text ends where the assistant speaks: a last turn that is already the
    assistant's is left open.
    """
    if tokenizer.chat_template is None:
        raise NoChatTemplate
    open_turn = add_generation_prompt and messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": message["role"], "content": message["content"]} for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt and not open_turn,
            continue_final_message=open_turn,
        )
    except (TemplateError, ValueError) as error:
        raise ChatTemplateRefused(f"The model's chat template refuses a conversation: {error}") from error
    assert isinstance(text, str)
    return text


@lru_cache(maxsize=16)
def turn_end(tokenizer: PreTrainedTokenizerBase) -> TurnEnd:
    """What ends an assistant's turn by the chat template; nothing where there is no template."""
    if tokenizer.chat_template is None:
        return TurnEnd("", None)
    question, answer = Message(role="user", content="a"), Message(role="assistant", content=MARK)
    text = render([question, answer], tokenizer).rpartition(MARK)[2]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return TurnEnd(text, next((id_ for id_ in ids if id_ in special), None))


def render_response(
    prompt: Sequence[Message], response: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> str:
    """The text that a response adds to its rendered prompt, without what ends its last turn.

    Raises NoChatTemplate, ChatTemplateRefused.
    """
    opening = render(prompt, tokenizer, add_generation_prompt=True)
    whole = render([*prompt, *response], tokenizer)
    # A template may open the assistant's turn with more than it writes back (an empty block of reasoning):
    # then the response is what follows the part that both share.
    shared = shared_prefix(opening, whole)
    if len(shared) < len(shared_prefix(opening, render(prompt, tokenizer))):
        # The template rewrites earlier turns once later ones follow: only the content itself is sure.
        return response[-1]["content"]
    text = whole[len(shared) :]
    end = turn_end(tokenizer).text
    return text.removesuffix(end) if text.endswith(end) else text.rstrip().removesuffix(end.rstrip())
