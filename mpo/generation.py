"""Samples responses from a policy: an engine that knows only token ids."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mpo.adapted_models import AdaptedModel
from mpo.errors import UnusableModel
from mpo.seeds import row_seed

__all__ = ["OnToken", "SampledResponse", "SamplingConfig", "choose", "never_stop", "row_seed", "sample"]

BATCH_ROWS = 64
"""Sequences that are decoded together."""

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
    own logits alone, whatever else is in the batch. should_stop(index) is asked after each token: True ends
    that sequence there, as a stop. Raises UnusableModel where the logits are not finite.
    """
    responses = [SampledResponse() for _ in prompts]
    indices = iter(range(len(prompts)))
    while rows := list(islice(indices, BATCH_ROWS)):
        decoding = _Decoding(policy, [prompts[i] for i in rows], config, [seeds[i] for i in rows])
        for _ in range(config.max_new_tokens):
            tokens = decoding.step()
            ended = []
            for place, row in enumerate(decoding.rows):
                index, token = rows[row], tokens.ids[place]
                response = responses[index]
                _append(response, tokens, place)
                if on_token is not None:
                    on_token(index, token, tokens.logprobs[place])
                if token in config.stop_ids or should_stop(index):
                    response.finish_reason = "stop"
                    ended.append(place)
            if not decoding.drop(ended):
                break
    return responses


@dataclass(frozen=True)
class _Tokens:
    """One step's choice of every live row, on the host."""

    ids: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]


def _append(response: SampledResponse, tokens: _Tokens, place: int) -> None:
    response.token_ids.append(tokens.ids[place])
    response.logprobs.append(tokens.logprobs[place])
    if tokens.top:
        response.top_logprobs.append(tokens.top[place])


class _Decoding:
    """The live rows of one batch with their key-value cache: prompts padded on the left."""

    def __init__(
        self,
        policy: PreTrainedModel,
        prompts: Sequence[list[int]],
        config: SamplingConfig,
        seeds: Sequence[int],
    ) -> None:
        width = max(len(p) for p in prompts)
        full = width + config.max_new_tokens
        self.policy, self.config = policy, config
        self.rows = list(range(len(prompts)))
        self.draw, self.width = 0, width
        self.input_ids = torch.full((len(prompts), width), config.pad_id, device=policy.device)
        self.mask = torch.ones((len(prompts), full), dtype=torch.long, device=policy.device)
        for row, prompt in enumerate(prompts):
            self.input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            self.mask[row, : width - len(prompt)] = 0
        self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=policy.config)
        self.cache_argument = _cache_argument(policy)
        # Drawn ahead and on the host, so that neither the batch nor the device can change them.
        self.uniforms = torch.from_numpy(
            np.stack([np.random.default_rng(seed).random(config.max_new_tokens) for seed in seeds])
        ).to(policy.device)

    @torch.no_grad()
    def step(self) -> _Tokens:
        """Runs what is new of each row through the policy and chooses each row's next token."""
        start = self.width - self.input_ids.shape[1]
        logits = self.policy(
            input_ids=self.input_ids,
            attention_mask=self.mask[:, : self.width],
            position_ids=self.positions[:, start : self.width],
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: self.cache},
        ).logits[:, -1]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        if not bool(torch.isfinite(logprobs.amax(dim=-1)).all()):
            raise UnusableModel("The model's logits are not finite.")
        ids = choose(logprobs, self.uniforms[:, self.draw], self.config.temperature, self.config.top_p)
        self.input_ids = ids[:, None]
        self.draw, self.width = self.draw + 1, self.width + 1
        chosen = logprobs.gather(1, self.input_ids)[:, 0]
        return _Tokens(ids.tolist(), chosen.tolist(), _likeliest(logprobs, self.config.top_logprobs))

    def drop(self, ended: Sequence[int]) -> bool:
        """Takes the rows at these places out of the batch; whether any is left."""
        if ended:
            gone = set(ended)
            kept = [place for place in range(len(self.rows)) if place not in gone]
            self.rows = [self.rows[place] for place in kept]
            if kept:
                keep = torch.tensor(kept, device=self.mask.device)
                self.cache.batch_select_indices(keep)
                self.input_ids, self.mask = self.input_ids[keep], self.mask[keep]
                self.positions, self.uniforms = self.positions[keep], self.uniforms[keep]
        return bool(self.rows)


def _cache_argument(policy: PreTrainedModel) -> str:
    """transformers 5.24 renamed it, architecture by architecture."""
    forward = policy.base.model.forward if isinstance(policy, AdaptedModel) else policy.forward
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def choose(logprobs: Tensor, uniforms: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """The token at which the cumulated probability passes each row's uniform draw: (rows,) ids.

    logprobs: (rows, vocabulary), fp32. uniforms: (rows,), float64 in [0, 1). Temperature 0 takes the
    likeliest; top_p below 1 draws from the smallest set of likeliest tokens that holds that probability.
    """
    if temperature == 0:
        return logprobs.argmax(dim=-1)
    # float64: the sum of 50,000 float32 probabilities is off by more than the rarest of them.
    probabilities = torch.softmax(logprobs.double() / temperature, dim=-1)
    if top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        ranked = ranked.masked_fill(ranked.cumsum(dim=-1) - ranked >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ranked)
    cumulated = probabilities.cumsum(dim=-1)
    passed = torch.searchsorted(cumulated, uniforms[:, None] * cumulated[:, -1:], right=True)
    return passed[:, 0].clamp(max=logprobs.shape[1] - 1)


def _likeliest(logprobs: Tensor, count: int) -> list[list[tuple[int, float]]]:
    if count == 0:
        return []
    values, ids = logprobs.topk(min(count, logprobs.shape[1]), dim=-1)
    return [list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
