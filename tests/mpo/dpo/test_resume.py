import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mpo.checkpoints import load_state
from mpo.config import DPOStage
from mpo.dpo import train as stage
from mpo.dpo.train import train_dpo
from mpo.errors import ReferenceChanged, StageInterrupted
from mpo.records import write_rows
from mpo.training_config import LoRAConfig
from tests.mpo.tiny import RecordingReporter, task_of, untimed, word_pairs, write_policy

CONFIG = DPOStage(learning_rate=2e-3, epochs=2, batch_pairs=4, curriculum=[2.0])
"""Two passes of 4 steps: 7 and 6 pairs, so that steps are uneven."""

LORA = LoRAConfig(rank=4, alpha=8)
Folders = Mapping[str, Path]


class KeepingReporter(RecordingReporter):
    """Keeps every checkpoint that there can be, in folders by step."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def checkpoint_due(self) -> bool:
        return True

    def checkpoint(self, folder: Path, step: int) -> None:
        self.checkpoints.append(step)
        shutil.copytree(folder, self.folder / str(step))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("resume")
    pairs = [replace(pair, gap=3.0 if row % 2 == 0 else 1.0) for row, pair in enumerate(word_pairs(13))]
    write_rows(folder / "easy.parquet", pairs)
    base = write_policy(folder / "base")
    return {"policy": base, "reference": base, "base": base, "data": folder / "easy.parquet"}


def results(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("config", "boundaries"),
    [
        (CONFIG, [0, 1, 2, 3, 4, 5, 6, 7]),
        (CONFIG.model_copy(update={"lora": LORA}), [0, 2, 4, 6]),
        (CONFIG.model_copy(update={"engine": "trl"}), [0, 2, 4, 6]),
    ],
    ids=["whole", "lora", "trl"],
)
def test_resumed_equals_uninterrupted_bit_for_bit(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: DPOStage, boundaries: list[int]
) -> None:
    reporter = KeepingReporter(tmp_path / "kept")
    train_dpo(task_of(config, tmp_path / "whole", folders), reporter)
    assert reporter.checkpoints == [0, 1, 2, 3, 4, 5, 6, 7], "the border of the passes is at 4"
    asked: list[int] = []
    ask = stage.pair_logprobs
    monkeypatch.setattr(stage, "pair_logprobs", lambda *given: asked.append(len(given[1])) or ask(*given))
    for step in boundaries:
        asked.clear()
        rest, output = RecordingReporter(), tmp_path / f"rest{step}"
        train_dpo(task_of(config, output, folders, resume=tmp_path / "kept" / str(step)), rest)
        assert [(done, total) for done, total, _ in rest.steps] == [(k, 8) for k in range(step + 1, 9)]
        assert [untimed(m) for *_, m in rest.steps] == [untimed(m) for *_, m in reporter.steps[step:]]
        assert results(output) == results(tmp_path / "whole")
        assert asked == ([6] if step < 4 else []), "what is kept is not computed again"


@pytest.mark.parametrize(("stop_after", "kept_at"), [(0, []), (3, [0, 3]), (4, [0, 4])])
def test_a_stop_leaves_what_the_rest_needs(
    folders: Folders, tmp_path: Path, stop_after: int, kept_at: list[int]
) -> None:
    # After 4 steps the stop comes while the second pass's reference is being computed; after 0, the first's.
    train_dpo(task_of(CONFIG, tmp_path / "whole", folders), RecordingReporter())
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=stop_after)
    with pytest.raises(StageInterrupted):
        train_dpo(task_of(CONFIG, tmp_path / "first", folders), first)
    assert first.checkpoints == kept_at
    assert not list((tmp_path / "first").iterdir())
    resume = tmp_path / "kept" if kept_at else None
    train_dpo(task_of(CONFIG, tmp_path / "rest", folders, resume=resume), RecordingReporter())
    assert results(tmp_path / "rest") == results(tmp_path / "whole")


def test_a_stop_right_after_the_reference_takes_no_step(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = RecordingReporter(kept=tmp_path / "kept")
    monkeypatch.setattr(reporter, "should_stop", lambda: reporter.checkpoints == [0])
    with pytest.raises(StageInterrupted):
        train_dpo(task_of(CONFIG, tmp_path / "first", folders), reporter)
    assert reporter.steps == []
    kept = load_state(tmp_path / "kept" / "pass.safetensors")
    assert kept["reference"]["chosen"].shape == (7,)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["pass.safetensors"]


def test_another_reference_is_refused(folders: Folders, tmp_path: Path) -> None:
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=2)
    with pytest.raises(StageInterrupted):
        train_dpo(task_of(CONFIG, tmp_path / "first", folders), first)
    other = {**folders, "reference": write_policy(tmp_path / "other", seed=4)}
    with pytest.raises(ReferenceChanged, match="Resume with the one") as caught:
        train_dpo(task_of(CONFIG, tmp_path / "rest", other, resume=tmp_path / "kept"), RecordingReporter())
    assert caught.value.code == "reference_changed"
    assert caught.value.facts["kept"] != caught.value.facts["given"]
