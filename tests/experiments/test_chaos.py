"""The experiment itself: its schedule, that its questions can be answered with no, and a minute of it."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.chaos import audit, checks
from experiments.chaos.campaign import client_of
from experiments.chaos.faults import schedule
from experiments.chaos.ledger import Entry, Ledger
from experiments.chaos.settings import FULL, SHORT
from experiments.chaos.stack import Stack
from experiments.chaos.store_check import no_orphan_file

ROOT = Path(__file__).parents[2]


def test_a_seed_s_storm_is_always_the_same_and_no_other_s() -> None:
    assert schedule(3, FULL) == schedule(3, FULL)
    assert schedule(3, FULL) != schedule(4, FULL)
    assert all(fault.at < SHORT.storm_seconds for fault in schedule(3, SHORT))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    started = Stack(tmp_path_factory.mktemp("checks"), SHORT.environment)
    started.start()
    audit.install(started)
    yield started
    started.down()


@pytest.fixture(scope="module")
def ledger(stack: Stack) -> Ledger:
    """A dataset and a job that have succeeded, acknowledged as they are."""
    ledger, content = Ledger(), (ROOT / "examples" / "prompts.jsonl").read_bytes()
    with client_of(stack) as client:
        dataset = client.post("/v1/datasets", json={"name": "d", "kind": "prompts"}).json()["id"]
        client.put(f"/v1/datasets/{dataset}/content", content=content).raise_for_status()
        stages = [{"name": "rows", "kind": "hold_out", "inputs": {"data": dataset}}]
        job = client.post("/v1/jobs", json={"name": "j", "stages": stages, "seed": 5}).json()["id"]
    ledger.acknowledged(Entry("dataset", dataset, "d", ["ready"], hashlib.sha256(content).hexdigest()))
    ledger.acknowledged(Entry("job", job, "j", ["succeeded"], seed=5))
    ledger.names += [("dataset", "d"), ("job", "j")]
    assert checks.wait_until_quiet(stack, 60).broken == []
    return ledger


def test_nothing_is_wrong_where_nothing_is(stack: Stack, ledger: Ledger) -> None:
    findings = [
        checks.nothing_lost(stack, ledger),
        checks.nothing_doubled(stack, ledger),
        checks.published_once(stack),
        checks.no_orphan(stack),
        no_orphan_file(stack),
    ]
    assert [finding.broken for finding in findings] == [[]] * len(findings)


def test_lost_and_changed_work_is_noticed(stack: Stack, ledger: Ledger) -> None:
    [dataset], [job] = ledger.of("dataset"), ledger.of("job")
    wrong = Ledger()
    wrong.acknowledged(replace(dataset, id="ds_none"))
    wrong.acknowledged(replace(dataset, digest="0" * 64))
    wrong.acknowledged(replace(job, ends=["cancelled"]))
    assert len(checks.nothing_lost(stack, wrong).broken) == 3


def test_a_second_object_and_a_second_publication_are_noticed(stack: Stack, ledger: Ledger) -> None:
    with client_of(stack) as client:
        for _ in range(2):
            client.post("/v1/datasets", json={"name": "twice", "kind": "prompts"}).raise_for_status()
    ledger.asked("dataset", "twice")
    assert len(checks.nothing_doubled(stack, ledger).broken) == 1
    stack.sql(
        "INSERT INTO chaos.changes (run_id, slot, state, fence) SELECT id, slot, state, fence FROM runs"
    )
    assert len(checks.published_once(stack).broken) == 2


def test_a_file_and_a_process_that_belong_to_nobody_are_noticed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = stack.state.store / "runs" / "stray"
    stray.write_text("nobody's")
    assert any(str(stray.name) in each for each in no_orphan_file(stack).broken)
    stray.unlink(missing_ok=True)
    monkeypatch.setattr(checks, "GONE_SECONDS", 0.1)
    orphan = subprocess.Popen(["sleep", "60"], cwd=stack.state.scratch)
    try:
        assert [str(orphan.pid) in each for each in checks.no_orphan(stack).broken] == [True]
    finally:
        orphan.kill()
        orphan.wait()


def test_a_minute_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.chaos", "--short", "--seeds", "0", "--docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    page = (tmp_path / "reliability.md").read_text()
    assert page.count("0 broken") == done.stdout.count("kept  ") >= 9
