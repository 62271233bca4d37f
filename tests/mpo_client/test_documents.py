"""What the documents of SDK and command show can be called so."""

import ast
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from mpo_client import AsyncClient, Client
from mpo_client.cli import exit_codes
from mpo_client.cli.connection import Source, connect
from mpo_client.cli.main import build_app
from mpo_client.cli.spec_files import read_spec
from mpo_client.nouns import Answers, Iterates
from tests.app.jobs.factories import make_dataset, make_model

DOCS = Path(__file__).resolve().parents[2] / "docs"
SDK, CLI = (DOCS / "sdk.md").read_text(), (DOCS / "cli.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    """Every line of the shell blocks, from `mpo` on."""
    lines = [line for block in blocks(CLI, "sh") for line in block.splitlines()]
    inner = [re.sub(r"^\w+=\$\((.*?)\)(\s*#.*)?$", r"\1", line) for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in inner if line.startswith("mpo ")]


def test_every_call_of_the_sdk_s_document_fits_a_method() -> None:
    clients = Client("http://a", "k"), AsyncClient("http://a", "k")
    calls = 0
    for block in blocks(SDK, "python"):
        for node in ast.walk(ast.parse(block)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            noun = node.func.value
            if isinstance(noun, ast.Attribute) and ast.unparse(noun.value) == "client":
                calls += 1
                for client in clients:
                    method = getattr(getattr(client, noun.attr), node.func.attr)
                    keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                    inspect.signature(method).bind(None, *node.args, **keywords)
    assert calls >= 12


def test_the_sdk_s_document_lists_every_method() -> None:
    for name, noun in vars(Client("http://a", "k")).items():
        for method in dir(noun):
            if isinstance(inspect.getattr_static(noun, method), Answers | Iterates):
                assert f"`{method}`" in SDK, f"{name}.{method}"


@pytest.mark.parametrize("line", commands(), ids=" ".join)
def test_every_line_of_the_command_s_document_can_be_called(
    line: list[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pairs.jsonl.gz", "prompts.jsonl"):
        (elsewhere / name).touch()
    command = get_command(build_app())
    while hasattr(command, "commands"):
        command = command.commands[line[0]]
        line = line[1:]
    assert command.make_context("mpo", line).params


def test_the_command_s_document_names_every_command() -> None:
    for name, group in get_command(build_app()).commands.items():  # type: ignore[attr-defined]
        for command in getattr(group, "commands", {"": None}):
            assert re.search(rf"`(mpo )?{name} {command}|`mpo {name}|mpo {name} {command}", CLI) or (
                f"`{command}`" in CLI
            ), f"{name} {command}"


def test_the_exit_codes_are_told() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", CLI, re.MULTILINE)}
    assert told == {value for name, value in vars(exit_codes).items() if name.isupper()}


def test_the_shown_configuration_and_spec_are_read(elsewhere: Path, sdk: Client) -> None:
    (elsewhere / "api-key").write_text("mpo_sk_x")
    (config,) = blocks(CLI, "toml")
    assert tomllib.loads(config)
    (elsewhere / "config.toml").write_text(config)
    assert connect([Source(config=elsewhere / "config.toml")]).key == "mpo_sk_x"
    (spec,) = blocks(CLI, "yaml")
    (elsewhere / "spec.yaml").write_text(spec)
    asked = {**read_spec("spec.yaml"), "model": make_model(), "dataset": make_dataset(elsewhere)}
    assert sdk.jobs.create(asked).name == "first"
