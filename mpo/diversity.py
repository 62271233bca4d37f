"""How varied a model's responses are. Torch-free."""

import re
from collections.abc import Iterable, Sequence

WORDS = re.compile(r"\w+|[^\w\s]")
"""A word, or a mark by itself. A script that sets no spaces has few and long words."""

ORDERS = (1, 2)


def words_of(text: str) -> list[str]:
    """A text's words as they are written, marks of their own."""
    return WORDS.findall(text)


def distinct_n(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Distinct n-grams over all texts, divided by the number of all their words; None where there is none.

    texts: their words. Li et al. 2016 (arXiv 1510.03055): no n-gram spans two texts, and what is
    divided by are words for every n. The more is written, the more of it repeats, whoever writes: it compares
    models that write about equally much.
    """
    found: set[tuple[str, ...]] = set()
    total = 0
    for words in texts:
        total += len(words)
        found.update(zip(*(words[start:] for start in range(n)), strict=False))
    return len(found) / total if total else None


def diversity_report(texts: Sequence[str]) -> dict[str, float | None]:
    """distinct_1 and distinct_2 over a model's responses, in words: of other tokenizers too they compare."""
    words = [words_of(text) for text in texts]
    return {f"distinct_{n}": distinct_n(words, n) for n in ORDERS}
