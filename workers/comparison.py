"""A comparison's run: a client of the sampler, in a child of the cpu slot. Torch-free."""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from redis import Redis, RedisError

from core.comparing import ComparisonRequest, JudgeScorer
from core.sampling import (
    Message,
    ModelFiles,
    NoSampler,
    Prompt,
    Request,
    SampledText,
    SamplerBusy,
    SampleReply,
    SampleRequest,
    SamplerRefused,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
)
from core.settings import settings
from core.storage import storage
from mpo.errors import StageInterrupted
from mpo.records import Content, read_prompts
from mpo.records import Message as Turn
from workers.judge import Judge, Outcome, over_http, pairings_of
from workers.sampler_client import SamplerClient
from workers.scratch import own_folder
from workers.win_rates import Scored, judged_win_rates, win_rates

TOO_LONG = "context_length_exceeded"
SEED_BITS = 64
ROWS_AT_ONCE = 16
"""Responses asked for in one request: few, so that somebody who chats meanwhile waits little."""
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.2, 5.0

Rows = list[dict[str, object]]
Inputs = dict[str, list[dict[str, Any]]]

logger = logging.getLogger(__name__)


def compare(
    config: ComparisonRequest,
    inputs: Inputs,
    report_rows: Callable[[Rows], None],
    progress: Callable[[int, int, dict[str, float]], None],
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Sample each model on each prompt, score the responses, report rows; returns {"win_rates"}.

    Raises SamplerRefused, NoSampler where none came back in time, StageInterrupted.
    """
    prompts = _prompts(config, inputs)
    with Redis.from_url(settings().redis_url.get_secret_value()) as redis:
        asking = Asking(SamplerClient(redis), should_stop)
        comparing = _Comparing(config, inputs, asking)
        judging = _judging(config)
        outcomes: list[list[Outcome]] = []
        scores: list[list[Scored]] = []
        tokens: list[list[float]] = []
        remaining = iter(enumerate(prompts))
        per_request = max(1, ROWS_AT_ONCE // config.sampling.n)
        while batch := list(islice(remaining, per_request)):
            rows, batch_scores, batch_tokens = comparing.rows(batch)
            report_rows(rows)
            scores += batch_scores
            tokens += batch_tokens
            if judging is not None:
                outcomes += _judged(judging, rows, len(config.models), should_stop)
            progress(len(scores), len(prompts), {})
    if config.scorer is None:
        return {"win_rates": []}
    if judging is not None:
        return {"win_rates": judged_win_rates(config.models, outcomes, tokens)}
    return {"win_rates": win_rates(config.models, scores, tokens, set(config.trained_by_scorer))}


def _judging(config: ComparisonRequest) -> Judge | None:
    if not isinstance(config.scorer, JudgeScorer):
        return None
    now, host = settings(), urlsplit(config.scorer.base_url).hostname or ""
    key = now.judge_keys.get(host)
    secret = None if key is None else key.get_secret_value()
    return Judge(config.scorer, over_http(config.scorer, now.judge_hosts, secret))


def _judged(judge: Judge, rows: Rows, models: int, should_stop: Callable[[], bool]) -> list[list[Outcome]]:
    """By prompt, what the judge says of each pair of models. Raises StageInterrupted."""
    found = []
    for row in rows:
        if should_stop():
            raise StageInterrupted()
        responses: Any = row["responses"]
        answers = [str(response["text"]) for response in responses]
        assert len(answers) == models
        found.append(judge.outcomes(pairings_of(_shown(row["prompt"]), answers)))
    return found


def _shown(prompt: object) -> str:
    """A prompt as a judge reads it."""
    if isinstance(prompt, str):
        return prompt
    turns: Any = prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


class Asking:
    """Asks the sampler, and asks again while it is away or busy: for `sampler_patience_seconds` at most."""

    def __init__(self, client: SamplerClient, should_stop: Callable[[], bool]) -> None:
        self._client, self._should_stop = client, should_stop

    def ask(self, request: Request) -> Any:
        """The reply. Raises SamplerRefused, NoSampler, SamplerBusy, StageInterrupted."""
        give_up, backoff = time.monotonic() + settings().sampler_patience_seconds, FIRST_BACKOFF_SECONDS
        while True:
            if self._should_stop():
                raise StageInterrupted()
            try:
                return self._client.ask(request)
            except (NoSampler, SamplerBusy, SamplerRefused, RedisError) as error:
                if isinstance(error, SamplerRefused) and not error.retryable:
                    raise
                if time.monotonic() + backoff > give_up:
                    raise NoSampler() if isinstance(error, RedisError) else error from error
                logger.info("the sampler does not answer: %s", type(error).__name__)
            time.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)


class _Comparing:
    """The models, the scorer, and how each is asked."""

    def __init__(self, config: ComparisonRequest, inputs: Inputs, asking: Asking) -> None:
        self._config, self._asking = config, asking
        self._models = [_files(source) for source in inputs["models"]]
        self._scorer = next((_files(source) for source in inputs.get("reward_model", [])), None)

    def rows(
        self, batch: Sequence[tuple[int, Content]]
    ) -> tuple[Rows, list[list[Scored]], list[list[float]]]:
        """The rows of some prompts; their scores by prompt, then model, then response; mean tokens by prompt,
        then model."""
        prompts = [_wire(prompt) for _, prompt in batch]
        samples = [self._sample(files, prompts, batch[0][0]) for files in self._models]
        scores = self._score(prompts, samples)
        rows: Rows = []
        for place, (index, prompt) in enumerate(batch):
            responses = [
                _response(files.name, number, sample, score)
                for files, texts, scored in zip(self._models, samples, scores, strict=True)
                for number, (sample, score) in enumerate(zip(texts[place], scored[place], strict=True))
            ]
            rows.append({"index": index, "prompt": prompt, "responses": responses})
        places = range(len(batch))
        tokens = [[_mean_tokens(of_model[place]) for of_model in samples] for place in places]
        return rows, [[of_model[place] for of_model in scores] for place in places], tokens

    def _sample(self, files: ModelFiles, prompts: list[Prompt], first: int) -> list[list[SampledText]]:
        sampling = self._config.sampling
        request = SampleRequest(
            model=files,
            prompts=prompts,
            n=sampling.n,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            # A seed is told apart by the place in the request; over all requests, by the first row's number.
            seed=None if sampling.seed is None else sampling.seed + (first << SEED_BITS),
        )
        reply: SampleReply = self._asking.ask(request)
        return [result.samples for result in reply.results]

    def _score(self, prompts: list[Prompt], samples: list[list[list[SampledText]]]) -> list[list[Scored]]:
        """Scores by model, then prompt, then response.

        Equal responses to a prompt are scored once: in batches of other lengths their rewards would differ by
        rounding, and one of them would win.
        """
        if self._scorer is None:
            return [[[None] * len(texts) for texts in of_model] for of_model in samples]
        items: dict[tuple[int, str, bool], ScoreItem] = {}
        for of_model in samples:
            for place, texts in enumerate(of_model):
                for sample in texts:
                    prompt = _text_or_turns(prompts[place])
                    key = _identity(place, sample)
                    items[key] = ScoreItem(prompt=prompt, response=sample.text, terminated=key[2])
        rewards = dict(zip(items, self._rewards(self._scorer, list(items.values())), strict=True))
        return [
            [[rewards[_identity(place, sample)] for sample in texts] for place, texts in enumerate(of_model)]
            for of_model in samples
        ]

    def _rewards(self, scorer: ModelFiles, items: list[ScoreItem]) -> Scored:
        """Rewards of all items; None for one that is too long for the scorer."""
        try:
            reply: ScoreReply = self._asking.ask(ScoreRequest(model=scorer, items=items))
        except SamplerRefused as refused:
            if refused.code != TOO_LONG:
                raise
            return [None] if len(items) == 1 else [self._rewards(scorer, [item])[0] for item in items]
        return list(reply.rewards)


def _mean_tokens(texts: Sequence[SampledText]) -> float:
    return sum(len(text.token_ids) for text in texts) / len(texts)


def _identity(place: int, sample: SampledText) -> tuple[int, str, bool]:
    return place, sample.text, sample.finish_reason == "stop"


def _response(model: str, number: int, sample: SampledText, score: float | None) -> dict[str, object]:
    return {
        "model": model,
        "sample": number,
        "text": sample.text,
        "finish_reason": sample.finish_reason,
        "tokens": len(sample.token_ids),
        "score": score,
    }


def _prompts(config: ComparisonRequest, inputs: Inputs) -> list[Content]:
    if config.prompts is not None:
        return [
            p if isinstance(p, str) else [Turn(role=turn.role, content=turn.content) for turn in p]
            for p in config.prompts
        ]
    source = inputs["prompts"][0]
    with own_folder(settings().scratch_or_temporary, "mpo-prompts-") as folder:
        rows = storage().fetch(source["location"], folder / "rows.parquet")
        return [row.prompt for row in read_prompts(rows)[: config.limit]]


def _files(source: dict[str, Any]) -> ModelFiles:
    return ModelFiles.of(source, source.get("base"))


def _text_or_turns(prompt: Prompt) -> str | list[Message]:
    return prompt if isinstance(prompt, str) else [turn for turn in prompt if isinstance(turn, Message)]


def _wire(prompt: Content) -> Prompt:
    return prompt if isinstance(prompt, str) else [Message(**turn) for turn in prompt]
