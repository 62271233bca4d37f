from pathlib import Path

import pytest

from mpo_client.cli.connection import Connection, Source, connect
from mpo_client.cli.error_lines import Misuse


@pytest.fixture(autouse=True)
def here(elsewhere: Path) -> Path:
    return elsewhere


def state_folder(folder: Path, url: str, key: str) -> Path:
    folder.mkdir()
    (folder / "url").write_text(f"{url}\n")
    (folder / "api-key").write_text(f"{key}\n")
    return folder


def test_flags_come_before_environment_before_file(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config/mpo/config.toml"
    config.parent.mkdir(parents=True)
    (config.parent / "the-key").write_text("of-the-file\n")
    config.write_text('url = "http://file"\nkey_file = "the-key"\n')
    assert connect([]) == Connection("http://file", "of-the-file")

    monkeypatch.setenv("MPO_API_KEY", "of-the-environment")
    assert connect([]) == Connection("http://file", "of-the-environment")
    monkeypatch.setenv("MPO_URL", "http://environment/")
    assert connect([]) == Connection("http://environment", "of-the-environment")

    (here / "key").write_text("of-the-flag")
    outer = Source(url="http://before-the-command", key="outer")
    assert connect([Source(key_file=here / "key"), outer]) == Connection(
        "http://before-the-command", "of-the-flag"
    )


def test_a_named_file_takes_the_place_of_the_usual_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "other.toml").write_text('key = "k"\n')
    monkeypatch.setenv("MPO_CONFIG", "other.toml")
    assert connect([]) == Connection("http://127.0.0.1:8000", "k")
    monkeypatch.setenv("MPO_CONFIG", "none.toml")
    with pytest.raises(Misuse, match=r"none\.toml"):
        connect([])


def test_a_state_folder_says_both(here: Path) -> None:
    state = state_folder(here / "s", "http://127.0.0.1:1234", "its-key")
    assert connect([Source(state=state)]) == Connection("http://127.0.0.1:1234", "its-key")
    assert connect([Source(state=state, url="http://else")]) == Connection("http://else", "its-key")


def test_a_stack_that_runs_here_is_taken_where_nothing_else_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_folder(here / ".demo", "http://127.0.0.1:1234", "its-key")
    assert connect([]) == Connection("http://127.0.0.1:1234", "its-key")
    # Its key is for no other service.
    monkeypatch.setenv("MPO_URL", "http://else")
    with pytest.raises(Misuse, match="no API key"):
        connect([])


def test_a_key_given_twice_is_refused(here: Path) -> None:
    with pytest.raises(Misuse, match="exclude each other"):
        connect([Source(key="a", key_file=here / "key")])


@pytest.mark.parametrize("key", ["a b", "schlüssel"])
def test_a_text_that_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(Misuse, match="right file"):
        connect([Source(key=key)])
