"""How varied a model's responses are. Torch-free."""

import re
from collections.abc import Callable, Iterable, Sequence
from math import fsum

from mpo.seeds import permutation

WORDS = re.compile(r"\w+|[^\w\s]")
"""A word, or a mark by itself. A script that sets no spaces has few and long words."""

ORDERS = (1, 2)

MOST_COMPARED = 100
"""Responses that self-BLEU compares at most: each is counted again for every other, so that time rises with
the square of their number."""


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


def self_bleu(texts: Sequence[Sequence[str]], check: Callable[[], object]) -> float | None:
    """Mean BLEU of each text against all the others as its references, 0 to 1: the lower, the more varied.

    texts: their words. Zhu et al. 2018 (arXiv 1802.01886), with BLEU-4 by sacrebleu, an order that finds no
    match counted as a tenth of one (their smoothing), and orders that a text is too short for left out. Texts
    without a word are no texts; None where fewer than two are left. Of more than `MOST_COMPARED` that many
    are drawn, by one seed for all. The more texts there are, the more of each is found in another: it
    compares models that wrote equally many. check: called before each text, may raise.
    """
    # Slow to load, which only who evaluates is to pay for.
    from sacrebleu.metrics.bleu import BLEU

    written = [" ".join(words) for words in texts if words]
    drawn = [written[number] for number in sorted(permutation(len(written), 0)[:MOST_COMPARED])]
    if len(drawn) < 2:
        return None
    # The words are ours, so that all that is told of diversity is of the same ones.
    bleu = BLEU(tokenize="none", force=True, smooth_method="floor", effective_order=True)
    scores: list[float] = []
    for place, text in enumerate(drawn):
        check()
        # Rounding takes the score of equal texts a little above 100.
        scores.append(min(bleu.sentence_score(text, drawn[:place] + drawn[place + 1 :]).score / 100, 1.0))
    return fsum(scores) / len(scores)


def diversity_report(texts: Sequence[str], check: Callable[[], object]) -> dict[str, float | None]:
    """distinct_1, distinct_2 and self_bleu of a model's responses. check: as in `self_bleu`.

    They are in words, so that models of different tokenizers compare.
    """
    words = [words_of(text) for text in texts]
    report = {f"distinct_{n}": distinct_n(words, n) for n in ORDERS}
    return {**report, "self_bleu": self_bleu(words, check)}
