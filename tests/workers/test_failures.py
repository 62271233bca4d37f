"""What a run's row says of a store that fails, and whether another attempt may help."""

import errno

import pytest

from core.uploading import StoreFailed
from mpo.errors import OutOfMemory
from workers.child_protocol import Crashed
from workers.failures import crash_row, failed, store_failed


@pytest.mark.parametrize(
    ("error", "again"),
    [
        pytest.param(StoreFailed(errno.ENOSPC, "No space left on device"), False, id="full"),
        pytest.param(StoreFailed(errno.EROFS, "Read-only file system"), False, id="read-only"),
        pytest.param(StoreFailed(errno.EIO, "EndpointConnectionError"), True, id="away"),
        pytest.param(StoreFailed(errno.EBUSY, "Please reduce your request rate."), True, id="busy"),
        pytest.param(FileNotFoundError(errno.ENOENT, "No such file or directory"), False, id="gone"),
        pytest.param(OSError(errno.EIO, "Input/output error"), False, id="scratch"),
    ],
)
def test_a_store_that_may_answer_in_another_moment_is_asked_again(error: OSError, again: bool) -> None:
    failure = store_failed(error)
    assert (failure.code, failure.retryable) == ("storage_failed", again)
    assert failure.message == f"The store: {error.strerror}"


def test_memory_that_is_short_is_named() -> None:
    error = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory"
    )
    assert failed(error).code == "out_of_memory"
    assert failed(RuntimeError("shapes do not fit")).code == "internal_error"
    of_stage = failed(OutOfMemory("Memory was short. The nearest setting is lora of rank 8"))
    assert (of_stage.code, of_stage.retryable) == ("out_of_memory", False)
    assert "lora of rank 8" in of_stage.message


def test_a_process_that_the_system_killed_may_have_had_no_memory() -> None:
    assert "where memory runs out" in crash_row(Crashed(-9), "")["message"]
    assert "memory" not in crash_row(Crashed(-11), "")["message"]
