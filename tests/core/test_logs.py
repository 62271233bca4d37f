"""Log lines: one object each, with what is bound where they are written, and none of it elsewhere."""

import json
import logging
import threading

import pytest

from core.logs import JsonLines, TextLines, bind, bound_request


def line(message: str = "said", error: bool = False) -> dict[str, object]:
    record = logging.LogRecord("core.x", logging.WARNING, __file__, 1, message, (), None)
    if error:
        try:
            raise ValueError("broken\nin two")
        except ValueError as raised:
            record.exc_info = (type(raised), raised, raised.__traceback__)
    formatted = JsonLines("api").format(record)
    assert "\n" not in formatted
    found: dict[str, object] = json.loads(formatted)
    return found


def test_a_line_says_when_who_and_what_even_with_line_breaks_in_it() -> None:
    found = line("two\nlines", error=True)
    assert (found["level"], found["logger"], found["message"]) == ("warning", "core.x", "two\nlines")
    assert (found["process"], str(found["ts"])[-6:]) == ("api", "+00:00")
    assert "ValueError: broken" in str(found["exception"])


def test_what_is_bound_is_said_within_the_block_alone_and_in_this_thread_alone() -> None:
    elsewhere: list[dict[str, object]] = []
    with bind(request_id="req_1", job_id=None), bind(run_id="run_1", fence=2):
        thread = threading.Thread(target=lambda: elsewhere.append(line()))
        thread.start()
        thread.join()
        inside = line()
        assert bound_request() == "req_1"
    assert (inside["request_id"], inside["run_id"], inside["fence"]) == ("req_1", "run_1", 2)
    assert "job_id" not in inside
    assert bound_request() is None
    for other in (*elsewhere, line()):
        assert not {"request_id", "run_id"} & set(other)


@pytest.mark.parametrize("fields", [{}, {"run_id": "run_1"}], ids=["none", "one"])
def test_text_lines_end_with_what_is_bound(fields: dict[str, str]) -> None:
    record = logging.LogRecord("core.x", logging.INFO, __file__, 1, "said", (), None)
    with bind(**fields):
        text = TextLines("api").format(record)
    assert text.endswith("said run_id=run_1" if fields else "core.x said")
