import os
import shutil
import time
from pathlib import Path

import pytest

from mpo.token_cache import PARTIAL, PARTIAL_SECONDS, TokenCache, partial_file

KEYS = ("first", "second", "third", "fourth")


def keep(cache: TokenCache, key: str, size: int = 10) -> None:
    with partial_file(cache.folder) as partial:
        partial.write_bytes(b"x" * size)
        cache.keep(partial, key)


def age(cache: TokenCache, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.path(key), (then, then))


def kept(cache: TokenCache) -> set[str]:
    return {path.stem for path in cache.folder.iterdir()}


def test_what_was_not_read_for_the_longest_goes_first(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path / "tokens", limit_bytes=30)
    for number, key in enumerate(KEYS[:3]):
        keep(cache, key)
        age(cache, key, 1000 - number)
    cache.mark_used("first")
    keep(cache, "fourth")
    assert kept(cache) == {"first", "third", "fourth"}


def test_a_file_beyond_the_limit_is_not_kept_and_costs_no_other(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, limit_bytes=30)
    keep(cache, "first")
    keep(cache, "second", size=31)
    assert kept(cache) == {"first"}
    keep(cache, "third", size=30)
    assert kept(cache) == {"third"}


def test_half_of_a_small_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TokenCache(tmp_path, limit_bytes=1000)
    usage = type(shutil.disk_usage(tmp_path))

    def disk(folder: Path) -> object:
        held = sum(path.stat().st_size for path in folder.iterdir())
        return usage(50, held, 50 - held)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    for number, key in enumerate(KEYS):
        keep(cache, key)
        age(cache, key, 1000 - number)
    assert kept(cache) == {"third", "fourth"}


def test_a_key_is_marked_only_where_it_has_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TokenCache(tmp_path, 10).mark_used("first")


def test_what_is_not_used_any_more_and_what_killed_processes_left_goes(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, limit_bytes=1000)
    for key in KEYS[:2]:
        keep(cache, key)
    age(cache, "first", 100)
    for name, seconds in (("left", PARTIAL_SECONDS + 60), ("at-work", 60)):
        (tmp_path / f"{name}{PARTIAL}").touch()
        os.utime(tmp_path / f"{name}{PARTIAL}", (time.time() - seconds,) * 2)
    assert cache.drop_unused(50) == 2
    assert kept(cache) == {"second", "at-work"}
    os.utime(tmp_path / f"at-work{PARTIAL}", (0, 0))
    keep(cache, "third")
    assert kept(cache) == {"second", "third"}
    assert TokenCache(tmp_path / "none yet", 10).drop_unused(0) == 0


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), partial_file(tmp_path):
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
