"""Whether two lists of scores are the same, and say anything."""

import pytest

from experiments.lm_eval.__main__ import compare


@pytest.mark.parametrize(
    ("plain", "ours", "status", "verdicts"),
    [
        ({"a acc": 0.525, "b acc": 0.4}, {"a acc": 0.52509, "b acc": 0.4}, 0, ["equal", "equal"]),
        ({"a acc": 0.525, "b acc": 0.4}, {"a acc": 0.5252, "b acc": 0.4}, 1, ["DIFFERENT", "equal"]),
        ({"a acc": 0.525, "b acc": 0.4}, {"a acc": 0.525}, 1, ["equal", "DIFFERENT"]),
        ({"a acc": 0.0, "b acc": 1.0}, {"a acc": 0.0, "b acc": 1.0}, 1, ["TRIVIAL", "TRIVIAL"]),
        ({}, {"a acc": 0.5}, 1, []),
    ],
)
def test_scores_are_equal_only_where_both_sides_say_the_same(
    plain: dict[str, float],
    ours: dict[str, float],
    status: int,
    verdicts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert compare(plain, ours) == status
    assert [line.rpartition(", ")[2] for line in capsys.readouterr().out.splitlines()] == verdicts
