"""Which service the command talks to, and with which key: flags, then environment, then file, then folder."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from mpo_client.cli.error_lines import Misuse

DEFAULT_URL = "http://127.0.0.1:8000"
STATE_FOLDERS = (Path(".state"), Path(".demo"))
_SETTINGS = frozenset({"url", "key", "key_file", "state"})


@dataclass(frozen=True)
class Connection:
    """Where, and with which key."""

    url: str
    key: str


@dataclass(frozen=True)
class Source:
    """One place where it may be said. A state folder says both; key and key_file exclude each other."""

    url: str | None = None
    key: str | None = None
    key_file: Path | None = None
    state: Path | None = None
    config: Path | None = None

    def read_url(self) -> str | None:
        if self.url is None and self.state is not None:
            return _state_url(self.state)
        return self.url

    def read_key(self) -> str | None:
        if self.key is not None and self.key_file is not None:
            raise Misuse("--key and --key-file exclude each other: give one")
        if self.key is not None:
            return self.key.strip()
        file = self.key_file
        if file is None and self.state is not None:
            file = self.state / "api-key"
        return None if file is None else _read(file, "the key").strip()


def connect(flags: Iterable[Source]) -> Connection:
    """What the first source says that says it, URL and key each. Raises Misuse where none says a key."""
    given = [*flags, Source(url=_environment("MPO_URL"), key=_environment("MPO_API_KEY"))]
    config = next((each.config for each in given if each.config is not None), None)
    sources = [*given, _from_file(config)]
    url = next((found for each in sources if (found := each.read_url())), None)
    key = next((found for each in sources if (found := each.read_key())), None)
    if url is None and key is None:
        # A folder here says both or nothing: its key belongs to no other service.
        for folder in STATE_FOLDERS:
            if (folder / "url").is_file():
                return Connection(_checked(_state_url(folder)), _read(folder / "api-key", "the key").strip())
    if not key:
        raise Misuse("no API key: give --key-file FILE or --state DIR, or set MPO_API_KEY")
    if not key.isascii() or any(character.isspace() for character in key):
        raise Misuse("the API key holds characters that no key has: is it the right file?")
    return Connection(_checked(url or DEFAULT_URL), key)


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Misuse(f"{url!r} is no URL of a service: it should look like {DEFAULT_URL}")
    return url.rstrip("/")


def _state_url(folder: Path) -> str:
    if not (folder / "url").is_file():
        raise Misuse(f"no service runs in {folder}: start it with `mpo up --state {folder}`, or give --url")
    return _read(folder / "url", "the service's URL").strip()


def _environment(name: str) -> str | None:
    return os.environ.get(name) or None


def _from_file(config: Path | None) -> Source:
    """~/.config/mpo/config.toml, or the one that is named: that one has to be there."""
    named = config or _path(_environment("MPO_CONFIG"))
    file = named or Path(_environment("XDG_CONFIG_HOME") or "~/.config").expanduser() / "mpo/config.toml"
    if named is None and not file.is_file():
        return Source()
    try:
        values = tomllib.loads(_read(file, "the configuration"))
    except tomllib.TOMLDecodeError as error:
        raise Misuse(f"{file} is no TOML: {error}") from error
    return _source_of(values, file)


def _source_of(values: Mapping[str, object], file: Path) -> Source:
    texts = {name: value for name, value in values.items() if isinstance(value, str) and name in _SETTINGS}
    if unknown := sorted(values.keys() - texts.keys()):
        raise Misuse(
            f"{file}: {unknown[0]} is no setting; those are {', '.join(sorted(_SETTINGS))}, as texts"
        )
    folder = file.parent
    return Source(
        url=texts.get("url"),
        key=texts.get("key"),
        key_file=_path(texts.get("key_file"), folder),
        state=_path(texts.get("state"), folder),
    )


def _path(text: str | None, folder: Path = Path()) -> Path | None:
    return None if not text else folder / Path(text).expanduser()


def _read(file: Path, what: str) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise Misuse(f"cannot read {what} from {file}: {why}") from error
