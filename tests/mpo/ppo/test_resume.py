from pathlib import Path

import pytest
import torch
from torch import Tensor

from mpo.checkpoints import load_state
from mpo.config import KLController, PPOStage
from mpo.errors import StageInterrupted
from mpo.ppo.networks import weights_of
from mpo.ppo.state import STATE_FILE, PPOTraining, restore
from mpo.ppo.train import run
from mpo.reporter import StageTask
from tests.mpo.ppo.world import training_of
from tests.mpo.tiny import RecordingReporter, task_of

ITERATIONS = 3
FORMS: dict[str, dict[str, object]] = {
    "separate critic": {},
    "shared trunk": {"critic": "shared_trunk"},
    "KL controller": {"kl_controller": KLController(target=0.01, horizon=20)},
    "EMA reference": {"ema_reference": 0.7},
    "all options": {
        "critic": "shared_trunk",
        "kl_controller": KLController(target=0.01, horizon=20),
        "ema_reference": 0.7,
    },
}


class StopInRollout(RecordingReporter):
    """Asks to stop in the middle of sampling an iteration."""

    def __init__(self, kept: Path, iteration: int) -> None:
        super().__init__(kept)
        self.iteration, self.asked = iteration, 0

    def should_stop(self) -> bool:
        self.asked += len(self.steps) == self.iteration
        return self.asked == 6  # later answers are no again


def new_training(form: str) -> PPOTraining:
    settings = {
        "learning_rate": 3e-3,
        "rollout_prompts": 8,
        "episodes": 8 * ITERATIONS,
        "mini_batches": 2,
        "epochs": 2,
        "max_new_tokens": 4,
        "max_prompt_tokens": 8,
        "max_response_tokens": 8,
        **FORMS[form],
    }
    return training_of(PPOStage.model_validate(settings), prompts=5)


def task_in(folder: Path, training: PPOTraining) -> StageTask:
    return task_of(training.config, folder, {})


def state_of(training: PPOTraining) -> dict[str, Tensor]:
    """All tensors that the training ends with."""
    found = {f"reference.{name}": w for name, w in weights_of(training.networks.reference).items()}
    for trained in training.trained:
        found |= {f"{trained.name}.{name}": w for name, w in trained.weights.items()}
        for number, moments in trained.optimizer.state_dict()["state"].items():
            found |= {f"{trained.name}.{number}.{name}": m for name, m in moments.items()}
    return found


def untimed(reporter: RecordingReporter) -> list[dict[str, float]]:
    return [{k: v for k, v in metrics.items() if "per_second" not in k} for _, _, metrics in reporter.steps]


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[PPOTraining, RecordingReporter]]:
    wholes = {}
    for form in FORMS:
        training, reporter = new_training(form), RecordingReporter()
        run(training, task_in(tmp_path_factory.mktemp("whole"), training), reporter)
        wholes[form] = (training, reporter)
    return wholes


@pytest.mark.parametrize("iteration", range(ITERATIONS))
@pytest.mark.parametrize(
    ("form", "where"),
    [(form, "at the boundary") for form in FORMS]
    + [(form, "in the middle of sampling") for form in ("separate critic", "all options")],
)
def test_resumed_equals_uninterrupted_bit_for_bit(
    uninterrupted: dict[str, tuple[PPOTraining, RecordingReporter]],
    tmp_path: Path,
    form: str,
    iteration: int,
    where: str,
) -> None:
    whole, whole_reporter = uninterrupted[form]
    kept = tmp_path / "kept"
    stops = (
        RecordingReporter(kept, stop_after=iteration)
        if where == "at the boundary"
        else StopInRollout(kept, iteration)
    )
    first = new_training(form)
    with pytest.raises(StageInterrupted):
        run(first, task_in(tmp_path / "first", first), stops)
    assert (len(stops.steps), stops.checkpoints) == (iteration, [iteration])
    second, reporter = new_training(form), RecordingReporter()
    restore(second, kept)
    run(second, task_in(tmp_path / "second", second), reporter)
    assert untimed(stops) + untimed(reporter) == untimed(whole_reporter)
    assert second.kl_coefficient == whole.kl_coefficient
    ended, expected = state_of(second), state_of(whole)
    assert ended.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(ended[name], tensor)] == []


def test_what_the_options_change_is_changed_in_the_uninterrupted_runs(
    uninterrupted: dict[str, tuple[PPOTraining, RecordingReporter]],
) -> None:
    start = {form: new_training(form) for form in FORMS}
    for form, (training, _) in uninterrupted.items():
        before, after = state_of(start[form]), state_of(training)
        moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
        assert any(name.startswith("policy.") for name in moved)
        assert any(name.startswith("reference.") for name in moved) == ("ema_reference" in FORMS[form])
        assert (training.kl_coefficient != 0.05) == ("kl_controller" in FORMS[form])


def test_a_checkpoint_holds_the_reference_only_where_it_moves(tmp_path: Path) -> None:
    for form in ("separate critic", "EMA reference"):
        training, kept = new_training(form), tmp_path / form
        with pytest.raises(StageInterrupted):
            run(training, task_in(tmp_path / f"{form} run", training), RecordingReporter(kept, stop_after=1))
        state = load_state(kept / STATE_FILE)
        assert ("reference" in state) == (form == "EMA reference")


def test_equal_rewards_are_counted_across_a_checkpoint(tmp_path: Path) -> None:
    config = PPOStage(
        rollout_prompts=4, episodes=40, max_new_tokens=2, equal_iterations=3, missing_eos_penalty=0
    )
    first, kept = training_of(config, scale=0.0), tmp_path / "kept"
    with pytest.raises(StageInterrupted):
        run(first, task_in(tmp_path / "first", first), RecordingReporter(kept, stop_after=2))
    second, reporter = training_of(config, scale=0.0), RecordingReporter()
    restore(second, kept)
    run(second, task_in(tmp_path / "second", second), reporter)
    assert second.iteration == 3
    (warning,) = reporter.warnings
    assert warning.startswith("PPO stopped after 3 of 10 iterations: all rewards of an iteration were equal")
