"""What a run's row says of a store that fails, and whether another attempt may help."""

import errno

import pytest

from core.uploading import StoreFailed
from workers.failures import store_failed


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
