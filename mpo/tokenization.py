"""Pairs to token ids: prompts with special tokens, responses without, one terminator after each response."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mpo.chat_template import render, render_response, turn_end
from mpo.errors import UnusableModel
from mpo.records import Content, PreferencePair

BATCH_PAIRS = 512


@dataclass(frozen=True)
class Terminators:
    """What ends a response. terminator_id: appended in training. stop_ids: any of them ends a sample; holds
    terminator_id. pad_id: fills batches, never a stop id."""

    terminator_id: int
    stop_ids: frozenset[int]
    pad_id: int


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a pair. A response that was not cut is terminated: its last id is the terminator."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_terminated: bool
    rejected_terminated: bool

    @property
    def tokens(self) -> int:
        """Of the prompt and of both responses."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def longest(self) -> int:
        """Tokens of its longer sequence: of the prompt and the longer response."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class Encoding:
    """A pair as token ids, and what encoding did to it besides cutting responses, which are then not
    terminated. joint_differs: as in `EncodingCounts`."""

    pair: EncodedPair
    prompt_cut: bool
    joint_differs: bool


@dataclass
class EncodingCounts:
    """What encoding did to how many of `pairs`.

    joint_differs: pairs of which a prompt and response, encoded together, give other ids than apart; compared
    before anything is cut.
    """

    pairs: int = 0
    prompts_cut: int = 0
    chosen_cut: int = 0
    rejected_cut: int = 0
    joint_differs: int = 0

    def to_json(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; raises UnusableModel where it does not load."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableModel(f"The model's tokenizer does not load: {error}") from error


def terminator_id(tokenizer: PreTrainedTokenizerBase, end_token: str | None = None) -> int:
    """What the chat template sets after an assistant's turn, else the tokenizer's EOS, else `end_token`.

    Raises UnusableModel where there is none of them.
    """
    by_template = turn_end(tokenizer).terminator_id
    if by_template is not None:
        return by_template
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    id_ = tokenizer.get_vocab().get(end_token) if end_token is not None else None
    if id_ is None:
        raise UnusableModel("The tokenizer has no EOS token, and no other token that could end a response.")
    return id_


def terminators(
    folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, *, end_token: str | None = None
) -> Terminators:
    """What ends a response of the model in a folder: its terminator, and its generation_config's EOS ids.

    tokenizer: the folder's, where it is loaded already. Raises UnusableModel.
    """
    tokenizer = tokenizer or load_tokenizer(folder)
    terminator = terminator_id(tokenizer, end_token)
    stop_ids = frozenset({terminator, *_generation_eos_ids(folder)})
    return Terminators(terminator, stop_ids, _pad_id(tokenizer, stop_ids))


def _generation_eos_ids(folder: Path) -> list[int]:
    # Without a generation_config, transformers takes the EOS of the model's configuration.
    for name in ("generation_config.json", "config.json"):
        if (path := folder / name).exists():
            eos: int | list[int] | None = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            return [eos] if isinstance(eos, int) else list(eos or [])
    return []


def _pad_id(tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> int:
    """The tokenizer's PAD, else UNK, else another special token, else any: none is a stop id."""
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.all_special_ids)]
    wanted = [*special, *range(len(stop_ids) + 1)]
    return next(id_ for id_ in wanted if id_ is not None and id_ not in stop_ids)


def encode_prompt(
    prompt: Content, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int | None
) -> list[int]:
    """Ids of a prompt, cut at its beginning to `max_prompt_tokens` (None: not cut).

    Strings get the tokenizer's special tokens, less an EOS at the end; messages are rendered by the chat
    template, up to where the assistant speaks. Raises NoChatTemplate, ChatTemplateRefused.
    """
    ids = _context_ids([_prompt_text(prompt, tokenizer)], isinstance(prompt, str), tokenizer)[0]
    return _cut_beginning(ids, max_prompt_tokens)


def encode_response(
    response: Content,
    tokenizer: PreTrainedTokenizerBase,
    max_response_tokens: int | None,
    terminated: bool = True,
    *,
    prompt: Content = "",
    end_token: str | None = None,
) -> list[int]:
    """Ids of a response, cut at its end to `max_response_tokens` (None: not cut).

    The terminator, one id more, follows where the response is terminated and was not cut. prompt: needed
    where the response is messages. Raises NoChatTemplate, ChatTemplateRefused, UnusableModel.
    """
    ids = tokenizer(_response_text(prompt, response, tokenizer), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    terminator = terminator_id(tokenizer, end_token) if terminated else None
    return _close(ids, max_response_tokens, terminator)[0]


def encode_pairs(
    pairs: Iterable[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: str | None = None,
) -> tuple[list[EncodedPair], EncodingCounts]:
    """Ids of pairs, in order, and what was cut: all in memory, as lists. Else as `stream_encodings`."""
    encoded: list[EncodedPair] = []
    counts = EncodingCounts()
    limits = {"max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens}
    for each in stream_encodings(pairs, tokenizer, **limits, end_token=end_token):
        encoded.append(each.pair)
        counts.pairs += 1
        counts.prompts_cut += each.prompt_cut
        counts.chosen_cut += not each.pair.chosen_terminated
        counts.rejected_cut += not each.pair.rejected_terminated
        counts.joint_differs += each.joint_differs
    return encoded, counts


def stream_encodings(
    pairs: Iterable[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: str | None = None,
) -> Iterator[Encoding]:
    """Ids of pairs, in order, `BATCH_PAIRS` in memory at a time: both sides of a pair see the same prompt.

    Limits are in tokens, None = no limit; a response holds at most one id more, its terminator. Raises
    NoChatTemplate, ChatTemplateRefused, UnusableModel.
    """
    terminator = terminator_id(tokenizer, end_token)
    remaining = iter(pairs)
    while batch := list(islice(remaining, BATCH_PAIRS)):
        for pair, apart in zip(batch, _encode_apart(batch, tokenizer), strict=True):
            prompt = _cut_beginning(apart.prompt, max_prompt_tokens)
            chosen, chosen_cut = _close(apart.chosen, max_response_tokens, terminator)
            rejected, rejected_cut = _close(apart.rejected, max_response_tokens, terminator)
            encoded = EncodedPair(pair.id, prompt, chosen, rejected, not chosen_cut, not rejected_cut)
            yield Encoding(encoded, len(prompt) < len(apart.prompt), apart.joint_differs)


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[list[int]], int]:
    """Ids of texts with special tokens, cut at their end to `limit`, and how many were cut.

    The terminator, one id more, follows where a text was not cut. Raises UnusableModel.
    """
    terminator = terminator_id(tokenizer)
    closed = [
        _close(ids, limit, terminator)
        for start in range(0, len(texts), BATCH_PAIRS)
        for ids in _context_ids(list(texts[start : start + BATCH_PAIRS]), True, tokenizer)
    ]
    return [ids for ids, _ in closed], sum(cut for _, cut in closed)


@dataclass(frozen=True)
class _Apart:
    """Ids of a pair's three texts, nothing cut or appended; whether encoding them jointly would differ."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    joint_differs: bool


def _encode_apart(batch: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase) -> list[_Apart]:
    """Encodes many texts a call, which is what fast tokenizers are fast at."""
    encoded: dict[int, _Apart] = {}
    for is_text in (True, False):
        rows = [row for row, pair in enumerate(batch) if isinstance(pair.prompt, str) == is_text]
        if not rows:
            continue
        prompts = [_prompt_text(batch[row].prompt, tokenizer) for row in rows]
        prompt_ids = _context_ids(prompts, is_text, tokenizer)
        ids: list[list[list[int]]] = []
        differs = [False] * len(rows)
        for side in ("chosen", "rejected"):
            texts = [_response_text(batch[row].prompt, getattr(batch[row], side), tokenizer) for row in rows]
            apart = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            joint = _context_ids([p + r for p, r in zip(prompts, texts, strict=True)], is_text, tokenizer)
            compared = zip(differs, prompt_ids, apart, joint, strict=True)
            differs = [known or p + r != whole for known, p, r, whole in compared]
            ids.append(apart)
        for row, *of_pair in zip(rows, prompt_ids, *ids, differs, strict=True):
            encoded[row] = _Apart(*of_pair)
    return [encoded[row] for row in range(len(batch))]


def _prompt_text(prompt: Content, tokenizer: PreTrainedTokenizerBase) -> str:
    return prompt if isinstance(prompt, str) else render(prompt, tokenizer, add_generation_prompt=True)


def _response_text(prompt: Content, response: Content, tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(response, str):
        return response
    if isinstance(prompt, str):
        raise TypeError("a response of messages needs a prompt of messages")
    return render_response(prompt, response, tokenizer)


def _context_ids(
    texts: list[str], add_special_tokens: bool, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Ids of texts that go on, so without a last EOS; a rendered conversation has its special tokens."""
    found: list[list[int]] = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)[
        "input_ids"
    ]
    if not add_special_tokens:
        return found
    eos = tokenizer.eos_token_id
    return [ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids for ids in found]


def _cut_beginning(ids: list[int], limit: int | None) -> list[int]:
    return ids if limit is None else ids[max(0, len(ids) - limit) :]


def _close(ids: list[int], limit: int | None, terminator: int | None) -> tuple[list[int], bool]:
    """The ids within the limit, then the terminator; and whether they were cut: then none follows."""
    if limit is not None and len(ids) > limit:
        return ids[:limit], True
    if terminator is None or ids[-1:] == [terminator]:
        return ids, False
    return [*ids, terminator], False
