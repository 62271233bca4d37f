"""What was drawn, as the reply shows it: text cut at stop strings, logprobs by token."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.sampling import SampledText, SamplePart, SampleRequest
from mpo.generation import SampledResponse
from workers.sampling.loading import LoadedTokenizer
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
    spans = speller.spans(ids)
    until = told.tokens
    while until < len(ids) and spans[until][1] <= characters:
        until += 1
    new = slice(told.tokens, until)
    told.tokens = until
    offsets = [begin for begin, _ in spans[new]]
    return _columns(request, speller, ids[new], places[new], offsets) if ids[new] else {}


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
    return _columns(request, speller, ids, places, [begin for begin, _ in speller.spans(ids)])


def _columns(
    request: SampleRequest,
    speller: Speller,
    ids: Sequence[int],
    places: Sequence[TokenLogprobs | None],
    offsets: list[int],
) -> dict[str, list]:
    tops = [
        _by_token(token_id, place, request.logprobs or 0, speller) if place else None
        for token_id, place in zip(ids, places, strict=True)
    ]
    return {
        "tokens": [speller.token(token_id) for token_id in ids],
        "token_logprobs": [place and place.logprob for place in places],
        "top_logprobs": [top and {name: logprob for name, (_, logprob) in top.items()} for top in tops],
        "text_offset": offsets,
        "top_bytes": [_own_bytes(top, speller) for top in tops],
    }


def _own_bytes(top: Mapping[str, tuple[int, float]] | None, speller: Speller) -> dict[str, list[int]]:
    spelt = {name: speller.token_bytes(token_id) for name, (token_id, _) in (top or {}).items()}
    return {name: list(own) for name, own in spelt.items() if own != name.encode()}


def _drawn_places(
    response: SampledResponse, speller: Speller, cut: int | None
) -> tuple[list[int], list[TokenLogprobs | None]]:
    """The drawn tokens that begin before the cut, each with its logprobs."""
    tops: Sequence[list[tuple[int, float]]] = response.top_logprobs or [[] for _ in response.token_ids]
    begins = [begin for begin, _ in speller.spans(response.token_ids)]
    count = len(begins) if cut is None else bisect_left(begins, cut)
    places: list[TokenLogprobs | None] = [
        TokenLogprobs(logprob, top) for logprob, top in zip(response.logprobs, tops, strict=True)
    ]
    return response.token_ids[:count], places[:count]


def _by_token(
    token_id: int, place: TokenLogprobs, count: int, speller: Speller
) -> dict[str, tuple[int, float]]:
    """The likeliest tokens and the chosen one, which is always among them, by their spelling: id, logprob.

    Two tokens may be spelt alike: the later one is then named by its id, so that neither hides the other.
    """
    entries = place.top[:count]
    if token_id not in (id_ for id_, _ in entries):
        entries = [*entries, (token_id, place.logprob)]
    own, named = speller.token(token_id), dict[str, tuple[int, float]]()
    for id_, logprob in entries:
        name = speller.token(id_)
        if id_ != token_id and (name == own or name in named):
            name = f"token_id:{id_}"
        named[name] = (id_, place.logprob if id_ == token_id else logprob)
    return named
