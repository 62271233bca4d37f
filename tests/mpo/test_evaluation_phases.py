import json
from pathlib import Path

import pytest

from mpo.config import EvaluateStage
from mpo.errors import StageInterrupted
from mpo.evaluation import evaluate
from mpo.reporter import StageTask
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy, write_reward_model

PHASES = 8
"""Judge's gaps, prompts' gaps, two models' answers, two scorers, two KLs."""

OUTPUTS = ("report.json", "samples.jsonl", "summary.json")


class ImpatientReporter(RecordingReporter):
    """Asks to stop at the nth question after so many steps: in the middle of a phase."""

    def __init__(self, kept: Path, steps: int, questions: int) -> None:
        super().__init__(kept)
        self.after, self.questions = steps, questions

    def should_stop(self) -> bool:
        self.questions -= len(self.steps) >= self.after
        return self.questions < 0


class DueReporter(RecordingReporter):
    """Always wants a checkpoint."""

    def checkpoint_due(self) -> bool:
        return True


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    for seed, name in enumerate(("sft", "dpo")):
        write_policy(folder / name, seed)
    write_reward_model(folder / "reward_model", folder / "sft")
    write_reward_model(folder / "judge", folder / "sft", seed=1)
    write_pairs(folder / "eval.parquet", 8)
    evaluate(evaluate_task(folder, folder / "uninterrupted"), RecordingReporter())
    return folder


def evaluate_task(house: Path, output: Path, resume: Path | None = None) -> StageTask:
    config = EvaluateStage(
        prompts=6, samples=2, max_new_tokens=5, max_prompt_tokens=16, max_response_tokens=8
    )
    inputs: dict[str, Path | list[Path]] = {
        "models": [house / "sft", house / "dpo"],
        "reward_model": house / "reward_model",
        "judge": house / "judge",
        "data": house / "eval.parquet",
        "dpo": house / "dpo",
    }
    return task_of(config, output, inputs, resume=resume)


def assert_same_outputs(house: Path, output: Path) -> None:
    assert sorted(path.name for path in output.iterdir()) == sorted(OUTPUTS)
    for name in OUTPUTS:
        assert (output / name).read_bytes() == (house / "uninterrupted" / name).read_bytes()


@pytest.mark.parametrize("phase", range(1, PHASES))
def test_resumed_after_any_phase_equals_uninterrupted(house: Path, tmp_path: Path, phase: int) -> None:
    first = RecordingReporter(tmp_path / "kept", stop_after=phase)
    with pytest.raises(StageInterrupted):
        evaluate(evaluate_task(house, tmp_path / "first"), first)
    assert first.checkpoints == [phase]
    second = RecordingReporter()
    evaluate(evaluate_task(house, tmp_path / "second", tmp_path / "kept"), second)
    assert [step[:2] for step in second.steps] == [(n, PHASES) for n in range(phase + 1, PHASES + 1)]
    assert_same_outputs(house, tmp_path / "second")


@pytest.mark.parametrize(
    ("phase", "questions"), [(2, 20), (6, 2)], ids=["while it samples", "while it measures KL"]
)
def test_stopped_within_a_phase_keeps_the_finished_ones(
    house: Path, tmp_path: Path, phase: int, questions: int
) -> None:
    reporter = ImpatientReporter(tmp_path / "kept", phase, questions)
    with pytest.raises(StageInterrupted) as caught:
        evaluate(evaluate_task(house, tmp_path / "first"), reporter)
    assert (reporter.checkpoints, len(reporter.steps), caught.value.facts) == (
        [phase],
        phase,
        {"phases": phase},
    )
    evaluate(evaluate_task(house, tmp_path / "second", tmp_path / "kept"), RecordingReporter())
    assert_same_outputs(house, tmp_path / "second")


def test_a_due_checkpoint_is_handed_over_once_a_phase(house: Path, tmp_path: Path) -> None:
    reporter = DueReporter(tmp_path / "kept")
    evaluate(evaluate_task(house, tmp_path / "out"), reporter)
    assert reporter.checkpoints == list(range(1, PHASES))
    assert len(json.loads((tmp_path / "kept" / "state.json").read_text())) == PHASES - 1
    assert_same_outputs(house, tmp_path / "out")


def test_stopped_twice_goes_on_from_the_second_stop(house: Path, tmp_path: Path) -> None:
    kept, resume = tmp_path / "kept", None
    for attempt, steps in enumerate((2, 3)):
        reporter = RecordingReporter(kept, stop_after=steps)
        with pytest.raises(StageInterrupted):
            evaluate(evaluate_task(house, tmp_path / f"attempt-{attempt}", resume), reporter)
        resume = kept
    assert reporter.checkpoints == [5]
    evaluate(evaluate_task(house, tmp_path / "last", kept), RecordingReporter())
    assert_same_outputs(house, tmp_path / "last")


def test_asked_to_stop_before_anything_is_done_leaves_no_checkpoint(house: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter(tmp_path / "kept", stop_after=0)
    with pytest.raises(StageInterrupted):
        evaluate(evaluate_task(house, tmp_path / "out"), reporter)
    assert (reporter.steps, reporter.checkpoints) == ([], [])
