import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from mpo.batches import even_passes
from mpo.checkpoints import load_state
from mpo.config import RewardModelStage, SFTStage
from mpo.errors import StageInterrupted, TrainingDiverged
from mpo.policies import load_policy, load_reward_model
from mpo.reward_model.objective import PairRewards, PairRows
from mpo.sft.train import ResponseTokens
from mpo.step_gradients import MEMORY_IS_SHORT
from mpo.tokenization import EncodedPair
from mpo.training import Objective, Training, diverged, restore, run, save, train_step
from mpo.training_config import TrainingConfig
from tests.mpo.tiny import PAD, RecordingReporter, task_of, write_policy, write_reward_model

PEAK = 1e-3
KINDS = ("sft", "reward_model")


@dataclass(frozen=True)
class InParts:
    """An objective whose forward passes hold `rows` rows."""

    objective: Objective
    rows: int

    @property
    def ids(self) -> Sequence[str]:
        return self.objective.ids

    @property
    def lengths(self) -> Sequence[int]:
        return self.objective.lengths

    @property
    def tokens(self) -> Sequence[int]:
        return self.objective.tokens

    def weight(self, row: int) -> float:
        return self.objective.weight(row)

    def passes(self, model: PreTrainedModel, rows: Sequence[int]) -> Iterable[Sequence[int]]:
        return even_passes(rows, self.rows)

    def losses(self, model: PreTrainedModel, rows: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert len(rows) <= self.rows
        return self.objective.losses(model, rows)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_reward_model(folder / "reward_model", write_policy(folder / "sft"))
    return folder


def encoded(count: int) -> list[EncodedPair]:
    """Random pairs of many lengths."""
    draw = torch.Generator().manual_seed(3)

    def ids(low: int, high: int) -> list[int]:
        size = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(3, 290, (size,), generator=draw).tolist()

    return [EncodedPair(f"row {n}", [1, *ids(0, 12)], ids(1, 9), ids(1, 9), True, True) for n in range(count)]


def objective_of(kind: str, count: int = 8) -> Objective:
    pairs = encoded(count)
    if kind == "reward_model":
        margins, weights = [0.1 * (n % 4) for n in range(count)], [1.0 + n % 3 for n in range(count)]
        return PairRewards(PairRows(pairs, margins, weights), PAD, label_smoothing=0.1, centring=0.01)
    prompts, responses = [pair.prompt_ids for pair in pairs], [pair.chosen_ids for pair in pairs]
    return ResponseTokens([pair.id for pair in pairs], prompts, responses, PAD, vocabulary=296)


def load(house: Path, kind: str) -> PreTrainedModel:
    return (load_reward_model if kind == "reward_model" else load_policy)(house / kind)


def training_of(
    house: Path, kind: str = "sft", objective: Objective | None = None, seed: int = 0, **options: object
) -> Training:
    options = {"learning_rate": PEAK, "batch_pairs": 8} | options
    config: TrainingConfig = (RewardModelStage if kind == "reward_model" else SFTStage)(**options)
    return Training(load(house, kind).train(), objective or objective_of(kind), config, seed)


def flat(tensors: Iterator[Tensor | None]) -> Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors if t is not None])


def weights(training: Training) -> Tensor:
    return flat(iter(training.model.parameters()))


def apart(left: Tensor, right: Tensor) -> float:
    """Distance of two vectors, relative to the length of the second."""
    return ((left - right).norm() / right.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_of_eight_equals_its_parts_accumulated(house: Path, kind: str, rows: int) -> None:
    whole = training_of(house, kind, InParts(objective_of(kind), 8))
    parts = training_of(house, kind, InParts(objective_of(kind), rows))
    assert train_step(parts) == pytest.approx(train_step(whole), rel=1e-5, abs=1e-6)
    gradients = [flat(p.grad for p in training.model.parameters()) for training in (parts, whole)]
    assert gradients[1].norm() > 0.1
    assert apart(*gradients) < 1e-6
    start = flat(iter(load(house, kind).parameters()))
    assert apart(weights(parts), weights(whole)) < 1e-6
    assert apart(weights(whole), start) > 1e-4


@pytest.fixture(scope="module")
def models(house: Path) -> dict[str, PreTrainedModel]:
    loaded = {kind: load(house, kind) for kind in KINDS}
    with torch.no_grad():  # rewards of the usual size: those of 20 are known to 2e-6 only, in fp32
        loaded["reward_model"].score.weight /= 20
    return loaded


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 19), min_size=1, max_size=6, unique=True))
@pytest.mark.parametrize("kind", KINDS)
def test_order_and_padding_of_rows_change_no_loss(
    models: dict[str, PreTrainedModel], kind: str, rows: list[int]
) -> None:
    objective = objective_of(kind, 20)
    with torch.no_grad():
        alone = [objective.losses(models[kind], [row])[0].item() for row in rows]
        together = objective.losses(models[kind], rows)[0].item()
        turned = objective.losses(models[kind], rows[::-1])[0].item()
    assert together == pytest.approx(sum(alone), rel=1e-6, abs=1e-6)
    assert turned == pytest.approx(together, rel=1e-6, abs=1e-6)


def mapped_files(tensor: Tensor) -> list[str]:
    """Those in whose place in memory a tensor lies."""
    ranges = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    places = [(*(int(at, 16) for at in each[0].split("-")), each[5]) for each in ranges if len(each) > 5]
    return [name for start, stop, name in places if start <= tensor.data_ptr() < stop and "/" in name]


def test_weights_in_training_lie_in_the_file_they_came_from_no_longer(house: Path) -> None:
    before = load(house, "sft")
    assert mapped_files(before.get_input_embeddings().weight)[0].endswith(".safetensors")
    training = training_of(house)
    assert not any(mapped_files(weight) for weight in training.trained().values())
    assert torch.equal(weights(training), flat(before.parameters()))


def test_the_learning_rate_falls_linearly_from_its_peak(house: Path) -> None:
    training = training_of(house, objective=objective_of("sft", 20), epochs=2)
    used = []
    while training.steps_done < training.total_steps:
        metrics = train_step(training)
        assert metrics["learning_rate"] == training.optimizer.param_groups[0]["lr"]
        used.append(metrics["learning_rate"])
    assert used == pytest.approx([PEAK * (1 - k / 6) for k in range(6)])


def test_the_first_step_is_adamws(house: Path) -> None:
    # After one step both moments are the gradient's own: each weight moves by lr·g / (|g| + ε).
    training = training_of(house, "reward_model")
    before = weights(training)
    metrics = train_step(training)
    gradient = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in training.model.parameters())
    assert metrics["grad_norm"] > 1, "nothing to clip"
    assert gradient.norm().item() == pytest.approx(1.0, abs=1e-4)
    expected = before - PEAK * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(weights(training), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("epochs", "max_steps", "total"), [(1, None, 3), (2, None, 6), (2, 4, 4), (1, 9, 3)])
def test_max_steps_shortens_and_never_lengthens(
    house: Path, epochs: int, max_steps: int | None, total: int
) -> None:
    objective = objective_of("sft", 20)
    training = training_of(house, objective=objective, epochs=epochs, max_steps=max_steps)
    assert training.total_steps == total


def test_every_pass_holds_every_row_once_in_an_order_of_its_own(house: Path) -> None:
    training = training_of(house, objective=objective_of("sft", 20), epochs=2)
    passes: list[list[int]] = [[], []]
    for step in range(6):
        training.steps_done = step
        passes[step // 3] += training.next_rows()
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(20))
    assert passes[0] != passes[1]
    other = training_of(house, objective=objective_of("sft", 20), seed=5)
    assert other.next_rows() != passes[0][:8]


def test_a_learning_rate_of_zero_moves_nothing(house: Path) -> None:
    training = training_of(house, learning_rate=0.0)
    before = weights(training)
    assert train_step(training)["grad_norm"] > 0
    assert torch.equal(weights(training), before)


def test_weights_that_are_all_zero_move_nothing(house: Path) -> None:
    objective = objective_of("reward_model")
    rows = replace(objective.rows, weights=[0.0] * 8)
    training = training_of(house, "reward_model", replace(objective, rows=rows))
    before = weights(training)
    metrics = train_step(training)
    assert (metrics["loss"], metrics["grad_norm"]) == (0, 0)
    assert torch.equal(weights(training), before)


def test_a_loss_that_is_not_finite_names_its_rows_and_changes_no_weight(house: Path) -> None:
    training = training_of(house, objective=objective_of("sft", 10), batch_pairs=10, epochs=2)
    healthy = train_step(training)
    with torch.no_grad():
        training.model.model.embed_tokens.weight[1] = float("inf")
    before = weights(training)
    rows = [f"row {row}" for row in training.next_rows()]
    with pytest.raises(TrainingDiverged) as caught:
        train_step(training)
    text = str(caught.value)
    assert f"not finite at step 2, on the rows {', '.join(rows[:8])} and 2 more." in text
    assert f"Before it: loss {healthy['loss']:.4g}, learning_rate 0.001, grad_norm" in text
    assert caught.value.facts == {"step": 2, "rows": rows, "last_metrics": healthy}
    assert torch.equal(weights(training).nan_to_num(), before.nan_to_num())
    assert training.steps_done == 1


def test_a_failure_at_the_first_step_says_that_there_was_none_before() -> None:
    assert "on the rows a, b. Before it: no step was taken." in str(diverged(1, ["a", "b"], {}))


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_gradient_that_is_not_finite_is_as_bad_as_a_loss(house: Path, part: str) -> None:
    class Broken(ResponseTokens):
        def losses(self, model: PreTrainedModel, rows: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
            loss, sums = super().losses(model, rows)
            if part == "loss":
                return loss / 0, sums
            # Its value is finite, its slope at 0 is not.
            return loss + (loss - loss.detach()).abs().sqrt(), sums

    training = training_of(house, objective=Broken(**vars(objective_of("sft"))))
    with pytest.raises(TrainingDiverged):
        train_step(training)


def test_a_checkpoint_holds_what_is_trained_and_nothing_that_is_frozen(house: Path, tmp_path: Path) -> None:
    training = training_of(house)
    training.model.requires_grad_(False)
    training.model.lm_head.requires_grad_(True)
    training = Training(training.model, training.objective, training.config, 0)
    train_step(training)
    save(training, tmp_path)
    state = load_state(tmp_path / "state.safetensors")
    assert state["parameters"].keys() == {"lm_head.weight"}
    assert len(state["optimizer"]["state"]) == 1
    head = training.model.lm_head.weight
    assert (tmp_path / "state.safetensors").stat().st_size < 3 * head.nbytes + 10_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boundary", range(1, 6))
def test_restored_steps_equal_uninterrupted_ones_bit_for_bit_at_every_boundary(
    house: Path, tmp_path: Path, kind: str, boundary: int
) -> None:
    options = {"objective": objective_of(kind, 20), "epochs": 2}
    whole = training_of(house, kind, **options)
    metrics = [train_step(whole) for _ in range(6)]
    first = training_of(house, kind, **options)
    for _ in range(boundary):
        train_step(first)
    save(first, tmp_path)
    rest = training_of(house, kind, **options)
    restore(rest, tmp_path)
    assert [train_step(rest) for _ in range(6 - boundary)] == metrics[boundary:]
    assert torch.equal(weights(rest), weights(whole))
    assert rest.outcome() == whole.outcome()


def test_run_counts_on_from_the_steps_before_and_keeps_what_the_stage_adds(
    house: Path, tmp_path: Path
) -> None:
    training = training_of(house, objective=objective_of("sft", 20))
    reporter = RecordingReporter(kept=tmp_path / "kept", stop_after=2)
    task = task_of(training.config, tmp_path / "out", {})

    def keep(folder: Path) -> None:
        (folder / "pass.txt").write_text("second")

    with pytest.raises(StageInterrupted) as caught:
        run(training, task, reporter, before=3, total=6, keep=keep)
    assert caught.value.facts == {"step": 5}
    assert [(step, total) for step, total, _ in reporter.steps] == [(4, 6), (5, 6)]
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"state.safetensors", "pass.txt"}
    rest = training_of(house, objective=objective_of("sft", 20))
    restore(rest, tmp_path / "kept")
    outcome = run(rest, task, RecordingReporter(), before=3, total=6)
    assert outcome.steps == 3
    assert math.isfinite(outcome.last["loss"])
    reported = dict(reporter.steps[0][2])
    assert reported.pop("tokens_per_second") > 0
    assert outcome.first == reported


@dataclass(frozen=True)
class Scarce(InParts):
    """One whose device holds `rows` rows at once, though it is told of more."""

    def passes(self, model: PreTrainedModel, rows: Sequence[int]) -> Iterable[Sequence[int]]:
        return [rows]

    def losses(self, model: PreTrainedModel, rows: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if len(rows) > self.rows:
            raise torch.OutOfMemoryError
        return self.objective.losses(model, rows)


def test_a_pass_that_the_memory_does_not_hold_is_halved_once_and_said(house: Path, tmp_path: Path) -> None:
    plain, scarce = (training_of(house, "reward_model") for _ in range(2))
    scarce.objective = Scarce(scarce.objective, plain.config.batch_pairs // 2)
    reporter = RecordingReporter()
    task = task_of(plain.config, tmp_path, {})
    run(plain, task, RecordingReporter())
    run(scarce, task, reporter)
    assert reporter.warnings == [MEMORY_IS_SHORT]
    for name, weight in scarce.trained().items():
        torch.testing.assert_close(weight, plain.trained()[name], atol=1e-5, rtol=0)


def test_what_half_a_pass_cannot_hold_either_ends_the_training_before_a_step(house: Path) -> None:
    training = training_of(house, "reward_model")
    training.objective = Scarce(training.objective, 1)
    before = {name: weight.detach().clone() for name, weight in training.trained().items()}
    with pytest.raises(torch.OutOfMemoryError):
        train_step(training)
    assert all(torch.equal(weight, before[name]) for name, weight in training.trained().items())
