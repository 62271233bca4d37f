"""Ctrl-C at a wait: what is said, and how the command ends."""

import pytest
import typer

from mpo_client.cli import exit_codes
from mpo_client.cli.screen import Screen
from mpo_client.cli.waiting import at_work, leaves_running


def test_ctrl_c_at_a_wait_says_that_the_work_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, at_work(Screen(), "cmp_1"):
        raise KeyboardInterrupt

    assert ended.value.exit_code == exit_codes.INTERRUPTED
    shown = capsys.readouterr()
    assert (shown.out, shown.err.split("\n")[-2:]) == ("", ["cmp_1 goes on without you", ""])


def test_ctrl_c_is_told_with_its_advice_and_other_errors_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), leaves_running(Screen(), "job_1", "; cancel it"):
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="away"), leaves_running(Screen(), "job_2"):
        raise OSError("away")

    assert capsys.readouterr().err == "\njob_1 goes on without you; cancel it\n"
