"""The prompts that a PPO training draws responses to."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mpo.records import Prompt, read_prompts
from mpo.reporter import Reporter
from mpo.tokenization import encode_prompt


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's token ids, and the id of the first row that it stands in."""

    id: str
    token_ids: list[int]


def read_distinct_prompts(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int | None, reporter: Reporter
) -> list[EncodedPrompt]:
    """The distinct prompts of a file of prompts or of pairs, in the order of their first rows.

    A prompt without a single token has nothing that a response could follow: it is left out, with a warning.
    Raises NoChatTemplate, ChatTemplateRefused.
    """
    first_rows: dict[str, Prompt] = {}
    for row in read_prompts(path):
        first_rows.setdefault(json.dumps(row.prompt), row)
    encoded = [
        EncodedPrompt(row.id, encode_prompt(row.prompt, tokenizer, max_prompt_tokens))
        for row in first_rows.values()
    ]
    empty = [prompt.id for prompt in encoded if not prompt.token_ids]
    if empty:
        reporter.warn(
            f"{len(empty)} prompts have no token and are left out; the first one's row has the id {empty[0]}."
        )
    return [prompt for prompt in encoded if prompt.token_ids]
