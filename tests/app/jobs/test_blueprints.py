"""What is kept of earlier plans must never be told apart from a plan made anew."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.jobs import planning
from app.jobs.blueprints import Kept
from app.jobs.planning import plan_spec
from app.jobs.schemas import CreateJob
from core.database import open_transaction
from core.tables import BaseModelRow
from tests.app.jobs.factories import OWNER, make_dataset, pairs

SPECS: dict[str, dict[str, Any]] = {
    "mpo": {"method": {"type": "mpo"}},
    "another seed": {"method": {"type": "mpo"}, "seed": 5},
    "another seed of stages": {
        "stages": [{"name": "h", "kind": "hold_out", "inputs": {"data": "{dataset}"}}],
        "seed": 9,
    },
    "another name": {"method": {"type": "mpo"}, "name": "other", "labels": {"a": "b"}, "priority": 3},
    "another split": {"method": {"type": "mpo", "split": {"threshold": 0.5}}},
    "paused": {"method": {"type": "mpo"}, "pause_after": ["split"]},
}


@pytest.mark.parametrize("case", SPECS)
def test_a_kept_plan_is_the_plan_made_anew(
    client: TestClient, model: str, dataset: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in SPECS.values():
        _plan(each, model, dataset)
    kept = _plan(SPECS[case], model, dataset)
    monkeypatch.setattr(planning, "_drafts", Kept())
    monkeypatch.setattr(planning, "_blueprints", Kept())
    anew = _plan(SPECS[case], model, dataset)
    assert (kept.stages, kept.keys) == (anew.stages, anew.keys)
    told, told_anew = kept.blueprint, anew.blueprint
    assert (told.columns, told.warnings, told.method) == (
        told_anew.columns,
        told_anew.warnings,
        told_anew.method,
    )


def test_a_plan_is_made_anew_where_what_it_names_has_changed(
    client: TestClient, spec: dict[str, Any], model: str, tmp_path: Path
) -> None:
    assert client.post("/v1/jobs?dry_run=true", json=spec).status_code == 200
    with open_transaction() as tx:
        tx.session.execute(update(BaseModelRow).values(context_tokens=64))
    lengths = client.post("/v1/jobs?dry_run=true", json=spec).json()["method"]["dpo"]
    assert lengths["max_prompt_tokens"] == 32
    few = make_dataset(tmp_path, pairs(2))
    refused = client.post("/v1/jobs?dry_run=true", json=spec | {"dataset": few})
    assert (refused.status_code, refused.json()["code"]) == (422, "too_few_prompts")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with open_transaction() as tx:
        tx.session.execute(update(BaseModelRow).values(path=str(tmp_path), sha256="2" * 64))
    refused = client.post("/v1/jobs?dry_run=true", json=spec)
    assert (refused.status_code, refused.json()["code"]) == (422, "unusable_model")


def _plan(given: dict[str, Any], model: str, dataset: str) -> planning.Plan:
    if "stages" in given:
        nodes = [{**node, "inputs": {"data": dataset}} for node in given["stages"]]
        spec = {**given, "stages": nodes}
    else:
        spec = {**given, "model": model, "dataset": dataset}
    with open_transaction() as tx:
        return plan_spec(tx, OWNER, CreateJob.model_validate(spec))
