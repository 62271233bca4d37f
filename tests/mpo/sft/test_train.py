import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from mpo.config import SFTStage
from mpo.errors import EmptySplit, StageInterrupted, TooFewRows, TrainingDiverged
from mpo.policies import load_policy
from mpo.records import TEXT_SCHEMA, write_rows
from mpo.reporter import StageTask
from mpo.sft.train import train_sft
from mpo.tokenization import load_tokenizer
from tests.mpo.tiny import EOS, RecordingReporter, task_of, write_pairs, write_policy


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path | list[Path]]:
    return {"policy": write_policy(tmp_path / "base"), "data": write_pairs(tmp_path / "pairs.parquet", 22)}


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_policy(output / "model").state_dict()


def test_training_lowers_the_loss_and_reports_every_step(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    config = SFTStage(learning_rate=1e-2, epochs=4, batch_pairs=8)
    train_sft(task_of(config, tmp_path / "sft", inputs), reporter)
    assert [(step, total) for step, total, _ in reporter.steps] == [(k, 12) for k in range(1, 13)]
    rates = [metrics["learning_rate"] for _, _, metrics in reporter.steps]
    assert rates == pytest.approx([1e-2 * (1 - k / 12) for k in range(12)])
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    assert summary["loss_last"] < 0.6 * summary["loss_first"]
    assert summary["loss_last"] == reporter.steps[-1][2]["loss"]
    assert (summary["pairs"], summary["steps"], summary["encoding"]["pairs"]) == (22, 12, 22)
    assert sorted(path.name for path in (tmp_path / "sft").iterdir()) == ["model", "summary.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, pairs, and an SFT that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    write_policy(folder / "base")
    write_pairs(folder / "pairs.parquet", 22)
    train_sft(task_for(folder, folder / "sft"), RecordingReporter())
    return folder


def task_for(folder: Path, output: Path, resume: Path | None = None) -> StageTask:
    config = SFTStage(learning_rate=1e-2, epochs=2, batch_pairs=8)
    inputs = {"policy": folder / "base", "data": folder / "pairs.parquet"}
    return task_of(config, output, inputs, resume=resume)


@pytest.mark.parametrize("boundary", range(1, 6))
def test_resumed_equals_uninterrupted_bit_for_bit_at_every_boundary(
    whole: Path, tmp_path: Path, boundary: int
) -> None:
    first = RecordingReporter(kept=tmp_path / "kept", stop_after=boundary)
    with pytest.raises(StageInterrupted):
        train_sft(task_for(whole, tmp_path / "first"), first)
    assert first.checkpoints == [boundary]
    rest = RecordingReporter()
    train_sft(task_for(whole, tmp_path / "rest", resume=tmp_path / "kept"), rest)
    assert [step for step, _, _ in rest.steps] == list(range(boundary + 1, 7))
    for name in ("model/model.safetensors", "model/config.json", "summary.json"):
        assert (tmp_path / "rest" / name).read_bytes() == (whole / "sft" / name).read_bytes(), name


def write_texts(path: Path, texts: list[str]) -> Path:
    columns = {"id": [str(row) for row in range(len(texts))], "text": texts}
    pq.write_table(pa.table(columns, schema=TEXT_SCHEMA), path)
    return path


def test_texts_are_learned_from_their_second_token_to_their_end(tmp_path: Path) -> None:
    base = write_policy(tmp_path / "base")
    texts = ["red runs", "blue bird sleeps", "green"]
    data = write_texts(tmp_path / "texts.parquet", texts)
    config = SFTStage(learning_rate=1e-2, max_prompt_tokens=32, max_response_tokens=16)
    reporter = RecordingReporter()
    train_sft(task_of(config, tmp_path / "sft", {"policy": base, "data": data}), reporter)
    tokenizer, model = load_tokenizer(base), load_policy(base)
    loss = tokens = 0.0
    for text in texts:
        ids = torch.tensor([*tokenizer(text)["input_ids"], EOS])
        loss += F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum").item()
        tokens += len(ids) - 1
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    assert summary["loss_first"] == pytest.approx(loss / tokens, abs=1e-5)
    assert (summary["tokens"], summary["encoding"]) == (tokens, {"texts": 3, "texts_cut": 0})


def test_texts_are_cut_to_prompt_and_response_together(tmp_path: Path) -> None:
    base = write_policy(tmp_path / "base")
    data = write_texts(tmp_path / "texts.parquet", ["red runs " * 20, "green"])
    config = SFTStage(max_steps=1, max_prompt_tokens=6, max_response_tokens=4)
    train_sft(task_of(config, tmp_path / "sft", {"policy": base, "data": data}), RecordingReporter())
    encoding = json.loads((tmp_path / "sft" / "summary.json").read_text())["encoding"]
    assert encoding == {"texts": 2, "texts_cut": 1}


def test_a_learning_rate_of_zero_and_a_single_step_leave_the_weights_alone(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    config = SFTStage(learning_rate=0.0, max_steps=1)
    train_sft(task_of(config, tmp_path / "sft", inputs), reporter)
    assert len(reporter.steps) == 1
    before = load_policy(tmp_path / "base").state_dict()
    for name, weight in weights(tmp_path / "sft").items():
        assert torch.equal(before[name], weight), name


def test_a_checkpoint_at_every_step_but_the_last(
    inputs: dict[str, Path | list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = RecordingReporter()
    monkeypatch.setattr(reporter, "checkpoint_due", lambda: True)
    train_sft(task_of(SFTStage(batch_pairs=8), tmp_path / "sft", inputs), reporter)
    assert reporter.checkpoints == [1, 2]
    assert sorted(path.name for path in (tmp_path / "sft").iterdir()) == ["model", "summary.json"]


def test_a_loss_that_is_not_finite_stops_the_training(
    inputs: dict[str, Path | list[Path]], tmp_path: Path
) -> None:
    broken = load_policy(tmp_path / "base")
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    shutil.copytree(tmp_path / "broken", tmp_path / "base", dirs_exist_ok=True)
    with pytest.raises(TrainingDiverged) as caught:
        train_sft(task_of(SFTStage(), tmp_path / "sft", inputs), RecordingReporter())
    assert caught.value.facts["step"] == 1
    assert set(caught.value.facts["rows"]) < {str(row) for row in range(22)}
    assert "no step was taken" in str(caught.value)
    assert not (tmp_path / "sft" / "model").exists()


def test_a_single_row_is_an_error(inputs: dict[str, Path | list[Path]], tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "one.parquet", 1)
    task = task_of(SFTStage(), tmp_path / "sft", inputs | {"data": data})
    with pytest.raises(TooFewRows, match="two rows or more"):
        train_sft(task, RecordingReporter())


def test_no_row_is_an_error(inputs: dict[str, Path | list[Path]], tmp_path: Path) -> None:
    write_rows(tmp_path / "none.parquet", [])
    with pytest.raises(EmptySplit, match="no row to train on"):
        train_sft(
            task_of(SFTStage(), tmp_path / "sft", inputs | {"data": tmp_path / "none.parquet"}),
            RecordingReporter(),
        )
