"""What was drawn, as the reply shows it: text cut at stop strings, logprobs by token."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.sampling import SampledText, SampleRequest
from mpo.generation import SampledResponse
from workers.sampling.model_cache import LoadedTokenizer
from workers.sampling.prompt_logprobs import TokenLogprobs
from workers.sampling.prompts import EncodedPrompt
from workers.sampling.spelling import Speller, first_stop


@dataclass(frozen=True)
class Drawn:
    """A response with the prompt that it answers; echoed: the prompt's logprobs, where they are asked for."""

    prompt: EncodedPrompt
    response: SampledResponse
    echoed: list[TokenLogprobs | None] | None


def sampled_text(request: SampleRequest, loaded: LoadedTokenizer, drawn: Drawn) -> SampledText:
    """One response as the client gets it."""
    ids, speller = drawn.response.token_ids, loaded.speller
    text = speller.continuation(drawn.prompt.token_ids, ids)
    cut = first_stop(text, request.stop)
    if cut is not None:
        text = text[:cut]
    stopped = cut is not None or (bool(ids) and ids[-1] in loaded.terminators.stop_ids)
    shown = drawn.prompt.text + text if request.echo else text
    columns = {} if request.logprobs is None else _logprob_columns(request, speller, drawn, cut)
    return SampledText(text=shown, token_ids=ids, finish_reason="stop" if stopped else "length", **columns)


def _logprob_columns(
    request: SampleRequest, speller: Speller, drawn: Drawn, cut: int | None
) -> dict[str, list]:
    count = request.logprobs or 0
    ids, places = _drawn_places(drawn.response, speller, cut)
    if request.echo:
        ids = [*drawn.prompt.token_ids, *ids]
        places = [*(drawn.echoed or []), *places]
    offsets, offset = [], 0
    for token_id in ids:
        offsets.append(offset)
        offset += len(speller.shown(token_id))
    return {
        "tokens": [speller.token(token_id) for token_id in ids],
        "token_logprobs": [place and place.logprob for place in places],
        "top_logprobs": [
            place and _by_token(token_id, place, count, speller)
            for token_id, place in zip(ids, places, strict=True)
        ],
        "text_offset": offsets,
    }


def _drawn_places(
    response: SampledResponse, speller: Speller, cut: int | None
) -> tuple[list[int], list[TokenLogprobs | None]]:
    """The drawn tokens that begin before the cut, each with its logprobs."""
    tops: Sequence[list[tuple[int, float]]] = response.top_logprobs or [[] for _ in response.token_ids]
    ids: list[int] = []
    places: list[TokenLogprobs | None] = []
    offset = 0
    for token_id, logprob, top in zip(response.token_ids, response.logprobs, tops, strict=True):
        if cut is not None and offset >= cut:
            break
        ids.append(token_id)
        places.append(TokenLogprobs(logprob, top))
        offset += len(speller.shown(token_id))
    return ids, places


def _by_token(token_id: int, place: TokenLogprobs, count: int, speller: Speller) -> dict[str, float]:
    """The likeliest tokens and the chosen one, which is always among them, by their spelling.

    Two tokens may be spelt alike: the later one is then named by its id, so that neither hides the other.
    """
    entries = place.top[:count]
    if token_id not in (id_ for id_, _ in entries):
        entries = [*entries, (token_id, place.logprob)]
    by_token = {speller.token(token_id): place.logprob}
    named = {}
    for id_, logprob in entries:
        name = speller.token(id_)
        if id_ != token_id and (name in by_token or name in named):
            name = f"token_id:{id_}"
        named[name] = place.logprob if id_ == token_id else logprob
    return named
