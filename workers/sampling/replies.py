"""What was drawn, as the reply shows it: text cut at stop strings, logprobs by token."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.sampling import SampledText, SamplePart, SampleRequest
from mpo.generation import SampledResponse
from workers.sampling.model_cache import LoadedTokenizer
from workers.sampling.prompt_logprobs import TokenLogprobs
from workers.sampling.prompts import EncodedPrompt
from workers.sampling.spelling import UNDECODABLE, Speller, first_stop, safe_length


@dataclass(frozen=True)
class Drawn:
    """A response with the prompt that it answers; echoed: the prompt's logprobs, where they are asked for."""

    prompt: EncodedPrompt
    response: SampledResponse
    echoed: list[TokenLogprobs | None] | None


@dataclass
class Told:
    """What of a response has been told: characters of the text, and drawn tokens with their logprobs."""

    characters: int = 0
    tokens: int = 0


def part_of(
    request: SampleRequest, loaded: LoadedTokenizer, index: int, drawn: Drawn, told: Told
) -> SamplePart | None:
    """What can be told of a response that goes on, and has not been; None where there is nothing.

    Held back: what may be the beginning of a stop string, and the bytes of a character that lacks some. The
    tokens' logprobs follow with the reply where an echo's come before them.
    """
    text = loaded.speller.continuation(drawn.prompt.token_ids, drawn.response.token_ids)
    text = text[: safe_length(text.rstrip(UNDECODABLE), request.stop)]
    shown = drawn.prompt.text + text if request.echo else text
    offset, token_offset, columns = told.characters, told.tokens, {}
    new = shown[offset:]
    told.characters = max(offset, len(shown))
    if request.logprobs is not None and not request.echo:
        columns = _new_columns(request, loaded.speller, drawn.response, len(text), told)
    if not new and not columns:
        return None
    return SamplePart(index=index, text=new, offset=offset, token_offset=token_offset, **columns)


def _new_columns(
    request: SampleRequest, speller: Speller, response: SampledResponse, characters: int, told: Told
) -> dict[str, list]:
    """Of the tokens that lie within so many characters, those not told before."""
    ids, places = _drawn_places(response, speller, None)
    offsets = _offsets(ids, speller)
    until = told.tokens
    while until < len(ids) and offsets[until] + len(speller.shown(ids[until])) <= characters:
        until += 1
    new = slice(told.tokens, until)
    told.tokens = until
    return _columns(request, speller, ids[new], places[new], offsets[new]) if ids[new] else {}


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
    ids, places = _drawn_places(drawn.response, speller, cut)
    if request.echo:
        ids = [*drawn.prompt.token_ids, *ids]
        places = [*(drawn.echoed or []), *places]
    return _columns(request, speller, ids, places, _offsets(ids, speller))


def _offsets(ids: Sequence[int], speller: Speller) -> list[int]:
    offsets, offset = [], 0
    for token_id in ids:
        offsets.append(offset)
        offset += len(speller.shown(token_id))
    return offsets


def _columns(
    request: SampleRequest,
    speller: Speller,
    ids: Sequence[int],
    places: Sequence[TokenLogprobs | None],
    offsets: list[int],
) -> dict[str, list]:
    return {
        "tokens": [speller.token(token_id) for token_id in ids],
        "token_logprobs": [place and place.logprob for place in places],
        "top_logprobs": [
            place and _by_token(token_id, place, request.logprobs or 0, speller)
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
