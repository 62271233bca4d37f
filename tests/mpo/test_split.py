import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpo.config import SplitStage
from mpo.errors import EmptySplit, InvalidScores
from mpo.gap_cuts import preview_split
from mpo.gap_index import index_scores, open_index, read_scores
from mpo.records import PreferencePair, pairs_of, read_pairs, read_rows, write_rows
from mpo.reporter import StageInput, StageTask
from mpo.split import split_by_gap
from tests.mpo.recording import RecordingReporter

GAPS = [1.5, -2.0, 0.0, 0.25, 3.0, -0.5]


def split(
    folder: Path,
    config: SplitStage,
    gaps: list[float] = GAPS,
    scored: list[int] | None = None,
    **more: list[int],
) -> Path:
    """Runs the stage on a pair for each gap, of which the scores hold `scored`, in that order."""
    pairs = [
        PreferencePair(f"p{n}", f"prompt {n % 4}", f"good {n}", f"bad {n}", margin=1.0, group=n % 4)
        for n in range(len(gaps))
    ]
    write_rows(folder / "train.parquet", pairs)
    rows = list(range(len(gaps)))[::-1] if scored is None else scored
    scores = {
        "id": [f"p{row}" for row in rows],
        "reward_chosen": [gaps[row] + row for row in rows],
        "reward_rejected": [float(row) for row in rows],
        "gap": [gaps[row] for row in rows],
        "fold": [row % 3 + 1 for row in rows],
    }
    pq.write_table(pa.table(scores | more), folder / "scores.parquet")
    output = folder / "out"
    output.mkdir()
    inputs = {
        role: (StageInput(role, folder / f"{name}.parquet"),)
        for role, name in (("scores", "scores"), ("data", "train"))
    }
    split_by_gap(StageTask(config, inputs, output, seed=0), RecordingReporter())
    return output


def ids(path: Path) -> list[str]:
    return [pair.id for pair in read_pairs(path)]


def test_each_pair_goes_to_its_part_in_the_order_of_the_data(tmp_path: Path) -> None:
    output = split(tmp_path, SplitStage(threshold=1.0, negative="drop"))
    assert ids(output / "easy.parquet") == ["p0", "p4"]
    assert ids(output / "difficult.parquet") == ["p2", "p3", "p5"]
    assert ids(output / "dropped.parquet") == ["p1"]
    table = pq.read_table(output / "split.parquet").to_pydict()
    assert table["id"] == [f"p{n}" for n in range(6)]
    assert table["part"] == ["easy", "dropped", "difficult", "difficult", "easy", "difficult"]
    assert table["why"][:3] == ["at_or_above_threshold", "negative_drop", "below_threshold"]
    assert table["row"] == [0, 0, 0, 1, 1, 2]


def test_parts_keep_pairs_whole_and_carry_their_scores(tmp_path: Path) -> None:
    output = split(tmp_path, SplitStage(threshold=1.0))
    assert read_pairs(output / "easy.parquet")[1] == PreferencePair(
        "p4", "prompt 0", "good 4", "bad 4", margin=1.0, group=0, gap=3.0
    )
    rows = pq.read_table(output / "easy.parquet").to_pylist()
    assert [(r["reward_chosen"], r["reward_rejected"], r["fold"]) for r in rows] == [
        (1.5, 0.0, 1),
        (7.0, 4.0, 2),
    ]


def test_flipped_pairs_are_easy_with_everything_exchanged(tmp_path: Path) -> None:
    output = split(tmp_path, SplitStage(threshold=1.0, negative="flip"))
    (flipped,) = [r for r in pq.read_table(output / "easy.parquet").to_pylist() if r["id"] == "p1"]
    assert (flipped["chosen"], flipped["rejected"], flipped["margin"]) == ("bad 1", "good 1", None)
    assert (flipped["reward_chosen"], flipped["reward_rejected"], flipped["gap"]) == (1.0, -1.0, 2.0)
    index = open_index(output / "gaps")
    assert index.parts["easy"].gaps.tolist() == [1.5, 2.0, 3.0]
    assert index.parts["all"].gaps.tolist() == sorted(GAPS)
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["flipped"], summary["easy"], summary["difficult"]) == (1, 3, 3)


def test_summary_and_preview_tell_the_same_split(tmp_path: Path) -> None:
    config = SplitStage(easy_fraction=0.3, negative="flip")
    gaps = [float(g) for g in np.random.default_rng(0).normal(0.3, 1, 500)]
    output = split(tmp_path, config, gaps, tokens=list(range(500)))
    summary = json.loads((output / "summary.json").read_text())
    before = preview_split(index_scores(read_scores(tmp_path / "scores.parquet")), config)
    after = preview_split(open_index(output / "gaps"), config)
    assert before.threshold == after.threshold == summary["threshold"]
    for part in ("easy", "difficult", "dropped"):
        told = getattr(before, part)
        assert told.pairs == summary[part] == pq.read_metadata(output / f"{part}.parquet").num_rows
        assert told.tokens == getattr(after, part).tokens == summary["parts"][part]["tokens"]
        assert told.accuracy == summary["parts"][part]["accuracy"]
    assert summary["easy"] + summary["difficult"] + summary["dropped"] == summary["pairs"] == 500


def test_prompts_in_both_parts_are_counted(tmp_path: Path) -> None:
    output = split(tmp_path, SplitStage(threshold=1.0))
    # Prompts 0 (p0, p4) are easy only; those of p1, p5; p2; p3 are difficult only.
    assert json.loads((output / "summary.json").read_text())["prompts_in_easy_and_difficult"] == 0
    again = tmp_path / "again"
    again.mkdir()
    output = split(again, SplitStage(threshold=2.0))
    assert json.loads((output / "summary.json").read_text())["prompts_in_easy_and_difficult"] == 1


def test_index_leads_from_a_gap_to_its_pair(tmp_path: Path) -> None:
    output = split(tmp_path, SplitStage(threshold=1.0))
    lowest = open_index(output / "gaps").parts["difficult"].rows("gap", 0, 2)
    assert [p.id for p in pairs_of(read_rows(output / "difficult.parquet", lowest))] == ["p1", "p5"]


def test_pairs_without_a_score_are_in_no_part(tmp_path: Path) -> None:
    output = split(tmp_path, SplitStage(threshold=1.0), scored=[4, 2, 0])
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["pairs"], summary["unscored"]) == (3, 3)
    assert pq.read_table(output / "split.parquet").column("id").to_pylist() == ["p0", "p2", "p4"]


def test_scores_of_other_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidScores, match="1 of 6 scores"):
        split(tmp_path, SplitStage(threshold=1.0), id=["p0", "p1", "p2", "p3", "p4", "stranger"])


@pytest.mark.parametrize(("threshold", "empty"), [(9.0, "easy"), (-9.0, "difficult")])
def test_a_part_that_training_needs_and_lacks_is_refused_with_the_numbers(
    tmp_path: Path, threshold: float, empty: str
) -> None:
    with pytest.raises(EmptySplit, match=f"no {empty} pair") as caught:
        split(tmp_path, SplitStage(threshold=threshold))
    assert (caught.value.facts["lowest_gap"], caught.value.facts["highest_gap"]) == (-2.0, 3.0)


def test_many_rows_are_split_as_few(tmp_path: Path) -> None:
    gaps = [float(g) for g in np.random.default_rng(1).normal(size=5000)]
    output = split(tmp_path, SplitStage(threshold=0.5, negative="flip"), gaps)
    table = pq.read_table(output / "split.parquet").to_pydict()
    for part in ("easy", "difficult"):
        expected = [id_ for id_, p in zip(table["id"], table["part"], strict=True) if p == part]
        assert ids(output / f"{part}.parquet") == expected


def test_a_part_can_be_split_again(tmp_path: Path) -> None:
    first = split(tmp_path, SplitStage(threshold=0.0))
    pairs = [StageInput("easy", first / "easy.parquet")]
    rows = pq.read_table(tmp_path / "scores.parquet")
    kept = set(ids(first / "easy.parquet"))
    chosen = pa.array([id_ in kept for id_ in rows["id"].to_pylist()])
    pq.write_table(rows.filter(chosen), tmp_path / "s.parquet")
    again = tmp_path / "again"
    again.mkdir()
    inputs = {"scores": (StageInput("s", tmp_path / "s.parquet"),), "data": tuple(pairs)}
    split_by_gap(StageTask(SplitStage(threshold=1.0), inputs, again, seed=0), RecordingReporter())
    assert [pair.gap for pair in read_pairs(again / "easy.parquet")] == [1.5, 3.0]
    assert [pair.gap for pair in read_pairs(again / "difficult.parquet")] == [0.0, 0.25]
