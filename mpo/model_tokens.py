"""How each model writes text as token ids: ids mean something only to models that share a vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from mpo.errors import UnusableModel
from mpo.lengths import named_context, text_settings
from mpo.records import Content
from mpo.reporter import StageInput, StageTask
from mpo.tokenization import Terminators, encode_prompt, load_tokenizer, terminators


@dataclass(frozen=True)
class ModelTokens:
    """A model's tokenizer, what ends its responses, and the rows of its embedding.

    context_tokens: the longest sequence that it was made for; None where its configuration does not say.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    ends: Terminators
    embedding_rows: int
    context_tokens: int | None

    @classmethod
    def of(cls, model: StageInput) -> "ModelTokens":
        """Reads a model folder's tokenizer and configuration; raises UnusableModel."""
        tokenizer = load_tokenizer(model.path)
        if not (model.path / "config.json").is_file():
            raise UnusableModel(f"{model.name}: there is no config.json.", model=model.name)
        settings = text_settings(model.path / "config.json")
        rows = settings.get("vocab_size") or len(tokenizer)
        ends = terminators(model.path, tokenizer)
        return cls(model.name, tokenizer, ends, rows, named_context(settings))

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Id of each token, added ones too."""
        return self.tokenizer.get_vocab()

    def same_ids(self, other: "ModelTokens") -> bool:
        """Whether each id is the same token to both, and both have a row for it."""
        return self.embedding_rows == other.embedding_rows and self.vocabulary == other.vocabulary

    def encode(self, prompts: Sequence[Content], max_prompt_tokens: int | None) -> list[list[int]]:
        """Ids of prompts as this model sees them; raises NoChatTemplate, ChatTemplateRefused."""
        return [encode_prompt(prompt, self.tokenizer, max_prompt_tokens) for prompt in prompts]

    def refuse_longer(self, tokens: int) -> None:
        """Raises UnusableModel where sequences of so many tokens do not fit the model's context."""
        if self.context_tokens is not None and tokens > self.context_tokens:
            raise UnusableModel(
                f"{self.name} has a context of {self.context_tokens} tokens, and the longest prompt, "
                f"response and terminator come to {tokens}: lower max_prompt_tokens, max_response_tokens or "
                "max_new_tokens of the evaluation.",
                model=self.name,
                context_tokens=self.context_tokens,
                tokens=tokens,
            )


def refuse_other_ids(task: StageTask, role: str, others: Sequence[str]) -> None:
    """Raises UnusableModel where a model of another role reads token ids otherwise than the first of `role`.

    others: roles whose models are given the first one's ids; those without an input are passed over, and
    `role` itself may be among them.
    """
    first = task.one(role)
    ours = ModelTokens.of(first)
    for other in others:
        for model in task.inputs.get(other, ()):
            if model.path != first.path and not ModelTokens.of(model).same_ids(ours):
                raise UnusableModel(
                    f"{model.name}, the {other}, has another vocabulary than {first.name}, the {role}: the "
                    "token ids of one mean nothing to the other. Give models that share a tokenizer.",
                    model=model.name,
                    role=other,
                )
