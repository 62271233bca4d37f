"""Sequences that are decoded together while others join and leave: none waits for the longest."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mpo.adapter_mixture import AdapterMixture
from mpo.cache_arguments import cache_argument
from mpo.decoding import decoder_of
from mpo.errors import UnusableModel
from mpo.prefix_cache import PrefixCache, joined, seeded
from mpo.rolling_cache import Layers, RollingCache, layers_of

PROMPT_TOKENS_AT_ONCE = 8192
"""Tokens, padding with them, that one forward over prompts takes: bounds its memory."""


@dataclass(frozen=True)
class Draws:
    """How one sequence draws its tokens: what it gets depends on its seed and its own logits alone.

    temperature 0: the likeliest. top_logprobs: how many of the likeliest tokens to return at each place.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_logprobs: int = 0


@dataclass(frozen=True)
class Voice:
    """Whose tokens a sequence draws: an adapter of the batch's mixture, or None for the policy as it is.

    prefixes: beginnings of prompts that need not be read again; good for these weights alone.
    """

    adapter: str | None = None
    prefixes: PrefixCache | None = None


PLAIN = Voice()


@dataclass(frozen=True)
class DrawnToken:
    """A token, its logprob under the model itself (temperature 1, whole vocabulary), in nats.

    top: the likeliest (token id, logprob) there, the likeliest first.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class _Row:
    """A live sequence: its name, how it draws, whose it is, and where its draws are."""

    def __init__(self, name: int, draws: Draws, adapter: str | None) -> None:
        self.name, self.draws, self.adapter = name, draws, adapter
        # On the host, so that neither the batch nor the device can change them.
        self._uniforms = np.random.default_rng(draws.seed)

    def uniform(self) -> float:
        return float(self._uniforms.random())

    @property
    def kind(self) -> tuple[float, float]:
        return self.draws.temperature, self.draws.top_p


class ContinuousBatch:
    """Live sequences of one policy, or of one base and its adapters. Callers name them by numbers of their
    own, each different."""

    def __init__(self, policy: PreTrainedModel, pad_id: int, mixture: AdapterMixture | None = None) -> None:
        """mixture: of this policy; where it is given, sequences may be of its adapters."""
        self._policy, self._pad_id, self._mixture = policy, pad_id, mixture
        self._rows: list[_Row] = []
        self._last: list[int] = []
        self._cache = RollingCache()
        self._cache_argument, self._decode = cache_argument(policy), decoder_of(policy)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> list[int]:
        """Of the live sequences."""
        return [row.name for row in self._rows]

    @torch.inference_mode()
    def add(
        self, prompts: Sequence[tuple[int, list[int], Draws]], voice: Voice = PLAIN
    ) -> dict[int, DrawnToken]:
        """Sequences to join, by name, prompt (not empty) and draws; returns the first tokens.

        Equal prompts are read once. One of which a prefix cache knows all but the last token is not read at
        all: the next step gives its first token. Raises UnusableModel where the logits are not finite: none
        that was read has joined.
        """
        prompts = [p for p in prompts if not self._join_known(*p, voice)]
        if not prompts:
            return {}
        distinct = list({tuple(token_ids): token_ids for _, token_ids, _ in prompts}.values())
        logits: dict[tuple[int, ...], Tensor] = {}
        layers: dict[tuple[int, ...], Layers] = {}
        for part in _parts(distinct):
            with self._running([voice.adapter]):
                read = self._read(part, voice.prefixes)
            for token_ids, (row, of_row) in zip(part, read, strict=True):
                logits[tuple(token_ids)], layers[tuple(token_ids)] = row, of_row
        rows = [_Row(name, draws, voice.adapter) for name, _, draws in prompts]
        keys = [tuple(token_ids) for _, token_ids, _ in prompts]
        tokens = self._choose(rows, torch.stack([logits[key] for key in keys]))
        self._cache.add(joined([layers[key] for key in keys]), [len(key) for key in keys])
        self._rows += rows
        self._last += [token.token_id for token in tokens]
        return {row.name: token for row, token in zip(rows, tokens, strict=True)}

    @torch.inference_mode()
    def step(self) -> dict[int, DrawnToken]:
        """The next token of each live sequence, by name. Raises UnusableModel."""
        cache = self._cache
        cache.make_room()
        with self._running([row.adapter for row in self._rows]):
            logits = self._decode(torch.tensor(self._last, device=self._policy.device), cache)
        cache.advance()
        tokens = self._choose(self._rows, logits)
        self._last = [token.token_id for token in tokens]
        return {row.name: token for row, token in zip(self._rows, tokens, strict=True)}

    @torch.inference_mode()
    def remove(self, names: Sequence[int]) -> None:
        """Sequences that have ended."""
        gone = set(names)
        for place in range(len(self._rows) - 1, -1, -1):
            if self._rows[place].name in gone:
                self._cache.remove(place)
                self._rows[place], self._last[place] = self._rows[-1], self._last[-1]
                self._rows.pop()
                self._last.pop()
        if not self._rows:
            self._cache = RollingCache()

    def _running(self, adapters: Sequence[str | None]) -> AbstractContextManager[None]:
        """Within, the policy's rows run with these adapters; one is every row's."""
        return nullcontext() if self._mixture is None else self._mixture.rows(adapters)

    def _join_known(self, name: int, token_ids: list[int], draws: Draws, voice: Voice) -> bool:
        """Join a sequence whose prompt has been read before; False where it has not."""
        layers = None if voice.prefixes is None else voice.prefixes.all_but_last(token_ids)
        if layers is None:
            return False
        self._cache.add(layers, [len(token_ids) - 1])
        self._rows.append(_Row(name, draws, voice.adapter))
        self._last.append(token_ids[-1])
        return True

    def _read(self, prompts: list[list[int]], prefixes: PrefixCache | None) -> list[tuple[Tensor, Layers]]:
        """Logits after each prompt, and its keys and values."""
        known = {} if prefixes is None else {tuple(p): prefixes.longest(p) for p in prompts}
        whole = [p for p in prompts if known.get(tuple(p)) is None]
        found = dict(zip(map(tuple, whole), self._read_whole(whole), strict=True)) if whole else {}
        for prompt in prompts:
            if (prefix := known.get(tuple(prompt))) is not None:
                found[tuple(prompt)] = self._read_on(prompt, prefix)
        if prefixes is not None:
            for prompt in prompts:
                prefixes.keep(prompt, found[tuple(prompt)][1])
        return [found[tuple(prompt)] for prompt in prompts]

    def _read_whole(self, prompts: list[list[int]]) -> list[tuple[Tensor, Layers]]:
        width, device = max(map(len, prompts)), self._policy.device
        padded = [[self._pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
        starts = torch.tensor([width - len(prompt) for prompt in prompts], device=device)[:, None]
        columns = torch.arange(width, device=device)
        mask = (columns >= starts).long() if bool(starts.any()) else None
        cache = DynamicCache()  # plain layers, whatever window the model attends in: rows move among columns
        logits = self._policy(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=mask,
            position_ids=(columns - starts).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: cache},
        ).logits[:, -1]
        layers = layers_of(cache)
        return [
            (
                logits[row],
                [
                    (k[row : row + 1, :, width - len(prompt) :], v[row : row + 1, :, width - len(prompt) :])
                    for k, v in layers
                ],
            )
            for row, prompt in enumerate(prompts)
        ]

    def _read_on(self, prompt: list[int], prefix: Layers) -> tuple[Tensor, Layers]:
        done, device = prefix[0][0].shape[2], self._policy.device
        cache = seeded(prefix)
        logits = self._policy(
            input_ids=torch.tensor([prompt[done:]], device=device),
            position_ids=torch.arange(done, len(prompt), device=device)[None],
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: cache},
        ).logits[:, -1]
        return logits[0], layers_of(cache)

    def _choose(self, rows: Sequence[_Row], logits: Tensor) -> list[DrawnToken]:
        """logits: (rows, vocabulary)."""
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        if not bool(torch.isfinite(logprobs.amax(dim=-1)).all()):
            raise UnusableModel("The model's logits are not finite.")
        uniforms = torch.tensor([row.uniform() for row in rows], dtype=torch.float64, device=logits.device)
        ids = _choose_by_kind(rows, logprobs, uniforms)
        chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
        tops = _likeliest(logprobs, max(row.draws.top_logprobs for row in rows))
        return [
            DrawnToken(token_id, logprob, tops[place][: row.draws.top_logprobs] if tops else [])
            for place, (row, token_id, logprob) in enumerate(zip(rows, ids.tolist(), chosen, strict=True))
        ]


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


def _choose_by_kind(rows: Sequence[_Row], logprobs: Tensor, uniforms: Tensor) -> Tensor:
    order = sorted(range(len(rows)), key=lambda place: rows[place].kind)
    kinds = [(kind, list(places)) for kind, places in groupby(order, key=lambda place: rows[place].kind)]
    if len(kinds) == 1:
        return choose(logprobs, uniforms, *kinds[0][0])
    ids = torch.empty(len(rows), dtype=torch.long, device=logprobs.device)
    for kind, places in kinds:
        here = torch.tensor(places, device=logprobs.device)
        ids[here] = choose(logprobs[here], uniforms[here], *kind)
    return ids


def _likeliest(logprobs: Tensor, count: int) -> list[list[tuple[int, float]]]:
    if count == 0:
        return []
    values, ids = logprobs.topk(min(count, logprobs.shape[1]), dim=-1)
    return [list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]


def _parts(prompts: list[list[int]]) -> list[list[list[int]]]:
    """Prompts of like lengths together, as many as the bound takes."""
    parts: list[list[list[int]]] = []
    for prompt in sorted(prompts, key=len):
        if parts and (len(parts[-1]) + 1) * len(prompt) <= PROMPT_TOKENS_AT_ONCE:
            parts[-1].append(prompt)
        else:
            parts.append([prompt])
    return parts
