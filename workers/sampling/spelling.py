"""Token ids as text: whole texts without special tokens, single tokens with them."""

import re
from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

BEFORE = 8
"""Tokens before a text that are decoded with it: some tokenizers drop a leading space otherwise."""
UNDECODABLE = "\ufffd"


class Speller:
    """How one tokenizer spells, with what it has spelled kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._spelled: dict[int, str] = {}
        self._bytes: dict[int, bytes] = {}

    def text(self, token_ids: Sequence[int]) -> str:
        """The text, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def continuation(self, before: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text that ids add to those before them."""
        context = list(before[-BEFORE:])
        opening, whole = self.text(context), self.text([*context, *token_ids])
        fits = whole.startswith(opening) and not opening.endswith(UNDECODABLE)
        return whole[len(opening) :] if fits else self.text(token_ids)

    def token(self, token_id: int) -> str:
        """One token as text; a piece of a character is named by the vocabulary instead."""
        if token_id not in self._spelled:
            text = str(self._tokenizer.decode([token_id]))
            if UNDECODABLE in text:
                text = str(self._tokenizer.convert_ids_to_tokens(token_id))
            self._spelled[token_id] = text
        return self._spelled[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for in UTF-8: of a piece of a character, that piece."""
        if token_id not in self._bytes:
            text = str(self._tokenizer.decode([token_id]))
            self._bytes[token_id] = self._piece(token_id, text) if UNDECODABLE in text else text.encode()
        return self._bytes[token_id]

    def spans(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where in the tokens' text each begins and ends, in characters.

        Tokens that share a character all begin at it and end behind it; a special token has no text.
        """
        decoder, begin, found = getincrementaldecoder("utf-8")(errors="replace"), 0, list[tuple[int, int]]()
        for token_id in token_ids:
            own = b"" if token_id in self._special else self.token_bytes(token_id)
            end = begin + len(decoder.decode(own))
            is_within = bool(decoder.getstate()[0])
            found.append((begin, end + is_within))
            begin = end
        return found

    def _piece(self, token_id: int, text: str) -> bytes:
        name = str(self._tokenizer.convert_ids_to_tokens(token_id))
        for spelt in (_byte_level, _byte_fallback):
            found = spelt(name)
            # Only where the tokenizer agrees: a name may look like another vocabulary's.
            if found is not None and found.decode(errors="replace") == text:
                return found
        return name.encode()


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """The character that names each byte in a byte-level vocabulary: its own where that can be seen, and
    for the others those from 256 on, in order (Radford et al. 2019, the GPT-2 tokenizer)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(unseen)}


def _byte_level(name: str) -> bytes | None:
    alphabet = _byte_level_alphabet()
    return bytes(alphabet[each] for each in name) if all(each in alphabet for each in name) else None


def _byte_fallback(name: str) -> bytes | None:
    """A SentencePiece vocabulary names single bytes so: <0x0A>."""
    found = re.fullmatch(r"<0x([0-9A-F]{2})>", name)
    return bytes.fromhex(found[1]) if found else None


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest of the stop strings begins, or None."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(found, default=None)


def safe_length(text: str, stops: Sequence[str]) -> int:
    """How much of a text that goes on belongs to it for sure: no stop string begins there, nor may begin."""
    if (cut := first_stop(text, stops)) is not None:
        return cut
    held = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return len(text) - held
