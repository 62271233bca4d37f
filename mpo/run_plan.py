"""What a run of `python -m mpo run` is asked for, and the plan that this comes to."""

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import yaml
from pydantic import ValidationError

from mpo.errors import InvalidSpec, UnusableModel
from mpo.estimates_machine import Machine
from mpo.field_paths import written_path
from mpo.headless_architectures import refuse_headless
from mpo.job_spec import JobSpec
from mpo.lengths import named_context, text_settings
from mpo.plan import PlannedStage, Source, check_plan, expand, resolve
from mpo.reporter import Reporter, StageTask

PAIRS, EVAL_PAIRS = "pairs", "eval_pairs"
"""Names of the two files that a run may be given."""

DATA = "data"
"""The folder of their canonical rows."""


@dataclass(frozen=True)
class RunRequest:
    """What to run, on which files, into which folder.

    pairs, eval_pairs: JSON Lines, plain or gzip, in any accepted shape. accept_weak: go on though the reward
    model is weak. stop: set by whoever wants the run to end at the next checkpoint. perform: how to run a
    stage with the help of other processes; None: this one runs all of them alone. memory_here: asked
    before the first stage runs, what stages run on and how many bytes of memory that has, 0 where nobody
    knows; None: nothing is refused for the memory that it needs.
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
    memory_here: Callable[[], tuple[Machine, int]] | None = None


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
    stages = expand(spec, model=model_name(request), dataset=PAIRS, leaf=files.get)
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
        refuse_headless(stages, {Source.model(model_name(request)): request.model})
    except UnusableModel as error:
        raise InvalidSpec(f"--model: {error.detail}", field="model") from error
    return resolve(spec, stages, context_tokens(request.model))


def _named_files(request: RunRequest) -> dict[str, Source]:
    """What the names of explicit inputs stand for."""
    spec = request.spec
    found = {"model": Source.model(model_name(request)), PAIRS: Source.dataset(PAIRS)}
    if request.eval_pairs is not None:
        found[EVAL_PAIRS] = Source.dataset(EVAL_PAIRS)
    named = {spec.model: "model", spec.dataset: PAIRS, spec.eval_dataset: EVAL_PAIRS}
    return found | {name: found[word] for name, word in named.items() if name is not None}


def model_name(request: RunRequest) -> str:
    """By which stages refer to the model folder."""
    return request.spec.model or request.model.resolve().name
