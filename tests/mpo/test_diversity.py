from math import exp

import pytest

from mpo.diversity import MOST_COMPARED, distinct_n, diversity_report, self_bleu, words_of


def unchecked() -> None:
    """Nobody asks to stop."""


def bleu_of(*texts: str) -> float | None:
    return self_bleu([text.split() for text in texts], unchecked)


def test_words_and_marks_are_counted_as_they_are_written() -> None:
    assert words_of("Don't stop, stop!") == ["Don", "'", "t", "stop", ",", "stop", "!"]
    assert words_of(" \n") == []


def test_distinct_n_by_hand() -> None:
    """Li et al. 2016: distinct n-grams by the number of words, of pairs too."""
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct_n(texts, 1) == pytest.approx(2 / 5)
    # ab, ba: no pair spans two texts.
    assert distinct_n(texts, 2) == pytest.approx(2 / 5)
    assert distinct_n([["a", "b"], ["b", "c"]], 2) == pytest.approx(2 / 4)


def test_repetition_lowers_it_and_variety_raises_it() -> None:
    dull = diversity_report(["I do not know."] * 4, unchecked)
    varied = diversity_report(
        ["I do not know.", "Ask a doctor!", "Red birds sleep.", "Try it again, then."], unchecked
    )
    assert dull == {"distinct_1": 5 / 20, "distinct_2": 4 / 20, "self_bleu": 1.0}
    assert (varied["distinct_1"] or 0) > 0.8
    assert (varied["distinct_2"] or 0) > 0.6
    assert 0 < (varied["self_bleu"] or 0) < 0.3


def test_who_writes_nothing_has_no_diversity() -> None:
    assert diversity_report(["", "  "], unchecked) == {
        "distinct_1": None,
        "distinct_2": None,
        "self_bleu": None,
    }
    assert distinct_n([["alone"]], 2) == 0.0


def test_self_bleu_by_hand() -> None:
    """Papineni et al. 2002: the geometric mean of the precisions of 1 to 4 words, by the brevity penalty."""
    assert bleu_of("a b c d e", "a b c d f") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    # No pair of words matches and counts as a tenth; there is none of three to count.
    assert bleu_of("a b", "a c") == pytest.approx((1 / 2 * 0.1 / 1) ** (1 / 2))
    shorter, longer = exp(1 - 8 / 4), (4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** (1 / 4)
    assert bleu_of("a b c d", "a b c d e f g h") == pytest.approx((shorter + longer) / 2)
    # Each is found in the others together: ab in one, bc in the other, abc in none.
    assert bleu_of("a b c", "a b", "b c") == pytest.approx((0.1 ** (1 / 3) + 1 + 1) / 3)


def test_self_bleu_is_one_of_equal_texts_and_none_of_disjoint_ones() -> None:
    # Of these lengths the library rounds to a little above 100.
    for words in range(1, 40):
        assert bleu_of(*[" ".join(f"w{i}" for i in range(words))] * 3) == pytest.approx(1.0)
        assert (bleu_of(*[" ".join(f"w{i}" for i in range(words))] * 3) or 0) <= 1
    assert bleu_of("red birds sleep", "ask a doctor", "try it again") == 0.0


def test_the_more_alike_the_higher_is_self_bleu() -> None:
    same = ["the", "dog", "sleeps", "in", "the", "sun", "all", "day"]
    alike = [
        [*same[:kept], *(f"{text}of{i}" for i in range(8 - kept))] for kept in range(9) for text in "abc"
    ]
    scores = [self_bleu(alike[at : at + 3], unchecked) or 0 for at in range(0, len(alike), 3)]
    assert scores == sorted(set(scores))
    assert (scores[0], scores[-1]) == (0.0, pytest.approx(1.0))


def test_one_text_has_no_other_to_be_like_and_empty_ones_are_none() -> None:
    assert bleu_of() is bleu_of("alone here") is bleu_of("alone here", "", "") is None
    assert bleu_of("a b", "", "a c", "") == bleu_of("a b", "a c")


def test_self_bleu_compares_so_many_texts_at_most_and_always_the_same() -> None:
    texts = [[f"w{i % 7}", f"w{i % 11}", f"w{i}", "end"] for i in range(4 * MOST_COMPARED)]
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    first = self_bleu(texts, count)
    assert asked == MOST_COMPARED
    assert first == self_bleu(texts, unchecked)
    # Drawn from all over: a model whose later half is dull is not taken for a varied one.
    dull = texts[: 2 * MOST_COMPARED] + [["the", "same", "again", "end"]] * (2 * MOST_COMPARED)
    assert (self_bleu(dull, unchecked) or 0) > (first or 1) + 0.2


def test_who_asks_to_stop_is_heard_between_texts() -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        self_bleu([["a"], ["b"]], stop)
