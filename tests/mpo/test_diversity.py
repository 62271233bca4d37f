import pytest

from mpo.diversity import distinct_n, diversity_report, words_of


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
    dull = diversity_report(["I do not know."] * 4)
    varied = diversity_report(["I do not know.", "Ask a doctor!", "Red birds sleep.", "Try it again, then."])
    assert dull == {"distinct_1": 5 / 20, "distinct_2": 4 / 20}
    assert (varied["distinct_1"] or 0) > 0.8
    assert (varied["distinct_2"] or 0) > 0.6


def test_who_writes_nothing_has_no_diversity() -> None:
    assert diversity_report(["", "  "]) == {"distinct_1": None, "distinct_2": None}
    assert distinct_n([["alone"]], 2) == 0.0
