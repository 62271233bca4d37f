"""Completions, rewards and tokens: one request to the sampler each."""

import secrets

from app.inference.asking import Asking
from app.inference.chunks import ChatChunks, CompletionChunks
from app.inference.schemas import (
    MAX_SEQUENCES,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    DetokenizedText,
    Reward,
    Rewards,
    RewardsBody,
    SamplingFields,
    TokenizeBody,
    Tokens,
    TrainerQueries,
    TrainerRewards,
)
from app.inference.streaming import Stream
from app.inference.views import ChatCompletion, Completion, chat_completion, completion
from core.errors import Unprocessable
from core.sampling import (
    DetokenizeReply,
    DetokenizeRequest,
    ModelFiles,
    Prompt,
    SampleReply,
    SampleRequest,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    TokenizeReply,
    TokenizeRequest,
)


async def create_completion(asking: Asking, owner: str, body: CompletionBody) -> Completion | Stream:
    """Responses to texts or token ids."""
    if len(body.prompts) * body.n > MAX_SEQUENCES:
        raise Unprocessable(
            f"Prompts times n may be {MAX_SEQUENCES} at most", loc=("body", "prompt"), maximum=MAX_SEQUENCES
        )
    files = await asking.locate(owner, body.model)
    prompts: list[Prompt] = list(body.prompts)
    request = _sample_request(body, files, prompts, body.max_tokens, body.logprobs, echo=body.echo)
    if body.stream:
        chunks = CompletionChunks(body.model, include_usage=body.stream_options.include_usage)
        return await Stream.begin(asking.stream(request), chunks)
    reply: SampleReply = await asking.ask(request)
    return completion(body.model, reply)


async def create_chat_completion(asking: Asking, owner: str, body: ChatBody) -> ChatCompletion | Stream:
    """What the assistant says next in a conversation."""
    files = await asking.locate(owner, body.model)
    messages = [message.to_message() for message in body.messages]
    max_tokens = body.max_completion_tokens or body.max_tokens
    request = _sample_request(
        body, files, [messages], max_tokens, body.top_logprobs if body.logprobs else None, echo=False
    )
    if body.stream:
        usage = body.stream_options.include_usage
        chunks = ChatChunks(body.model, body.n, body.top_logprobs, include_usage=usage)
        return await Stream.begin(asking.stream(request), chunks)
    reply: SampleReply = await asking.ask(request)
    return chat_completion(body.model, reply, body.top_logprobs)


async def score_rewards(asking: Asking, owner: str, body: RewardsBody) -> Rewards:
    """A reward model's scores."""
    files = await asking.locate(owner, body.model)
    items = [
        ScoreItem(prompt=item.prompt, response=item.response, terminated=item.terminated)
        for item in body.items
    ]
    reply: ScoreReply = await asking.ask(ScoreRequest(model=files, items=items))
    rewards = [Reward(index=index, reward=reward) for index, reward in enumerate(reply.rewards)]
    return Rewards(model=body.model, data=rewards)


async def trainer_rewards(asking: Asking, owner: str, model: str, body: TrainerQueries) -> TrainerRewards:
    """A reward model's scores of prompts and responses that come as one text each."""
    files = await asking.locate(owner, model)
    prompts = body.prompts or [""] * len(body.query)
    # A prompt that a query does not begin with tells nothing of where the response begins.
    begun = [
        prompt if query.startswith(prompt) else "" for prompt, query in zip(prompts, body.query, strict=True)
    ]
    items = [
        ScoreItem(prompt=prompt, response=query[len(prompt) :], ends_in_its_end=True)
        for prompt, query in zip(begun, body.query, strict=True)
    ]
    reply: ScoreReply = await asking.ask(ScoreRequest(model=files, items=items))
    return TrainerRewards(rewards=reply.rewards, scores=reply.rewards)


async def tokenize(asking: Asking, owner: str, body: TokenizeBody) -> Tokens:
    """Token ids of a text or a conversation."""
    files = await asking.locate(owner, body.model)
    reply: TokenizeReply = await asking.ask(
        TokenizeRequest(model=files, text=body.text, add_special_tokens=body.add_special_tokens)
    )
    return Tokens(
        model=body.model, token_ids=reply.token_ids, tokens=reply.tokens, count=len(reply.token_ids)
    )


async def detokenize(asking: Asking, owner: str, body: DetokenizeBody) -> DetokenizedText:
    """The text of token ids."""
    files = await asking.locate(owner, body.model)
    reply: DetokenizeReply = await asking.ask(DetokenizeRequest(model=files, token_ids=body.token_ids))
    return DetokenizedText(model=body.model, text=reply.text)


def _sample_request(
    body: SamplingFields,
    files: ModelFiles,
    prompts: list[Prompt],
    max_tokens: int | None,
    logprobs: int | None,
    *,
    echo: bool,
) -> SampleRequest:
    return SampleRequest(
        model=files,
        prompts=prompts,
        n=body.n,
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        # Drawn here: a sampler that takes over from one that died has to give the same text.
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        stop=body.stop,
        logprobs=logprobs,
        echo=echo,
        stream=body.stream,
    )
