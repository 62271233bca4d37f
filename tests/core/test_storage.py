"""One store, in a folder and on S3: files appear whole or not at all, whatever goes wrong."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from core.storage import MANIFEST, Storage
from core.uploading import StoreFailed
from tests.object_store import door, fresh_bucket

CONTENT = bytes(range(256)) * 40
PART_BYTES = 16 << 20


@pytest.fixture(params=["folder", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The same store, on this machine and far away."""
    if request.param == "folder":
        return Storage(f"file://{tmp_path / 'store'}")
    return Storage(request.getfixturevalue("bucket"))


def write(storage: Storage, location: str, content: bytes = CONTENT) -> None:
    writer = storage.upload(location)
    writer.write(content)
    writer.commit()


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(CONTENT)
    (folder / "summary.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    return folder


def test_a_file_is_there_after_its_commit_and_not_before(anywhere: Storage) -> None:
    writer = anywhere.upload("uploads/a")
    writer.write(CONTENT)
    writer.write(CONTENT)
    assert not anywhere.exists("uploads/a")
    stored = writer.commit()
    digest = hashlib.sha256(CONTENT * 2).hexdigest()
    assert (stored.name, stored.bytes, stored.sha256) == ("uploads/a", 2 * len(CONTENT), digest)
    assert b"".join(anywhere.read_chunks("uploads/a")) == CONTENT * 2
    assert anywhere.names("uploads") == ["a"]


@pytest.mark.parametrize(
    "size", [0, len(CONTENT), PART_BYTES + 1], ids=["nothing", "little", "several-parts"]
)
def test_an_upload_that_breaks_off_leaves_nothing(anywhere: Storage, size: int) -> None:
    writer = anywhere.upload("uploads/b")
    writer.write(b"x" * size)
    writer.abort()
    assert anywhere.names("uploads") == []
    assert unfinished(anywhere) == 0
    writer.abort()


def test_an_abort_after_the_commit_takes_nothing_back(anywhere: Storage) -> None:
    writer = anywhere.upload("uploads/c")
    writer.write(CONTENT)
    writer.commit()
    writer.abort()
    assert anywhere.exists("uploads/c")


def test_an_empty_file_is_a_file(anywhere: Storage) -> None:
    write(anywhere, "uploads/empty", b"")
    assert anywhere.exists("uploads/empty")
    assert list(anywhere.read_chunks("uploads/empty")) == []


def test_a_file_of_several_parts_comes_back_as_it_went(anywhere: Storage) -> None:
    content = hashlib.sha256(b"seed").digest() * ((PART_BYTES + 4096) // 32)
    write(anywhere, "uploads/large", content)
    digest = hashlib.sha256()
    for chunk in anywhere.read_chunks("uploads/large"):
        digest.update(chunk)
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()
    start = PART_BYTES - 5
    assert b"".join(anywhere.read_chunks("uploads/large", start, start + 10)) == content[start : start + 10]


@pytest.mark.parametrize(("start", "end"), [(0, 1), (5, 1000), (10_000, None), (3, 3)])
def test_ranges_are_exact(anywhere: Storage, start: int, end: int | None) -> None:
    write(anywhere, "uploads/ranges")
    assert b"".join(anywhere.read_chunks("uploads/ranges", start, end)) == CONTENT[start:end]


def test_what_is_not_there_is_told_before_the_first_byte(anywhere: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        anywhere.read_chunks("uploads/none")


def test_a_folder_exists_once_its_manifest_does(anywhere: Storage, tmp_path: Path) -> None:
    stored = anywhere.put_folder("runs/r/1/out", folder_of(tmp_path))
    assert [file.name for file in stored] == ["empty", "model/weights", "summary.json"]
    assert anywhere.holds_folder("runs/r/1/out")
    assert not anywhere.holds_folder("runs/r/1")
    assert anywhere.names("runs/r/1") == ["out"]
    assert anywhere.names("runs/r/1/out") == sorted(["empty", MANIFEST, "model", "summary.json"])


def test_a_folder_and_a_file_are_fetched_whole(anywhere: Storage, tmp_path: Path) -> None:
    anywhere.put_folder("runs/r/1/out", folder_of(tmp_path))
    model = anywhere.fetch("runs/r/1/out/model", tmp_path / "fetched")
    assert (model / "weights").read_bytes() == CONTENT
    file = anywhere.fetch("runs/r/1/out/model/weights", tmp_path / "file")
    assert file.read_bytes() == CONTENT


def test_what_cannot_be_fetched_leaves_no_half_copy(bucket: str, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with pytest.raises(FileNotFoundError):
        Storage(bucket).fetch("runs/none", target)
    assert list(tmp_path.glob("copy*")) == []


def test_deleting_takes_a_folder_and_not_its_neighbour(anywhere: Storage, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for fence in ("1", "10"):
        anywhere.put_folder(f"runs/r/{fence}", folder)
    anywhere.delete("runs/r/1")
    assert anywhere.names("runs/r") == ["10"]
    assert len(anywhere.put_folder("runs/r/2", folder)) == 3
    anywhere.delete("runs/r/1")
    anywhere.delete("runs/r/2/summary.json")
    assert anywhere.names("runs/r/2") == ["empty", MANIFEST, "model"]


def test_two_processes_see_what_the_other_writes(anywhere: Storage, tmp_path: Path, bucket: str) -> None:
    other = Storage(f"file://{anywhere.root_folder}" if anywhere.root_folder else bucket)
    assert anywhere.names("uploads") == []
    write(other, "uploads/new")
    assert anywhere.names("uploads") == ["new"]
    other.delete("uploads/new")
    assert not anywhere.exists("uploads/new")


def test_the_check_writes_and_leaves_nothing(anywhere: Storage) -> None:
    anywhere.check()
    assert anywhere.names("probes") == []


@pytest.mark.parametrize("location", ["/etc/passwd", "uploads/../../x", ".."])
def test_a_location_does_not_leave_the_store(anywhere: Storage, location: str) -> None:
    for use in (anywhere.upload, anywhere.delete, anywhere.names):
        with pytest.raises(ValueError, match="not a location"):
            use(location)


def test_a_full_disk_is_a_failure_with_its_reason_and_leaves_nothing(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}")
    (tmp_path / "uploads").mkdir()
    # The kernel's own full disk, under the name that the upload will have until it is whole.
    (tmp_path / "uploads" / "x.part").symlink_to("/dev/full")
    writer = storage.upload("uploads/x")
    writer.write(b"x")
    with pytest.raises(StoreFailed) as failed:
        writer.commit()
    assert failed.value.errno == errno.ENOSPC
    writer.abort()
    assert storage.names("uploads") == []


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    # Nobody, not even root, makes folders here.
    (tmp_path / "uploads").symlink_to("/proc/self/fdinfo")
    storage = Storage(f"file://{tmp_path}")
    with pytest.raises(StoreFailed):
        storage.upload("uploads/y")
    (tmp_path / "probes").symlink_to("/proc/self/fdinfo")
    with pytest.raises(StoreFailed):
        storage.check()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("size", [10, PART_BYTES + 1], ids=["one-call", "several-parts"])
def test_a_server_that_fails_in_mid_write_leaves_no_file(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    with door(s3_url) as opened:
        monkeypatch.setenv("AWS_ENDPOINT_URL", opened.url)
        storage = Storage(fresh_bucket())
        writer = storage.upload("uploads/z")
        writer.write(b"x" * size)
        opened.refuse = True
        with pytest.raises(StoreFailed):
            writer.commit()
        opened.refuse = False
        assert storage.names("uploads") == []
        writer.abort()
        assert unfinished(storage) == 0
        write(storage, "uploads/z")
        assert storage.names("uploads") == ["z"]


def test_no_server_at_all_is_a_failure_of_the_store(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreFailed, match="EndpointConnectionError"):
        Storage(bucket).check()
    S3FileSystem.clear_instance_cache()


def test_an_upload_to_s3_holds_no_more_than_a_few_parts(bucket: str) -> None:
    code = f"""
import resource
from core.storage import Storage
storage = Storage({bucket!r})
def send(location, chunks):
    writer = storage.upload(location)
    for _ in range(chunks):
        writer.write(b"x" * (1 << 20))
    writer.commit()
send("a", 17)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
send("b", 65)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), **_settings()}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert int(ran.stdout) < 32 << 10, f"{ran.stdout} KiB more for 48 MiB more"


def unfinished(storage: Storage) -> int:
    """Multipart uploads that an object store holds; of a folder, files that are not whole."""
    if storage.root_folder:
        return len(list(storage.root_folder.rglob("*.part")))
    fs, root = storage.remote
    return len(fs.list_multipart_uploads(root.partition("/")[0]))


def _settings() -> dict[str, str]:
    needed = {
        "MPO_DATABASE_URL": "postgresql+psycopg://n@localhost/n",
        "MPO_REDIS_URL": "redis://localhost:1",
    }
    return {**os.environ, **needed, "MPO_STORE_URL": "file:///nowhere"}
