import math

from mpo_client.cli.charts import bar, curve, histogram
from mpo_client.reward_gaps import RewardGaps

GAPS = {
    "job": "job_1",
    "pairs": 12,
    "bin_edges": [0.0, 1.0, 2.0, 3.0],
    "counts": [8, 4, 0],
    "below": 0,
    "above": 0,
    "threshold": 1.0,
    "easy": 4,
    "difficult": 8,
    "dropped": 0,
    "scored_by": "cross_fit",
}


def test_a_histogram_has_a_bin_a_line_and_a_rule_at_the_threshold() -> None:
    lines = histogram(RewardGaps.model_validate(GAPS), 34).plain.splitlines()
    assert lines[0] == "   0.000    1.000      8 ██████████"
    assert lines[1].startswith("── threshold 1.000 ─")
    assert lines[2] == "   1.000    2.000      4 █████"
    assert lines[3].rstrip() == "   2.000    3.000      0"


def test_what_is_not_nothing_is_seen() -> None:
    assert bar(1, 1000, 10) == "▏"
    assert bar(0, 1000, 10) == ""
    assert bar(0, 0, 10) == ""
    assert bar(3, 4, 1) == "▊"


def test_a_curve_spans_its_height_and_leaves_gaps() -> None:
    assert curve([0, 1, 2, 3, 4, 5, 6, 7], 8) == ["▁▂▃▄▅▆▇█"]
    assert curve([1.0, None, math.nan, 2.0], 4) == ["▁  █"]
    assert curve([5.0, 5.0], 10) == ["▁▁"]
    top, bottom = curve([0, 1], 2, height=2)
    assert (top, bottom) == (" █", "▁█")
    assert len(curve(list(range(1000)), 40)[0]) == 40
    assert curve([], 10) == [""]
