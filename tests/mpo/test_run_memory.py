"""`python -m mpo run` where a stage is estimated to need more memory than there is."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from mpo.__main__ import main
from mpo.dataset_files import validate_file
from mpo.estimates_excess import Excess
from mpo.estimates_machine import ONE_CPU, Machine
from mpo.estimates_plan import find_excesses
from mpo.estimates_shape import PACKED_FAMILIES, read_shape
from mpo.plan import Source
from mpo.run_folders import StageFolder
from mpo.run_plan import RunRequest, plan_run, read_spec
from tests.mpo.tiny import write_lines, write_policy

SPEC = """
method:
  type: dpo
  sft: {max_steps: 2, SETTINGS}
  dpo: {max_steps: 2}
  evaluate: null
"""
STAGES = ["hold_out", "sft", "dpo"]
NEVER_ENOUGH = 2**20
"""Less than any process holds that has imported torch."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_policy(tmp_path / "base")
    write_lines(tmp_path / "pairs.jsonl", 40)
    (tmp_path / "spec.yaml").write_text(SPEC.replace("SETTINGS", ""))
    return tmp_path


def excesses(folder: Path, machine: Machine = ONE_CPU, limit: int = NEVER_ENOUGH) -> dict[str, Excess]:
    """Of the folder's plan."""
    pairs, model = folder / "pairs.jsonl", folder / "base"
    stages = plan_run(RunRequest(read_spec(folder / "spec.yaml"), pairs, model, folder / "out"))
    validate_file(pairs, folder / "rows.parquet", media_type=None)
    return find_excesses(stages, {Source.dataset("pairs"): folder / "rows.parquet"}, model, machine, limit)


def needed(folder: Path, machine: Machine = ONE_CPU) -> Mapping[str, int]:
    return {name: excess.memory_bytes for name, excess in excesses(folder, machine).items()}


def test_stages_that_run_a_model_are_judged_in_their_order_and_ranks_add_up(folder: Path) -> None:
    alone, both = needed(folder), needed(folder, Machine("cpu", 2))
    assert list(alone) == ["sft", "dpo"]
    assert all(both[name] > 1.9 * alone[name] for name in alone)
    assert excesses(folder, limit=max(alone.values())) == {}
    assert excesses(folder, limit=0) == {}, "0 = not known"


def test_the_nearest_setting_fits_once_the_spec_has_it(folder: Path) -> None:
    limit = needed(folder)["sft"] - 1
    found = excesses(folder, limit=limit)["sft"]
    assert found.nearest == {"gradient_checkpointing": True}
    assert found.nearest_bytes is not None
    assert found.nearest_bytes <= limit
    (folder / "spec.yaml").write_text(SPEC.replace("SETTINGS", "gradient_checkpointing: true"))
    assert "sft" not in excesses(folder, limit=limit)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_of_what_nobody_can_count_nothing_is_said(folder: Path, missing: str) -> None:
    (folder / "base" / missing).unlink()
    assert excesses(folder) == {}


def test_a_model_that_may_read_packed_rows_is_not_refused_for_what_padded_ones_need(folder: Path) -> None:
    known = needed(folder)
    config = json.loads((folder / "base" / "config.json").read_text())
    assert config["model_type"] in PACKED_FAMILIES
    (folder / "base" / "config.json").write_text(json.dumps(config | {"model_type": "stablelm"}))
    assert not read_shape(folder / "base").packs
    assert needed(folder) == known


def test_a_chat_template_that_cannot_be_read_is_of_no_matter_to_plain_texts(folder: Path) -> None:
    known = needed(folder)
    (folder / "base" / "chat_template.jinja").write_text("{% if %}")
    assert needed(folder) == known


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """Runs the command without a GPU on so many bytes: its status, and the stages that ran, doing nothing."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def run_here(memory: int, *options: str) -> tuple[int, list[str]]:
        ran: list[str] = []

        def run_stage(task: Any, _reporter: object) -> None:
            ran.append(task.config.kind)
            (task.output / "summary.json").write_text("{}")

        monkeypatch.setattr("mpo.pipeline.run_stage", run_stage)
        monkeypatch.setattr("mpo.__main__.machine_memory", lambda: memory)
        given = {"--pairs": "pairs.jsonl", "--model": "base", "--out": "out"}
        files = [str(each) for option, name in given.items() for each in (option, folder / name)]
        return main(["run", str(folder / "spec.yaml"), *files, *options]), ran

    return run_here


def test_what_does_not_fit_is_refused_before_anything_runs(
    folder: Path, run: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    enough = max(needed(folder).values())
    assert run(needed(folder)["sft"] - 1) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith("mpo: sft: This stage is estimated to need 0.")
    assert "The nearest setting that fits is gradient_checkpointing true: 0." in error
    assert "--accept-short-memory" in error
    assert run(enough) == (0, STAGES)


def test_whoever_accepts_it_goes_on_and_what_is_done_is_not_judged_again(
    run: Callable[..., tuple[int, list[str]]],
) -> None:
    assert run(NEVER_ENOUGH) == (2, [])
    assert run(NEVER_ENOUGH, "--accept-short-memory") == (0, STAGES)
    assert run(NEVER_ENOUGH) == (0, [])


def test_a_stage_that_holds_a_checkpoint_is_not_judged_again(
    run: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[StageFolder] = []

    def has_checkpoint(self: StageFolder) -> bool:
        held.append(self)
        return True

    monkeypatch.setattr(StageFolder, "has_checkpoint", has_checkpoint)
    assert run(NEVER_ENOUGH) == (0, STAGES)
    assert [each.path.name for each in held] == STAGES


def test_of_a_gpu_its_own_memory_counts(
    run: Callable[..., tuple[int, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=NEVER_ENOUGH)
    )
    assert run(2**40) == (2, [])
    assert "trainings have 0.00 GiB here" in capsys.readouterr().err


class TwoInShards:
    """The first of two ranks, without the other."""

    number, count, sharded = 0, 2, True

    @classmethod
    def launched(cls) -> Self:
        return cls()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_several_processes_are_judged_together(
    run: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[RunRequest] = []
    monkeypatch.setattr("mpo.__main__.is_launched", lambda: True)
    monkeypatch.setattr("mpo.process_group.ProcessGroup", TwoInShards)
    monkeypatch.setattr("mpo.pipeline.run_plan", judged.append)
    assert run(7) == run(7, "--accept-short-memory") == (0, [])
    assert judged[0].memory_here is not None
    assert judged[0].memory_here() == (Machine("cpu", 2, True), 7)
    assert judged[1].memory_here is None
