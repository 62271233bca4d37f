"""Token ids as text: whole texts without special tokens, single tokens with them."""

from collections.abc import Sequence

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

    def shown(self, token_id: int) -> str:
        """What a token contributes to a text: nothing where it is special."""
        return "" if token_id in self._special else self.token(token_id)


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
