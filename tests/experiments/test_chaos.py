"""The experiment itself: its schedule, that its questions can be answered with no, and a minute of it."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from experiments.chaos import campaign, checks
from experiments.chaos.__main__ import example_rows
from experiments.chaos.campaign import Campaign, client_of
from experiments.chaos.faults import schedule
from experiments.chaos.ledger import Ledger
from experiments.chaos.report import STRUCK, page
from experiments.chaos.settings import FULL, SHORT
from experiments.chaos.stack import Stack
from experiments.chaos.store_check import no_orphan_file

SEED = 0


def test_a_seed_s_storm_is_always_the_same_and_no_other_s() -> None:
    assert schedule(3, FULL) == schedule(3, FULL)
    assert schedule(3, FULL) != schedule(4, FULL)
    assert all(fault.at < SHORT.storm_seconds for fault in schedule(3, SHORT))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack, tormented by the first test."""
    started = Stack(tmp_path_factory.mktemp("chaos"), SHORT.environment)
    started.start()
    yield started
    started.down()
    assert checks.nothing_runs(started).broken == []


@pytest.fixture(scope="module")
def done(stack: Stack) -> Campaign:
    return campaign.torment(stack, SEED, SHORT, example_rows(), print)


@pytest.fixture(scope="module")
def ledger(done: Campaign) -> Ledger:
    return done.ledger


def test_a_minute_of_faults_breaks_no_promise(done: Campaign) -> None:
    # How fast the work goes on is for the command to measure: here it depends on what else the machine does.
    assert [str(finding) for finding in done.broken if finding.promise != campaign.TIMELY] == []
    assert sum(done.faults.values()) >= 5
    assert len(done.ledger.of("dataset")) >= 10
    assert len(done.ledger.of("job")) >= 50
    assert {recovery.fault for recovery in done.recoveries} == set(SHORT.lone)


def test_the_page_says_what_was_found(done: Campaign) -> None:
    written = page([done], SHORT, "the command")
    assert written.count("0 broken") == len(done.findings) - len(done.broken)
    assert f"| {STRUCK['worker-cpu']} | 1 |" in written
    broken = replace(done, findings=[replace(done.findings[0], broken=["one", "two"])])
    assert "BROKEN 2 times" in page([broken], SHORT, "the command")


def test_lost_and_changed_work_is_noticed(stack: Stack, ledger: Ledger) -> None:
    dataset = next(each for each in ledger.of("dataset") if each.digest and each.ends == ["ready"])
    job = next(each for each in ledger.of("job") if each.ends == ["succeeded"])
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
    [run] = stack.sql("SELECT run_id FROM chaos.changes WHERE state = 'succeeded' LIMIT 1")
    stack.sql(
        "INSERT INTO chaos.changes (run_id, slot, state, fence) "
        "SELECT run_id, slot, state, fence FROM chaos.changes WHERE state = 'succeeded' AND run_id = %s",
        run.run_id,
    )
    assert [run.run_id in each for each in checks.published_once(stack).broken] == [True]


def test_a_file_and_a_process_that_belong_to_nobody_are_noticed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = stack.state.store / "elsewhere"
    stray.write_text("nobody's")
    lost = next(stack.state.store.glob("uploads/*"))
    lost.rename(stray.with_name("lost"))
    assert {each.rpartition(" ")[2] for each in no_orphan_file(stack).broken} == {
        *("elsewhere", "lost"),
        f"uploads/{lost.name}",
    }
    monkeypatch.setattr(checks, "GONE_SECONDS", 0.1)
    orphan = subprocess.Popen(["sleep", "60"], cwd=stack.state.scratch)
    try:
        assert [str(orphan.pid) in each for each in checks.no_orphan(stack).broken] == [True]
    finally:
        orphan.kill()
        orphan.wait()
