"""Sampling from models, scoring with reward models, and their tokens."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.dependencies import ReadCaller, TrainerCaller
from app.inference import service
from app.inference.asking import AskingDep
from app.inference.schemas import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    DetokenizedText,
    Rewards,
    RewardsBody,
    TokenizeBody,
    Tokens,
    TrainerQueries,
    TrainerRewards,
)
from app.inference.streaming import Stream
from app.inference.views import ChatCompletion, Completion
from app.problems import responses

ModelNameQuery = Annotated[str, Query(min_length=1, max_length=200, description="A reward model.")]

router = APIRouter(tags=["inference"], responses=responses(400, 404, 429, 503))


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


@router.post("/v1/completions", response_model=Completion, responses=STREAMED)
async def create_completion(
    caller: ReadCaller, body: CompletionBody, asking: AskingDep
) -> Completion | Stream:
    """Continue one or more prompts, in the shape of OpenAI's completions.

    `model` is a base model's name or `job_…:stage`. With `echo`, `max_tokens: 0` only scores the prompt. The
    same request with the same seed gives the same text. With `stream`, the text comes as server-sent events,
    and ends with `[DONE]`. A prompt beyond the model's context is 400
    `context_length_exceeded`.
    """
    return await service.create_completion(asking, caller.owner, body)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED)
async def create_chat_completion(
    caller: ReadCaller, body: ChatBody, asking: AskingDep
) -> ChatCompletion | Stream:
    """Continue a conversation, in the shape of OpenAI's chat completions; the model needs a chat template."""
    return await service.create_chat_completion(asking, caller.owner, body)


@router.post("/v1/rewards")
async def score_rewards(caller: ReadCaller, body: RewardsBody, asking: AskingDep) -> Rewards:
    """Score responses with a reward model, as terminated unless an item says otherwise."""
    return await service.score_rewards(asking, caller.owner, body)


@router.post("/get_reward")
async def get_reward(
    caller: TrainerCaller, body: TrainerQueries, asking: AskingDep, model: ModelNameQuery
) -> TrainerRewards:
    """Score as OpenRLHF asks a remote reward model, at `http://key:mpo_sk_…@host/get_reward?model=NAME`.

    A query is prompt and response in one text, by the template of the trainer. Such a trainer sends no header
    of its own: so the key may stand in the address, and comes by HTTP's Basic scheme.
    """
    return await service.trainer_rewards(asking, caller.owner, model, body)


@router.post("/v1/tokenize")
async def tokenize(caller: ReadCaller, body: TokenizeBody, asking: AskingDep) -> Tokens:
    """Token ids of a text, or of a conversation by the model's chat template."""
    return await service.tokenize(asking, caller.owner, body)


@router.post("/v1/detokenize")
async def detokenize(caller: ReadCaller, body: DetokenizeBody, asking: AskingDep) -> DetokenizedText:
    """The text of token ids, special tokens left out."""
    return await service.detokenize(asking, caller.owner, body)
