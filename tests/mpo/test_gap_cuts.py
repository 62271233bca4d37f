import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.config import SplitStage
from mpo.errors import EmptySplit
from mpo.gap_cuts import cut_gaps, preview_split
from mpo.gap_index import GapIndex, SortedGaps

GAPS = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0])

gaps_of_pairs = st.lists(
    st.floats(-8, 8, allow_nan=False).map(lambda g: round(g, 2)) | st.sampled_from([0.0, 1.0, -1.0]),
    min_size=1,
    max_size=60,
)
shares = st.floats(0.01, 0.99)
configs = st.builds(
    lambda way, sign, negative: SplitStage(**way, sign=sign, negative=negative),
    st.one_of(
        st.fixed_dictionaries({"threshold": st.floats(-4, 4).map(lambda t: round(t, 1))}),
        st.fixed_dictionaries({"quantile": shares}),
        st.fixed_dictionaries({"easy_fraction": shares}),
    ),
    st.sampled_from(["signed", "absolute"]),
    st.sampled_from(["difficult", "drop", "flip", "keep_easy"]),
)


def part_by_definition(gap: float, threshold: float, config: SplitStage) -> str:
    size = gap if config.sign == "signed" else abs(gap)
    if size >= threshold:
        return "easy"
    if config.sign == "signed" and gap < 0 and gap <= -abs(threshold):
        return {"difficult": "difficult", "drop": "dropped"}.get(config.negative, "easy")
    return "difficult"


def parts(gaps: np.ndarray, config: SplitStage) -> list[str]:
    _, cuts = cut_gaps(gaps, config)
    return (
        [cut.part for cut in cuts for _ in range(cut.start, cut.stop)]
        if config.sign == "signed"
        else [cut.part for cut in sorted(cuts, key=lambda cut: cut.start) for _ in range(cut.start, cut.stop)]
    )


@given(gaps_of_pairs, configs)
def test_every_pair_is_in_exactly_the_part_of_the_definition(values: list[float], config: SplitStage) -> None:
    gaps = np.sort(np.array(values))
    threshold, cuts = cut_gaps(gaps, config)
    assert [cut.start for cut in cuts] == [0] + [cut.stop for cut in cuts[:-1]]
    assert cuts[-1].stop == len(gaps)
    assert parts(gaps, config) == [part_by_definition(gap, threshold, config) for gap in gaps]


@given(gaps_of_pairs, configs)
def test_preview_adds_up_and_equals_means_over_the_parts(values: list[float], config: SplitStage) -> None:
    gaps, tokens = np.array(values), np.arange(len(values)) + 1
    index = GapIndex({"all": SortedGaps.of(gaps, 2.0, tokens)}, 2.0)
    preview = preview_split(index, config)
    summaries = {name: getattr(preview, name) for name in ("easy", "difficult", "dropped")}
    assert sum(summary.pairs for summary in summaries.values()) == len(gaps)
    assert sum(summary.tokens for summary in summaries.values()) == tokens.sum()
    member = np.array([part_by_definition(gap, preview.threshold, config) for gap in gaps])
    contradicts = (gaps < preview.threshold) & (gaps <= -abs(preview.threshold)) & (gaps < 0)
    flips = contradicts & (config.negative == "flip") & (config.sign == "signed")
    kept = np.where(flips, -gaps, gaps)
    for name, summary in summaries.items():
        here = kept[member == name]
        if not len(here):
            assert (summary.pairs, summary.accuracy, summary.mean_gap) == (0, None, None)
            continue
        assert summary.accuracy == pytest.approx((np.sign(here) / 2 + 0.5).mean())
        assert summary.mean_gap == pytest.approx(here.mean(), abs=1e-9)
        assert summary.expected_accuracy == pytest.approx((1 / (1 + np.exp(-np.abs(here) / 2))).mean())


def test_a_gap_at_the_threshold_is_easy() -> None:
    config = SplitStage(threshold=1.0)
    assert parts(GAPS, config) == ["difficult"] * 5 + ["easy"] * 3


def test_easy_fraction_is_the_quantile_from_above() -> None:
    assert cut_gaps(GAPS, SplitStage())[0] == 0.25
    assert cut_gaps(GAPS, SplitStage(easy_fraction=0.25)) == cut_gaps(GAPS, SplitStage(quantile=0.75))
    assert cut_gaps(GAPS, SplitStage(quantile=0.5, sign="absolute"))[0] == 1.0


@pytest.mark.parametrize(
    ("negative", "expected"),
    [("difficult", (3, 5, 0)), ("drop", (3, 3, 2)), ("flip", (5, 3, 0)), ("keep_easy", (5, 3, 0))],
)
def test_pairs_that_contradict_their_label_clearly_go_where_asked(
    negative: str, expected: tuple[int, int, int]
) -> None:
    index = GapIndex({"all": SortedGaps.of(GAPS, 1.0)}, 1.0)
    preview = preview_split(index, SplitStage(threshold=1.0, negative=negative))
    assert (preview.easy.pairs, preview.difficult.pairs, preview.dropped.pairs) == expected


def test_only_the_signed_split_asks_whether_a_pair_contradicts_its_label() -> None:
    config = SplitStage(threshold=1.0, sign="absolute", negative="drop")
    assert parts(GAPS, config) == [
        "easy",
        "easy",
        "difficult",
        "difficult",
        "difficult",
        "easy",
        "easy",
        "easy",
    ]


def test_a_threshold_below_zero_leaves_only_lower_gaps_to_contradict() -> None:
    config = SplitStage(threshold=-0.7, negative="drop")
    assert parts(GAPS, config) == ["dropped", "dropped", "easy", "easy", "easy", "easy", "easy", "easy"]


def test_tokens_are_unknown_where_the_scores_do_not_tell_them() -> None:
    preview = preview_split(GapIndex({"all": SortedGaps.of(GAPS, 1.0)}, 1.0), SplitStage())
    assert preview.easy.tokens is None
    assert preview.to_json()["easy"]["pairs"] == 4  # type: ignore[index]


def test_nothing_to_split_is_refused() -> None:
    with pytest.raises(EmptySplit, match="No pair"):
        preview_split(GapIndex({"all": SortedGaps.of(np.array([]), 1.0)}, 1.0), SplitStage())
