"""Runs a job's whole plan in one process, stage after stage: what `python -m mpo run` does."""

import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mpo.config import ScoreStage
from mpo.dataset_files import validate_file
from mpo.errors import MPOError, NotEnoughMemory, StageFailed, StageInterrupted
from mpo.estimates_plan import find_excesses
from mpo.keys import InputKey, dataset_key
from mpo.plan import OUTPUTS, PlannedStage, Source, plan_keys, plan_warnings
from mpo.report import Summary, build_report
from mpo.reporter import StageInput, StageTask
from mpo.run_folders import FolderReporter, StageFolder, clock, file_digest, folder_digest
from mpo.run_plan import DATA, EVAL_PAIRS, PAIRS, RunRequest, model_name, plan_run
from mpo.stages import run_stage
from mpo.summaries import SUMMARY
from mpo.token_cache import TokenCache
from mpo.training_config import TrainingConfig

TOKENS, TOKENS_BYTES = "tokens", 4 << 30
"""The folder, beside the rows, of the token ids that stages share, and how large it may be."""


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
    InvalidSpec, NotEnoughMemory before any stage has run, StageFailed, StageInterrupted.
    """
    started = time.monotonic()
    stages = plan_run(request)
    leaves, keys, reports = _read_leaves(request)
    run = Run(request, stages, leaves, plan_keys(stages, keys))
    for name, warnings in plan_warnings(stages).items():
        for warning in warnings:
            run.say(f"warning: {name}: {warning}")
    _refuse_what_does_not_fit(run)
    for number, stage in enumerate(stages, start=1):
        ran = _finish_stage(run, stage, f"[{number}/{len(stages)}] {stage.name}")
        if pause := _pause(run, stage, ran):
            return pause
    _write_json(request.out / "report.json", build_report(run.summaries, request.spec, *reports))
    run.say(f"done in {clock(time.monotonic() - started)}: {request.out / 'report.json'}")
    return None


def _read_leaves(request: RunRequest) -> tuple[dict[Source, Path], dict[Source, InputKey], list[Summary]]:
    """Paths and keys of the inputs that no stage makes, and what validation found in each file of pairs."""
    model = Source.model(model_name(request))
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


def _refuse_what_does_not_fit(run: Run) -> None:
    """Raises NotEnoughMemory for the first stage that has to run and does not fit."""
    folders = {stage.name: run.folder(stage.name) for stage in run.stages}
    # What holds a checkpoint has shown that it fits.
    ahead = {name for name, each in folders.items() if not (each.is_done() or each.has_checkpoint())}
    if run.request.memory_here is None or not ahead:
        return
    files = {source: path for source, path in run.leaves.items() if source.kind == "dataset"}
    excesses = find_excesses(run.stages, files, run.request.model, *run.request.memory_here())
    if name := next((name for name in excesses if name in ahead), None):
        what = f"{name}: {excesses[name].detail}"
        raise NotEnoughMemory(f"{what}; run it again with --accept-short-memory to go on all the same")


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
