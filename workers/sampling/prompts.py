"""Requests' prompts as token ids, within the model's context."""

import secrets
from dataclasses import dataclass

from core.sampling import Message, SampleRequest, ScoreItem, ScoreRequest
from core.sampling import Prompt as AnyPrompt
from mpo.generation import row_seed
from mpo.records import Content
from mpo.records import Message as Turn
from mpo.tokenization import encode_prompt, encode_response
from workers.sampling.loading import LoadedTokenizer
from workers.sampling.refusals import Refused


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, its text for an echo, and the tokens that a response may have."""

    token_ids: list[int]
    text: str
    max_tokens: int


def contents(messages: list[Message]) -> list[Turn]:
    """Messages as the library has them."""
    return [Turn(role=message.role, content=message.content) for message in messages]


def encode_prompts(request: SampleRequest, loaded: LoadedTokenizer) -> list[EncodedPrompt]:
    """The prompts of a request. Raises Refused, NoChatTemplate, ChatTemplateRefused."""
    return [_encode_prompt(prompt, request, loaded) for prompt in request.prompts]


def row_seeds(request: SampleRequest) -> list[int]:
    """A seed for each response, prompt by prompt: by its place in the request alone."""
    seed = secrets.randbits(63) if request.seed is None else request.seed
    return [
        row_seed(seed, prompt, sample)
        for prompt in range(len(request.prompts))
        for sample in range(request.n)
    ]


def encode_items(request: ScoreRequest, loaded: LoadedTokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses to score. Raises Refused, NoChatTemplate, ChatTemplateRefused, UnusableModel."""
    encoded = [_encode_item(index, item, loaded) for index, item in enumerate(request.items)]
    return [prompt for prompt, _ in encoded], [response for _, response in encoded]


def _encode_prompt(prompt: AnyPrompt, request: SampleRequest, loaded: LoadedTokenizer) -> EncodedPrompt:
    if isinstance(prompt, str):
        token_ids, text = encode_prompt(prompt, loaded.tokenizer, None), prompt
    elif prompt and isinstance(prompt[0], Message):
        token_ids = encode_prompt(contents(prompt), loaded.tokenizer, None)  # type: ignore[arg-type]
        text = loaded.speller.text(token_ids)
    else:
        token_ids = check_ids(prompt, loaded, param="prompt")  # type: ignore[arg-type]
        text = loaded.speller.text(token_ids)
    token_ids = token_ids or [_beginning(loaded)]
    room = loaded.context_tokens - len(token_ids)
    if room < (0 if request.max_tokens == 0 else 1):
        raise too_long(len(token_ids), loaded, param="prompt")
    return EncodedPrompt(
        token_ids, text, room if request.max_tokens is None else min(request.max_tokens, room)
    )


def check_ids(token_ids: list[int], loaded: LoadedTokenizer, *, param: str) -> list[int]:
    """Ids that a client gave; raises Refused where the model has no such token."""
    if all(0 <= token_id < loaded.vocabulary for token_id in token_ids):
        return token_ids
    raise Refused(
        f"Token ids lie between 0 and {loaded.vocabulary - 1}", code="invalid_token_id", param=param
    )


def too_long(tokens: int, loaded: LoadedTokenizer, *, param: str, what: str = "The prompt") -> Refused:
    """The refusal that OpenAI's clients know."""
    return Refused(
        f"{what} has {tokens} tokens; this model's context holds {loaded.context_tokens}",
        code="context_length_exceeded",
        status=400,
        param=param,
    )


def _beginning(loaded: LoadedTokenizer) -> int:
    """Where an empty prompt begins: a model needs one token to go on from."""
    tokenizer = loaded.tokenizer
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise Refused("This model cannot go on from an empty prompt", code="empty_prompt", param="prompt")


def _encode_item(index: int, item: ScoreItem, loaded: LoadedTokenizer) -> tuple[list[int], list[int]]:
    prompt: Content = item.prompt if isinstance(item.prompt, str) else contents(item.prompt)
    response: Content = item.response if isinstance(item.response, str) else contents(item.response)
    if isinstance(prompt, str) and not isinstance(response, str):
        raise Refused(
            "A response of messages needs a prompt of messages",
            code="invalid_request",
            param=f"items.{index}.response",
        )
    if item.ends_in_its_end and isinstance(response, str):
        response = response.removesuffix(str(loaded.tokenizer.eos_token or ""))
    prompt_ids = encode_prompt(prompt, loaded.tokenizer, None)
    response_ids = encode_response(response, loaded.tokenizer, None, item.terminated, prompt=prompt)
    tokens = len(prompt_ids) + len(response_ids)
    if tokens == 0:
        raise Refused("There is nothing to score", code="invalid_request", param=f"items.{index}")
    if tokens > loaded.context_tokens:
        raise too_long(tokens, loaded, param=f"items.{index}", what="Prompt and response together")
    return prompt_ids, response_ids
