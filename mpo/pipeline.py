"""Runs a job's whole plan in one process, stage after stage: what `python -m mpo run` does."""

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import yaml
from pydantic import ValidationError

from mpo.config import ScoreStage
from mpo.dataset_files import validate_file
from mpo.errors import InvalidSpec, MPOError, StageFailed, StageInterrupted, UnusableModel
from mpo.field_paths import written_path
from mpo.headless_architectures import refuse_headless
from mpo.job_spec import JobSpec
from mpo.keys import InputKey, dataset_key
from mpo.lengths import named_context, text_settings
from mpo.plan import (
    OUTPUTS,
    PlannedStage,
    Source,
    check_plan,
    expand,
    plan_keys,
    plan_warnings,
    resolve,
)
from mpo.report import Summary, build_report
from mpo.reporter import Reporter, StageInput, StageTask
from mpo.run_folders import FolderReporter, StageFolder, clock, file_digest, folder_digest
from mpo.stages import run_stage
from mpo.summaries import SUMMARY
from mpo.token_cache import TokenCache
from mpo.training_config import TrainingConfig

PAIRS, EVAL_PAIRS = "pairs", "eval_pairs"
"""Names of the two files that a run may be given."""

DATA = "data"
"""The folder of their canonical rows."""

TOKENS, TOKENS_BYTES = "tokens", 4 << 30
"""The folder, beside the rows, of the token ids that stages share, and how large it may be."""


@dataclass(frozen=True)
class RunRequest:
    """What to run, on which files, into which folder.

    pairs, eval_pairs: JSON Lines, plain or gzip, in any accepted shape. accept_weak: go on though the reward
    model is weak. stop: set by whoever wants the run to end at the next checkpoint. perform: how to run a
    stage with the help of other processes; None: this one runs all of them alone.
    """

    spec: JobSpec
    pairs: Path
    model: Path
    out: Path
    eval_pairs: Path | None = None
    max_bad_rows: int = 0
    accept_weak: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    console: TextIO = field(default_factory=lambda: sys.stdout)
    perform: Callable[[StageTask, Reporter], None] | None = None


def read_spec(path: Path) -> JobSpec:
    """A native spec, YAML or JSON; raises InvalidSpec, which names the field."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        first_line = " ".join(str(error).split())
        raise InvalidSpec(f"{path.name} cannot be read: {first_line}") from error
    if not isinstance(document, dict):
        raise InvalidSpec(f"{path.name} holds no mapping of names to values")
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in written_path(JobSpec, first["loc"])) or "spec"
        raise InvalidSpec(f"{where}: {first['msg']}", field=where) from error


def context_tokens(model: Path) -> int:
    """The context of a model folder, in tokens, by its config.json; raises InvalidSpec."""
    if not (model / "config.json").is_file():
        raise InvalidSpec(f"--model: there is no config.json in {model}", field="model")
    context = named_context(text_settings(model / "config.json"))
    if context is None:
        raise InvalidSpec("--model: config.json names no max_position_embeddings", field="model")
    return context


def plan_run(request: RunRequest) -> list[PlannedStage]:
    """The stages, in order, every length resolved; raises InvalidSpec.

    In explicit stages an input is a stage, `stage.output`, or a file that the run was given: `pairs` (or the
    spec's `dataset`), `eval_pairs` (or its `eval_dataset`), `model` (or its `model`).
    """
    spec = request.spec
    if spec.eval_dataset is not None and request.eval_pairs is None:
        raise InvalidSpec("eval_dataset is given without --eval-pairs", field="eval_dataset")
    files = _named_files(request)
    if spec.eval_dataset is not None:
        spec = spec.model_copy(update={"eval_dataset": EVAL_PAIRS})
    stages = expand(spec, model=_model_name(request), dataset=PAIRS, leaf=files.get)
    read = {source.name for stage in stages for source in stage.sources()}
    if request.eval_pairs is not None and EVAL_PAIRS not in read:
        raise InvalidSpec(
            "--eval-pairs is given, and no stage reads it: eval_dataset names it", field="eval_dataset"
        )
    names = {stage.name for stage in stages}
    if DATA in names:
        raise InvalidSpec(f"no stage can be named {DATA}: that folder holds the rows", field="stages")
    if unknown := sorted(set(spec.pause_after) - names):
        raise InvalidSpec(f"pause_after: no stage is named {unknown[0]}", field="pause_after")
    check_plan(spec, stages, {s: "policy" if s.kind == "model" else "pairs" for s in files.values()})
    try:
        refuse_headless(stages, {Source.model(_model_name(request)): request.model})
    except UnusableModel as error:
        raise InvalidSpec(f"--model: {error.detail}", field="model") from error
    return resolve(spec, stages, context_tokens(request.model))


def _named_files(request: RunRequest) -> dict[str, Source]:
    """What the names of explicit inputs stand for."""
    spec = request.spec
    found = {"model": Source.model(_model_name(request)), PAIRS: Source.dataset(PAIRS)}
    if request.eval_pairs is not None:
        found[EVAL_PAIRS] = Source.dataset(EVAL_PAIRS)
    named = {spec.model: "model", spec.dataset: PAIRS, spec.eval_dataset: EVAL_PAIRS}
    return found | {name: found[word] for name, word in named.items() if name is not None}


def _model_name(request: RunRequest) -> str:
    return request.spec.model or request.model.resolve().name


@dataclass
class Run:
    """A plan on its way: where each input lies, and what the finished stages left."""

    request: RunRequest
    stages: list[PlannedStage]
    leaves: dict[Source, Path]
    keys: Mapping[str, str]
    summaries: dict[str, Summary] = field(default_factory=dict)

    def folder(self, name: str) -> StageFolder:
        """The folder of a stage."""
        return StageFolder(self.request.out / name, self.keys[name])

    def path(self, source: Source) -> Path:
        """Where an input lies."""
        if source.kind != "stage":
            return self.leaves[source]
        kind = next(stage.kind for stage in self.stages if stage.name == source.name)
        return self.request.out / source.name / OUTPUTS[kind][source.output]

    def say(self, text: str) -> None:
        """A line for a person."""
        print(text, file=self.request.console, flush=True)


def run_plan(request: RunRequest) -> str | None:
    """Runs what is not done yet, in order, and writes report.json.

    Returns why the run stopped before its end and how to go on, or None where it came to its end. Raises
    InvalidSpec, StageFailed, StageInterrupted.
    """
    started = time.monotonic()
    stages = plan_run(request)
    leaves, keys, reports = _read_leaves(request)
    run = Run(request, stages, leaves, plan_keys(stages, keys))
    for name, warnings in plan_warnings(stages).items():
        for warning in warnings:
            run.say(f"warning: {name}: {warning}")
    for number, stage in enumerate(stages, start=1):
        ran = _finish_stage(run, stage, f"[{number}/{len(stages)}] {stage.name}")
        if pause := _pause(run, stage, ran):
            return pause
    _write_json(request.out / "report.json", build_report(run.summaries, request.spec, *reports))
    run.say(f"done in {clock(time.monotonic() - started)}: {request.out / 'report.json'}")
    return None


def _read_leaves(request: RunRequest) -> tuple[dict[Source, Path], dict[Source, InputKey], list[Summary]]:
    """Paths and keys of the inputs that no stage makes, and what validation found in each file of pairs."""
    model = Source.model(_model_name(request))
    paths = {model: request.model}
    keys: dict[Source, InputKey] = {model: (folder_digest(request.model), "model")}
    reports: list[Summary] = []
    for name, file in ((PAIRS, request.pairs), (EVAL_PAIRS, request.eval_pairs)):
        if file is not None:
            source = Source.dataset(name)
            key = dataset_key(file_digest(file), "preference", request.max_bad_rows)
            keys[source] = (key, source.output)
            paths[source] = request.out / DATA / f"{name}.parquet"
            reports.append(_validate(request, file, name, key))
    return paths, keys, reports


def _validate(request: RunRequest, file: Path, name: str, key: str) -> Summary:
    """The canonical rows of a file in OUT/data, made once for the same bytes; returns its report."""
    folder = StageFolder(request.out / DATA / name, key)
    target = request.out / DATA / f"{name}.parquet"
    if not (folder.is_done() and target.exists()):
        folder.open()
        try:
            report = validate_file(file, target, media_type=None, max_bad_rows=request.max_bad_rows)
        except MPOError as error:
            raise StageFailed(f"{file.name}: {error.detail}", stage="data", code=error.code) from error
        _write_json(folder.path / "report.json", report.to_json())
        folder.finish()
    summary: Summary = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    print(f"data  {summary['rows']} pairs, {summary['bad_rows']} bad rows", file=request.console, flush=True)
    return summary


def _finish_stage(run: Run, stage: PlannedStage, title: str) -> bool:
    """Runs a stage unless it is done; whether it ran. Raises StageFailed, StageInterrupted."""
    folder = run.folder(stage.name)
    ran = not folder.is_done()
    if ran:
        _run_stage(run, stage, folder, title)
        folder.finish()
    else:
        run.say(f"{title}  done before")
    run.summaries[stage.name] = json.loads((folder.path / SUMMARY).read_text(encoding="utf-8"))
    return ran


def _run_stage(run: Run, stage: PlannedStage, folder: StageFolder, title: str) -> None:
    resume = folder.open()
    inputs = {
        role: tuple(StageInput(source.name, run.path(source)) for source in sources)
        for role, sources in stage.inputs.items()
    }
    seconds = stage.config.checkpoint_seconds if isinstance(stage.config, TrainingConfig) else 0.0
    reporter = FolderReporter(folder, title, seconds, run.request.stop, run.request.console)
    reporter.print("resumed" if resume else "started")
    perform = run.request.perform or run_stage
    try:
        tokens = TokenCache(run.request.out / DATA / TOKENS, TOKENS_BYTES)
        perform(StageTask(stage.config, inputs, folder.path, stage.seed, resume, tokens), reporter)
    except StageInterrupted:
        raise
    except MPOError as error:
        raise StageFailed(f"{stage.name}: {error.detail}", stage=stage.name, code=error.code) from error
    except Exception as error:  # a border: a person gets one line, and the rest in a file
        (folder.path / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        where = folder.path / "traceback.txt"
        raise StageFailed(f"{stage.name}: {what} (all of it: {where})", stage=stage.name) from error


def _pause(run: Run, stage: PlannedStage, ran: bool) -> str | None:
    """Why the run stops after this stage, and how to go on; None where it goes on."""
    config, request = stage.config, run.request
    if isinstance(config, ScoreStage) and run.summaries[stage.name]["weak"]:
        what = run.summaries[stage.name]["weak_reason"]
        if config.on_weak == "fail":
            raise StageFailed(f"{stage.name}: {what}", stage=stage.name, code="weak_reward_model")
        if config.on_weak == "warn" or request.accept_weak:
            run.say(f"warning: {what}")
        else:
            return (
                f"stopped after {stage.name}: {what}; run it again with --accept-weak to go on all the same"
            )
    if ran and stage.name in request.spec.pause_after:
        return f"paused after {stage.name}, as pause_after asks; run the same command again to go on"
    return None


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
