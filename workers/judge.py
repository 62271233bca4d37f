"""An LLM that compares two answers, asked over any OpenAI-compatible address, in both orders.

The first place is often preferred as such: so each pair is shown both ways round, and what is not said both
times is a tie. What cannot be read as a verdict, and what is not answered, is counted apart and decides
nothing. A judge that fails again and again is asked no more.
"""

import logging
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from threading import Lock
from typing import Any, Literal

from core.comparing import JudgeScorer
from core.outside import AddressRefused, NoUsableAnswer, post_json

Verdict = Literal["A", "B", "tie", "unparsed", "failed"]
Outcome = Literal["a", "b", "tie", "disagreed", "unparsed", "failed"]
AT_ONCE = 8
MOST_FAILURES = 16
"""Failures in a row after which a judge counts as away."""
SHOWN_CHARACTERS = 8_000
"""Of a prompt and of each answer."""
LETTER = re.compile(r"\b(A|B|TIE)\b", re.IGNORECASE)
ASKED = (
    "{rubric}\n\n[Request]\n{prompt}\n[End of request]\n\n[Answer A]\n{first}\n[End of answer A]\n\n"
    "[Answer B]\n{second}\n[End of answer B]\n\n"
    "Which answer is better? Reply with one word: A, B, or TIE."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairing:
    """Two models' answers to one prompt."""

    prompt: str
    answer_a: str
    answer_b: str


@dataclass
class Judge:
    """How the judge is asked. ask: what a conversation is answered; raises NoUsableAnswer."""

    scorer: JudgeScorer
    ask: Callable[[str], str]
    _failures: int = 0
    _lock: Lock = field(default_factory=Lock)

    def outcomes(self, pairings: Sequence[Pairing]) -> list[Outcome]:
        """What the judge says of each pair, in order."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._outcome, pairings))

    def _outcome(self, pairing: Pairing) -> Outcome:
        if pairing.answer_a == pairing.answer_b:
            return "tie"
        one = self._verdict(pairing.prompt, pairing.answer_a, pairing.answer_b)
        other = self._verdict(pairing.prompt, pairing.answer_b, pairing.answer_a)
        for bad in ("failed", "unparsed"):
            if bad in (one, other):
                return bad
        if one == other == "tie":
            return "tie"
        # The second time, a's answer stood in the second place.
        return {("A", "B"): "a", ("B", "A"): "b"}.get((one, other), "disagreed")  # type: ignore[return-value]

    def _verdict(self, prompt: str, first: str, second: str) -> Verdict:
        with self._lock:
            if self._failures >= MOST_FAILURES:
                return "failed"
        shown = [text[:SHOWN_CHARACTERS] for text in (prompt, first, second)]
        question = ASKED.format(rubric=self.scorer.rubric, prompt=shown[0], first=shown[1], second=shown[2])
        try:
            said = self.ask(question)
        except NoUsableAnswer as error:
            self._count_failure(str(error))
            return "failed"
        with self._lock:
            self._failures = 0
        return verdict_of(said)

    def _count_failure(self, why: str) -> None:
        with self._lock:
            self._failures += 1
            last = self._failures == MOST_FAILURES
        if last:
            logger.warning("the judge failed %d times on end, and is asked no more: %s", MOST_FAILURES, why)


def verdict_of(said: str) -> Verdict:
    """The verdict that a text ends with; only a text that names one thing at its end, or at all, is one."""
    found = LETTER.findall(said.strip())
    if not found:
        return "unparsed"
    # Whoever explains first ends with the verdict; whoever begins with it may go on to name both.
    last = found[0] if LETTER.match(said.strip().strip("*[( ")) else found[-1]
    return "tie" if last.upper() == "TIE" else last.upper()


def over_http(scorer: JudgeScorer, allowed: Collection[str], key: str | None) -> Callable[[str], str]:
    """Asks chat completions. Raises AddressRefused where the judge's address may not be asked."""
    url = f"{scorer.base_url.rstrip('/')}/chat/completions"

    def ask(question: str) -> str:
        body: dict[str, Any] = {
            "model": scorer.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": scorer.max_tokens,
        }
        try:
            answer = post_json(url, body, allowed=allowed, seconds=scorer.timeout_seconds, key=key)
            return str(answer["choices"][0]["message"]["content"])
        except AddressRefused as error:
            raise NoUsableAnswer(error.detail) from error
        except (KeyError, IndexError, TypeError) as error:
            raise NoUsableAnswer("no choices in the answer") from error

    return ask


def pairings_of(prompt: str, answers: Sequence[str]) -> list[Pairing]:
    """Each pair of models once, in the order of `combinations`."""
    return [Pairing(prompt, a, b) for a, b in combinations(answers, 2)]
