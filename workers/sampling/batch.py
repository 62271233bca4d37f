"""Several sampling requests drawn as one batch, each within its own limits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from core.sampling import PromptSamples, SampleReply, SampleRequest
from mpo.generation import SampledResponse, SamplingConfig, sample
from workers.sampling.model_cache import LoadedTokenizer
from workers.sampling.prompt_logprobs import TokenLogprobs, prompt_logprobs
from workers.sampling.prompts import EncodedPrompt, encode_prompts, row_seeds
from workers.sampling.replies import Drawn, sampled_text
from workers.sampling.spelling import first_stop

STOP_LOOKBACK_TOKENS = 8

StillWanted = Callable[[int], bool]
"""Asked at each token with the number of a request: False where its answer is of no use any more."""


@dataclass(frozen=True)
class PreparedRequest:
    """A request that passed all checks; number: its place in the group."""

    number: int
    request: SampleRequest
    prompts: list[EncodedPrompt]


@dataclass(frozen=True)
class _Row:
    """One response to be drawn."""

    owner: PreparedRequest
    prompt: EncodedPrompt
    seed: int


def prepare(number: int, request: SampleRequest, loaded: LoadedTokenizer) -> PreparedRequest:
    """Check a request and encode its prompts. Raises Refused and the errors of encoding."""
    return PreparedRequest(number, request, encode_prompts(request, loaded))


def sample_together(
    model: PreTrainedModel,
    loaded: LoadedTokenizer,
    prepared: Sequence[PreparedRequest],
    wanted: StillWanted,
) -> dict[int, SampleReply]:
    """The replies by the requests' numbers; without those that are wanted no more."""
    rows = [
        _Row(owner, prompt, seed)
        for owner in prepared
        for prompt, seed in zip(_repeated(owner), row_seeds(owner.request), strict=True)
    ]
    responses = iter(_Drawing(model, loaded, rows, wanted).draw())
    replies = {}
    for owner in prepared:
        mine = [next(responses) for _ in range(len(owner.prompts) * owner.request.n)]
        if wanted(owner.number):
            replies[owner.number] = _reply(model, loaded, owner, mine)
    return replies


def _repeated(owner: PreparedRequest) -> list[EncodedPrompt]:
    return [prompt for prompt in owner.prompts for _ in range(owner.request.n)]


class _Drawing:
    """Rows that are drawn together, and what each has so far."""

    def __init__(
        self, model: PreTrainedModel, loaded: LoadedTokenizer, rows: list[_Row], wanted: StillWanted
    ) -> None:
        self._model, self._loaded, self._wanted = model, loaded, wanted
        self._rows, self._responses = rows, [SampledResponse() for _ in rows]
        self._open = [place for place, row in enumerate(rows) if row.prompt.max_tokens > 0]
        self._drawn: list[list[int]] = [[] for _ in self._open]

    def draw(self) -> list[SampledResponse]:
        """A response a row, in order."""
        if self._open:
            rows = [self._rows[place] for place in self._open]
            prompts, seeds = [row.prompt.token_ids for row in rows], [row.seed for row in rows]
            found = sample(
                self._model, prompts, self._config(rows), seeds, self._should_stop, self._take_token
            )
            for place, response in zip(self._open, found, strict=True):
                self._responses[place] = response
        return self._responses

    def _config(self, rows: list[_Row]) -> SamplingConfig:
        first, ends = rows[0].owner.request, self._loaded.terminators
        return SamplingConfig(
            max_new_tokens=max(row.prompt.max_tokens for row in rows),
            stop_ids=ends.stop_ids,
            pad_id=ends.pad_id,
            temperature=first.temperature,
            top_p=first.top_p,
            top_logprobs=max(row.owner.request.logprobs or 0 for row in rows),
        )

    def _take_token(self, index: int, token_id: int, _logprob: float) -> None:
        self._drawn[index].append(token_id)

    def _should_stop(self, index: int) -> bool:
        row, drawn = self._rows[self._open[index]], self._drawn[index]
        if len(drawn) >= row.prompt.max_tokens or not self._wanted(row.owner.number):
            return True
        stops = row.owner.request.stop
        if not stops:
            return False
        # A stop string that ends here began no more tokens ago than it has characters.
        tail = drawn[-(max(map(len, stops)) + STOP_LOOKBACK_TOKENS) :]
        return first_stop(self._loaded.speller.text(tail), stops) is not None


def _reply(
    model: PreTrainedModel, loaded: LoadedTokenizer, owner: PreparedRequest, responses: list[SampledResponse]
) -> SampleReply:
    request, prompts = owner.request, owner.prompts
    echoed: Sequence[list[TokenLogprobs | None] | None] = [None] * len(prompts)
    if request.echo and request.logprobs is not None:
        pad_id, token_ids = loaded.terminators.pad_id, [prompt.token_ids for prompt in prompts]
        echoed = prompt_logprobs(model, token_ids, pad_id, request.logprobs)
    results = []
    for index, prompt in enumerate(prompts):
        mine = responses[index * request.n : (index + 1) * request.n]
        samples = [sampled_text(request, loaded, Drawn(prompt, r, echoed[index])) for r in mine]
        results.append(PromptSamples(prompt_tokens=len(prompt.token_ids), samples=samples))
    return SampleReply(results=results)
