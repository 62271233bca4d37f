"""Samples responses from a policy: an engine that knows only token ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedModel

from mpo.continuous_batch import ContinuousBatch, DrawnToken, Draws, choose
from mpo.seeds import row_seed

__all__ = ["OnToken", "SampledResponse", "SamplingConfig", "choose", "never_stop", "row_seed", "sample"]

BATCH_ROWS = 64
"""Sequences that are decoded together."""
JOIN_ROWS = 8
"""So many free places are filled at once: prompts that are read together cost less than one by one."""

OnToken = Callable[[int, int, float], None]
"""Called with (index of the prompt, token id, its logprob) at each step."""


@dataclass(frozen=True)
class SamplingConfig:
    """How to draw. max_new_tokens: the longest response, stop token included; temperature 0: the likeliest.

    stop_ids: a response ends with the first of these that is drawn. pad_id: fills the batch, never read.
    top_logprobs: how many of the likeliest tokens to return at each position.
    """

    max_new_tokens: int
    stop_ids: frozenset[int]
    pad_id: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_logprobs: int = 0


@dataclass
class SampledResponse:
    """What one prompt was answered with: the last id is the stop token, or the one at which it was cut.

    logprobs: of each token under the model itself (temperature 1, whole vocabulary), in nats. top_logprobs:
    at each token, the likeliest (token id, logprob), the likeliest first.
    """

    token_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)

    def terminated_ids(self, terminator_id: int) -> list[int]:
        """The ids with the terminator that training appends in place of whichever stop token was drawn."""
        stopped = self.finish_reason == "stop" and bool(self.token_ids)
        return [*self.token_ids[:-1], terminator_id] if stopped else list(self.token_ids)


def never_stop(_index: int) -> bool:
    """The `should_stop` of a caller that lets every response run to its end."""
    return False


def sample(
    policy: PreTrainedModel,
    prompts: Sequence[list[int]],
    config: SamplingConfig,
    seeds: Sequence[int],
    should_stop: Callable[[int], bool] = never_stop,
    on_token: OnToken | None = None,
) -> list[SampledResponse]:
    """A response to each prompt, drawn from softmax(logits / temperature) over the whole vocabulary.

    prompts: token ids, each not empty. seeds: one a prompt; what a sequence draws depends on its seed and its
    own logits alone, whatever else is in the batch. As sequences end, others take their places: none waits
    for the longest. should_stop(index) is asked after each token: True ends that sequence there, as a stop.
    Raises UnusableModel where the logits are not finite.
    """
    sampling = _Sampling(policy, config, [SampledResponse() for _ in prompts], should_stop, on_token)
    waiting = list(enumerate(zip(prompts, seeds, strict=True)))[::-1] if config.max_new_tokens else []
    while waiting or sampling.batch:
        free = BATCH_ROWS - len(sampling.batch)
        if waiting and (free >= JOIN_ROWS or free >= len(waiting)):
            joining = [waiting.pop() for _ in range(min(free, len(waiting)))]
            sampling.take(
                sampling.batch.add([(i, prompt, sampling.draws(seed)) for i, (prompt, seed) in joining])
            )
        if sampling.batch:
            sampling.take(sampling.batch.step())
    return sampling.responses


class _Sampling:
    """Responses under way."""

    def __init__(
        self,
        policy: PreTrainedModel,
        config: SamplingConfig,
        responses: list[SampledResponse],
        should_stop: Callable[[int], bool],
        on_token: OnToken | None,
    ) -> None:
        self.batch = ContinuousBatch(policy, config.pad_id)
        self.responses = responses
        self._config, self._should_stop, self._on_token = config, should_stop, on_token

    def draws(self, seed: int) -> Draws:
        return Draws(seed, self._config.temperature, self._config.top_p, self._config.top_logprobs)

    def take(self, tokens: dict[int, DrawnToken]) -> None:
        """Append what was drawn; those that have ended leave the batch."""
        self.batch.remove([index for index, token in tokens.items() if self._ends(index, token)])

    def _ends(self, index: int, token: DrawnToken) -> bool:
        response = self.responses[index]
        response.token_ids.append(token.token_id)
        response.logprobs.append(token.logprob)
        if self._config.top_logprobs:
            response.top_logprobs.append(token.top)
        if self._on_token is not None:
            self._on_token(index, token.token_id, token.logprob)
        if token.token_id in self._config.stop_ids or self._should_stop(index):
            response.finish_reason = "stop"
            return True
        return len(response.token_ids) >= self._config.max_new_tokens
