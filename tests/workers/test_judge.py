"""Judges that are biased, wrong, slow, away or talk nonsense, over real HTTP."""

import socket
import threading
import time

import numpy as np
import pytest

from core.comparing import JudgeScorer
from tests.judges import judging, says, shown
from workers.judge import MOST_FAILURES, Judge, Pairing, over_http, pairings_of, verdict_of
from workers.win_rates import judged_win_rates

HERE = frozenset({"127.0.0.1"})
PAIRS = [Pairing(f"prompt {i}", f"good {i}", f"bad {i}") for i in range(20)]


def judge_at(url: str, seconds: float = 5.0) -> Judge:
    scorer = JudgeScorer(base_url=url, model="judge", timeout_seconds=seconds)
    return Judge(scorer, over_http(scorer, HERE, None))


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("A", "A"),
        (" b.", "B"),
        ("**TIE**", "tie"),
        ("[[B]]", "B"),
        ("Both are polite, but A rambles. B", "B"),
        ("A, since B is rude", "A"),
        ("Tie", "tie"),
        ("neither", "unparsed"),
        ("", "unparsed"),
        ("Answering is hard", "unparsed"),
    ],
)
def test_verdicts(said: str, verdict: str) -> None:
    assert verdict_of(said) == verdict


def test_a_judge_that_knows_is_followed() -> None:
    with judging(lambda q: says("A" if shown(q)[0].startswith("good") else "B")) as url:
        assert set(judge_at(url).outcomes(PAIRS)) == {"a"}
        swapped = [Pairing(p.prompt, p.answer_b, p.answer_a) for p in PAIRS]
        assert set(judge_at(url).outcomes(swapped)) == {"b"}


def test_equal_answers_are_a_tie_that_nobody_is_asked_about() -> None:
    with judging(lambda q: says("A")) as url:
        assert judge_at(url).outcomes([Pairing("p", "same", "same")]) == ["tie"]


def test_a_judge_that_always_takes_the_first_place_decides_nothing() -> None:
    with judging(lambda q: says("A")) as url:
        outcomes = judge_at(url).outcomes(PAIRS)
    (rate,) = judged_win_rates(["a", "b"], [[each] for each in outcomes], [[4.0, 4.0]] * len(PAIRS))
    assert (rate["win_rate"], rate["ties"], rate["disagreed"], rate["n"]) == (0.5, 20, 20, 20)


def test_both_orders_remove_a_planted_preference_for_a_place() -> None:
    """A judge that sees which answer is better three times of four, and else takes the first place."""
    generator = np.random.default_rng(0)
    draws = {i: (generator.random(2) < 0.5) for i in range(400)}
    truth = {i: bool(generator.random() < 0.6) for i in range(400)}

    def ask(question: str) -> str:
        first = shown(question)[0].split()
        number, turn = int(first[1]), int(first[0] == "b")
        if draws[number][turn]:
            return "A"
        better = "a" if truth[number] else "b"
        return "A" if first[0] == better else "B"

    judge = Judge(JudgeScorer(base_url="http://judge/v1", model="m"), ask)
    pairs = [Pairing("p", f"a {i}", f"b {i}") for i in range(400)]
    (rate,) = judged_win_rates(["a", "b"], [[o] for o in judge.outcomes(pairs)], [[1.0, 1.0]] * 400)
    (other,) = judged_win_rates(
        ["b", "a"],
        [[o] for o in judge.outcomes([Pairing("p", p.answer_b, p.answer_a) for p in pairs])],
        [[1.0, 1.0]] * 400,
    )
    # Whoever stands first gains nothing: the rates of both orders add up to one, and tell who is better.
    assert rate["win_rate"] + other["win_rate"] == pytest.approx(1)
    assert 0.5 < rate["win_rate"] < np.mean(list(truth.values()))
    # Asked once, the judge would have found for whatever is shown first.
    once = np.mean([ask_once(ask, i) for i in range(400)])
    assert once > 0.7


def ask_once(ask: object, number: int) -> bool:
    """Whether a, shown first, would have won."""
    question = f"[Answer A]\na {number}\n[End of answer A]\n\n[Answer B]\nb {number}\n[End of answer B]"
    return ask(question) == "A"  # type: ignore[operator]


def test_nonsense_counts_apart() -> None:
    with judging(lambda q: says("I would rather not say")) as url:
        outcomes = judge_at(url).outcomes(PAIRS)
    (rate,) = judged_win_rates(["a", "b"], [[each] for each in outcomes], [[1.0, 1.0]] * 20)
    assert (rate["unparsed"], rate["n"], rate["win_rate"]) == (20, 0, None)


@pytest.mark.parametrize("content", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": 3}', b"null"])
def test_what_is_no_chat_completion_fails_and_ends(content: bytes) -> None:
    with judging(lambda q: (200, content)) as url:
        assert set(judge_at(url).outcomes(PAIRS)) == {"failed"}


def test_a_judge_that_is_away_is_soon_asked_no_more() -> None:
    asked: list[str] = []

    def refuse(question: str) -> tuple[int, bytes]:
        asked.append(question)
        return 503, b""

    with judging(refuse) as url:
        assert set(judge_at(url).outcomes(PAIRS * 20)) == {"failed"}
    # Those under way when the last one failed are the most that can be more.
    assert len(asked) <= MOST_FAILURES + 8
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    assert set(judge_at(url).outcomes(PAIRS)) == {"failed"}


def test_a_judge_that_never_answers_holds_nobody_for_long() -> None:
    release = threading.Event()

    def wait(question: str) -> tuple[int, bytes]:
        release.wait(60)
        return says("A")

    with judging(wait) as url:
        began = time.monotonic()
        outcomes = judge_at(url, seconds=0.3).outcomes(PAIRS * 10)
        took = time.monotonic() - began
        release.set()
    assert set(outcomes) == {"failed"}
    assert took < 30


def test_each_pair_of_models_is_judged_once() -> None:
    assert [(p.answer_a, p.answer_b) for p in pairings_of("p", ["x", "y", "z"])] == [
        ("x", "y"),
        ("x", "z"),
        ("y", "z"),
    ]
