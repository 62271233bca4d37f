"""One request to sample under way: what each of its responses has so far, and what of it can be told."""

import time
from collections.abc import Iterable, Sequence

from core.sampling import PromptSamples, SamplePart, SampleParts, SampleReply, SampleRequest
from mpo.continuous_batch import DrawnToken, Draws
from mpo.generation import SampledResponse
from workers.sampling.loading import LoadedTokenizer
from workers.sampling.prompt_logprobs import TokenLogprobs
from workers.sampling.prompts import EncodedPrompt, encode_prompts, row_seeds
from workers.sampling.replies import Drawn, Told, part_of, sampled_text
from workers.sampling.spelling import first_stop

STOP_LOOKBACK_TOKENS = 8
TELL_SECONDS = 0.02
"""Parts come no closer together: who reads them sees no difference, and each costs a message."""


class _Row:
    """One response."""

    def __init__(self, prompt: EncodedPrompt, seed: int) -> None:
        self.prompt, self.seed = prompt, seed
        self.response, self.told = SampledResponse(), Told()
        self.ended = prompt.max_tokens == 0


class Answering:
    """A request's responses, numbered through its prompts, n for each."""

    def __init__(self, request: SampleRequest, loaded: LoadedTokenizer) -> None:
        """Raises Refused and the errors of encoding."""
        self.request = request
        self.prompts = encode_prompts(request, loaded)
        self.loaded, self._stop_ids = loaded, loaded.terminators.stop_ids
        repeated = [prompt for prompt in self.prompts for _ in range(request.n)]
        self._rows = [_Row(prompt, seed) for prompt, seed in zip(repeated, row_seeds(request), strict=True)]
        self._next_part = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def to_draw(self) -> list[int]:
        """Numbers of the responses that take tokens."""
        return [number for number, row in enumerate(self._rows) if not row.ended]

    @property
    def has_ended(self) -> bool:
        """Whether no response takes another token."""
        return all(row.ended for row in self._rows)

    def start(self, number: int) -> tuple[list[int], Draws]:
        """A response's prompt, and how it draws."""
        row, request = self._rows[number], self.request
        draws = Draws(row.seed, request.temperature, request.top_p, request.logprobs or 0)
        return row.prompt.token_ids, draws

    def take(self, number: int, token: DrawnToken) -> bool:
        """The next token of a response; True where it was the last."""
        row = self._rows[number]
        row.response.token_ids.append(token.token_id)
        row.response.logprobs.append(token.logprob)
        if self.request.logprobs is not None:
            row.response.top_logprobs.append(token.top)
        ids = row.response.token_ids
        row.ended = (
            token.token_id in self._stop_ids or len(ids) >= row.prompt.max_tokens or self._reached_a_stop(ids)
        )
        return row.ended

    def parts(self) -> SampleParts | None:
        """What can be told by now and has not been; None where nobody asks, or it is too early."""
        if not self.request.stream or (now := time.monotonic()) < self._next_part:
            return None
        self._next_part = now + TELL_SECONDS
        found = (
            part_of(self.request, self.loaded, number, Drawn(row.prompt, row.response, None), row.told)
            for number, row in enumerate(self._rows)
            if not row.ended
        )
        parts: list[SamplePart] = [part for part in found if part is not None]
        return SampleParts(parts=parts) if parts else None

    def reply(self, echoed: Sequence[list[TokenLogprobs | None] | None]) -> SampleReply:
        """All responses. echoed: by prompt, the logprobs of its own tokens where they are asked for."""
        n = self.request.n
        return SampleReply(
            results=[
                PromptSamples(
                    prompt_tokens=len(prompt.token_ids),
                    samples=self._texts(self._rows[index * n : (index + 1) * n], echoed[index]),
                )
                for index, prompt in enumerate(self.prompts)
            ]
        )

    def _texts(self, rows: Iterable[_Row], echoed: list[TokenLogprobs | None] | None) -> list:
        return [
            sampled_text(self.request, self.loaded, Drawn(row.prompt, row.response, echoed)) for row in rows
        ]

    def _reached_a_stop(self, ids: list[int]) -> bool:
        stops = self.request.stop
        if not stops:
            return False
        # A stop string that ends here began no more tokens ago than it has characters.
        tail = ids[-(max(map(len, stops)) + STOP_LOOKBACK_TOKENS) :]
        return first_stop(self.loaded.speller.text(tail), stops) is not None
