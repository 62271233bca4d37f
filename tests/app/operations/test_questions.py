"""Questions whose answer comes late, fails, or cannot even be asked."""

import asyncio
import gc
import logging
from threading import Event, Thread

import pytest

from app.operations.questions import NoAnswer, Question

LONG = 30.0


def ask(question: Question[str], *, within_seconds: float = LONG) -> str:
    return asyncio.run(question.answer(within_seconds=within_seconds, kept_seconds=0.0))


def test_a_question_that_found_no_thread_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question(lambda: "yes")

    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(Thread, "start", refuse)
        with pytest.raises(NoAnswer):
            ask(question)
    assert ask(question) == "yes"


def test_an_error_that_comes_after_everybody_gave_up_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    told = Event()

    def fail() -> str:
        told.wait(LONG)
        raise OSError("postgresql://user:secret@host")

    async def give_up() -> None:
        question = Question(fail)
        with pytest.raises(NoAnswer):
            await question.answer(within_seconds=0.01, kept_seconds=0.0)
        told.set()
        with pytest.raises(OSError, match="secret"):
            await question.answer(within_seconds=LONG, kept_seconds=LONG)

    with caplog.at_level(logging.ERROR):
        asyncio.run(give_up())
        gc.collect()
    assert caplog.records == []
