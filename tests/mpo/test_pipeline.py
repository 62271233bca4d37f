import gzip
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from mpo.__main__ import main
from mpo.errors import InvalidSpec, StageInterrupted
from mpo.pipeline import run_plan
from mpo.run_plan import RunRequest, plan_run, read_spec
from tests.mpo.tiny import word_pairs, write_policy

SPEC = """
name: tiny
method:
  type: mpo
  hold_out: {fraction: 0.15}
  sft: {learning_rate: 1e-3, max_steps: 3}
  reward_model: {learning_rate: 3e-3, max_steps: 6, on_weak: ON_WEAK}
  score: {folds: 2}
  dpo: {learning_rate: 1e-4, max_steps: 2}
  ppo: {rollout_prompts: 8, episodes: 8, mini_batches: 2, epochs: 1, max_new_tokens: 4}
  evaluate: {prompts: 4, max_new_tokens: 4}
"""
FOLDS = ["reward_model_fold_1", "reward_model_fold_2"]
STAGES = ["hold_out", "sft", *FOLDS, "reward_model", "score", "split", "dpo", "ppo", "judge", "evaluate"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_policy(folder / "base")
    lines = [
        json.dumps({"id": f"row-{p.id}", "prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected})
        for p in word_pairs(60)
    ]
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


def arguments(house: Path, out: Path, on_weak: str = "warn") -> list[str]:
    spec = out.with_name(f"{out.name}.yaml")
    spec.write_text(SPEC.replace("ON_WEAK", on_weak))
    pairs, model = house / "pairs.jsonl.gz", house / "base"
    return ["run", str(spec), "--pairs", str(pairs), "--model", str(model), "--out", str(out)]


def test_a_run_leaves_what_the_command_promises_and_a_second_one_does_nothing(
    house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(house, out)) == 0
    for name in ("sft", "dpo", "ppo", "reward_model"):
        lines = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        assert lines
        assert all({"step", "loss"} <= line.keys() for line in lines), name
        AutoTokenizer.from_pretrained(out / name / "model")
    AutoModelForCausalLM.from_pretrained(out / "ppo" / "model")
    AutoModelForSequenceClassification.from_pretrained(out / "reward_model" / "model")
    ppo = json.loads((out / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    wanted = {"reward", "kl", "ratio_max", "clip_fraction", "entropy", "tokens_per_second"}
    assert wanted <= ppo.keys()
    assert ppo["kl"] == 0.0
    scores = pq.read_table(out / "score" / "scores.parquet")
    assert {"id", "reward_chosen", "reward_rejected", "gap", "fold"} <= set(scores.column_names)
    split = pq.read_table(out / "split" / "split.parquet")
    assert {"id", "part", "why"} <= set(split.column_names)
    assert sorted(split["id"].to_pylist()) == sorted(scores["id"].to_pylist())
    report = json.loads((out / "report.json").read_text())
    assert report["data"]["dataset"]["rows"] == 60
    assert report["evaluation"]["prompts"] == 4
    assert set(report["stages"]) == {"sft", "dpo", "ppo"}
    # All pairs (SFT, reward models and scores), those held out, and the easy ones (DPO).
    assert len(list((out / "data" / "tokens").iterdir())) == 3
    check_second_run(house, out, capsys)


def check_second_run(house: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path != out / "report.json"}
    report = (out / "report.json").read_bytes()
    capsys.readouterr()
    assert main(arguments(house, out)) == 0
    skipped = [line for line in capsys.readouterr().out.splitlines() if "done before" in line]
    assert [line.split("] ")[1].split()[0] for line in skipped] == STAGES
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "report.json").read_bytes() == report


def test_a_weak_reward_model_stops_the_run_until_it_is_accepted(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = pretend_stages(monkeypatch)
    given = arguments(house, tmp_path / "out", on_weak="pause")
    assert main(given) == 3
    assert ran[-1] == "score"
    assert "--accept-weak" in capsys.readouterr().err
    assert main([*given, "--accept-weak"]) == 0
    assert len(ran) == len(STAGES)  # nothing ran twice


def pretend_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that do nothing but leave a summary; the kinds in the order in which they ran."""
    ran: list[str] = []

    def run_stage(task: object, _reporter: object) -> None:
        ran.append(task.config.kind)  # type: ignore[attr-defined]
        (task.output / "summary.json").write_text('{"weak": true, "weak_reason": "accuracy 0.51"}')  # type: ignore[attr-defined]

    monkeypatch.setattr("mpo.pipeline.run_stage", run_stage)
    return ran


def test_pause_after_stops_once(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = pretend_stages(monkeypatch)
    given = arguments(house, tmp_path / "out")
    spec = Path(given[1])
    spec.write_text(spec.read_text() + "pause_after: [split]\n")
    assert main(given) == 3
    assert ran[-1] == "split"
    assert main(given) == 0
    assert len(ran) == len(STAGES)


def test_a_changed_setting_runs_again_what_depends_on_it(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = pretend_stages(monkeypatch)
    given = arguments(house, tmp_path / "out")
    assert main(given) == 0
    ran.clear()
    spec = Path(given[1])
    spec.write_text(spec.read_text().replace("dpo: {learning_rate: 1e-4", "dpo: {learning_rate: 2e-4"))
    assert main(given) == 0
    assert ran == ["dpo", "ppo", "evaluate"]


def test_a_weak_reward_model_fails_the_run_where_it_is_told_to(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_stages(monkeypatch)
    given = arguments(house, tmp_path / "out", on_weak="fail")
    assert main([*given, "--accept-weak"]) == 1
    assert "score: accuracy 0.51" in capsys.readouterr().err


def test_a_failed_stage_is_one_line_and_the_traceback_is_in_a_file(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("mpo.pipeline.run_stage", fail)
    assert main(arguments(house, tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "hold_out: RuntimeError: out of memory" in error
    assert "RuntimeError" in (tmp_path / "out" / "hold_out" / "traceback.txt").read_text()


def test_bad_pairs_fail_with_the_line(
    house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(house, tmp_path / "out")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "chosen": "b"}\n')
    given[given.index("--pairs") + 1] = str(bad)
    assert main(given) == 1
    assert "line 1" in capsys.readouterr().err


def test_an_interrupted_stage_resumes_from_its_checkpoint(house: Path, tmp_path: Path) -> None:
    """The whole plan is stopped in its first training stage, then goes on there."""
    given = arguments(house, tmp_path / "out")
    stop = threading.Event()
    stop.set()
    spec, pairs, model = read_spec(Path(given[1])), Path(given[3]), Path(given[5])
    with pytest.raises(StageInterrupted):
        run_plan(RunRequest(spec, pairs, model, tmp_path / "out", stop=stop))
    checkpoints = list((tmp_path / "out" / "sft" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["1"]
    stages = [stage.name for stage in plan_run(RunRequest(spec, pairs, model, tmp_path / "out"))]
    assert stages == STAGES


def refused(house: Path, tmp_path: Path, text: str, extra: Sequence[str] = ()) -> InvalidSpec:
    spec = tmp_path / "spec.yaml"
    spec.write_text(text)
    with pytest.raises(InvalidSpec) as caught:
        plan_run(RunRequest(read_spec(spec), house / "pairs.jsonl.gz", house / "base", tmp_path / "out"))
    return caught.value


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("method: {type: mpo, dpo: {beta: -1}}", "method.dpo.beta"),
        ("method: {type: mpo, dpo: {betta: 1}}", "method.dpo.betta"),
        ("method: {type: mpo, split: {threshold: 1, quantile: 0.5}}", "method.split"),
        ("method: {type: mpo}\npause_after: [training]", "pause_after"),
        ("method: {type: mpo}\neval_dataset: ds_1", "eval_dataset"),
        ("method: {type: mpo, ppo: {max_new_tokens: 60}}", "method.ppo.max_new_tokens"),
    ],
)
def test_a_bad_spec_names_the_field(house: Path, tmp_path: Path, text: str, field: str) -> None:
    assert refused(house, tmp_path, text).facts["field"] == field


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_a_spec_that_is_no_mapping_is_refused(house: Path, tmp_path: Path, text: str) -> None:
    assert "spec.yaml" in refused(house, tmp_path, text).detail


def test_bad_arguments_exit_with_two(house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(house, tmp_path / "out")
    for option in ("--pairs", "--model"):
        changed = list(given)
        changed[changed.index(option) + 1] = str(tmp_path / "nowhere")
        assert main(changed) == 2
        assert option.strip("-") in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["run"])
    assert ended.value.code == 2


def test_the_command_starts_without_the_service_and_without_torch() -> None:
    code = "import sys, mpo.__main__, mpo.pipeline; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    packages = {name.split(".")[0] for name in loaded.split()}
    assert not packages & {"fastapi", "celery", "sqlalchemy", "core", "app", "workers", "torch"}


def test_a_model_that_no_reward_model_can_be_made_of_is_refused_before_anything_trains(
    house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(house, tmp_path / "out")
    base = shutil.copytree(house / "base", tmp_path / "granite")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "granite"}))
    given[given.index("--model") + 1] = str(base)
    assert main(given) == 2
    assert "no class with a scalar head for the architecture 'granite'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


STAGES_SPEC = """
stages:
  - {name: again, kind: dpo, learning_rate: 1e-4, max_steps: 2, seed: 5,
     inputs: {policy: first, reference: model, data: parts.difficult}}
  - {name: rows, kind: hold_out, inputs: {data: pairs}}
  - {name: a, kind: reward_model, fold: 1, folds: 2, max_steps: 2, inputs: {backbone: model, data: rows}}
  - {name: b, kind: reward_model, fold: 2, folds: 2, max_steps: 2, inputs: {backbone: model, data: rows}}
  - {name: gaps, kind: score, on_weak: warn, inputs: {reward_models: [a, b], data: rows}}
  - {name: parts, kind: split, easy_fraction: 0.25, inputs: {scores: gaps, data: rows}}
  - {name: first, kind: dpo, learning_rate: 1e-4, max_steps: 2,
     inputs: {policy: model, reference: model, data: parts.easy}}
"""


def test_explicit_stages_run_in_the_order_of_their_inputs(
    house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(house, tmp_path / "out")
    Path(given[1]).write_text(STAGES_SPEC)
    assert main(given) == 0
    started = [line for line in capsys.readouterr().out.splitlines() if line.endswith("started")]
    names = ["rows", "a", "b", "gaps", "parts", "first", "again"]
    assert [line.split("] ")[1].split()[0] for line in started] == names
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "again" / "model")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["stages"]) == set(names)
    assert report["stages"]["again"]["pairs"] == report["split"]["difficult"]


def test_a_preset_without_scores_trains_from_file_to_model(house: Path, tmp_path: Path) -> None:
    given = arguments(house, tmp_path / "out")
    method = "{type: dpo, sft: {max_steps: 2}, dpo: {max_steps: 2}, evaluate: null}"
    Path(given[1]).write_text(f"method: {method}\n")
    assert main(given) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "dpo" / "model")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["stages"]) == {"sft", "dpo"}
    assert report["gaps"] is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("policy: model, reference", "policy: tiny, reference"), "stages.6.inputs.policy"),
        (("policy: first", "policy: a"), "stages.0.inputs.policy"),
        (("name: rows", "name: data"), "stages"),
    ],
)
def test_explicit_stages_that_do_not_fit_name_the_field(
    house: Path, tmp_path: Path, change: tuple[str, str], field: str
) -> None:
    text = STAGES_SPEC.replace(*change)
    if field == "stages":
        text = text.replace("data: rows", "data: data")
    assert refused(house, tmp_path, text).facts["field"] == field


def test_the_spec_s_own_names_stand_for_the_files(house: Path, tmp_path: Path) -> None:
    text = "model: llama\ndataset: ds_7\n" + STAGES_SPEC.replace(": model,", ": llama,").replace(
        "data: pairs", "data: ds_7"
    )
    spec = tmp_path / "spec.yaml"
    spec.write_text(text)
    request = RunRequest(read_spec(spec), house / "pairs.jsonl.gz", house / "base", tmp_path / "out")
    sources = {
        str(source) for stage in plan_run(request) for source in stage.sources() if source.kind != "stage"
    }
    assert sources == {"llama", "pairs"}
