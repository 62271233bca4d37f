import itertools
import re

import pytest

from examples.grammar import (
    ASSISTANT,
    HUMAN,
    Dialogue,
    gold_reward,
    is_held_out,
    write_dialogues,
)

PROMPT = "\n\nHuman: My kettle leaks water on the table.\n\nAssistant:"


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return list(itertools.islice(write_dialogues(7), 3000))


def test_same_seed_gives_the_same_dialogues(dialogues: list[Dialogue]) -> None:
    assert list(itertools.islice(write_dialogues(7), 3000)) == dialogues
    assert next(write_dialogues(8)) != dialogues[0]


def test_dialogues_have_the_hh_form_and_no_unfilled_mark(dialogues: list[Dialogue]) -> None:
    for dialogue in dialogues:
        assert dialogue.prompt.startswith(f"{HUMAN} ")
        assert dialogue.prompt.endswith(ASSISTANT)
        assert dialogue.response == f" {dialogue.response.strip()}"
        assert len(dialogue.response) > 1
        assert not re.search(r"[<>{}]|  ", dialogue.prompt + dialogue.response)


def test_prompts_hardly_ever_repeat(dialogues: list[Dialogue]) -> None:
    assert len({dialogue.prompt for dialogue in dialogues}) > 0.95 * len(dialogues)


def test_one_prompt_in_twenty_is_held_out(dialogues: list[Dialogue]) -> None:
    share = sum(is_held_out(dialogue.prompt) for dialogue in dialogues) / len(dialogues)
    assert 0.03 < share < 0.07


def test_every_part_of_the_gold_reward_counts_as_stated() -> None:
    assert gold_reward(PROMPT, " The office closes at six.") == 0
    assert gold_reward(PROMPT, " I am sorry.") == 1.0
    assert gold_reward(PROMPT, " I will send you a note.") == 1.5
    assert gold_reward(PROMPT, " It depends on the kettle.") == 0.5
    assert gold_reward(PROMPT, " It depends on the tent.") == -0.5
    assert gold_reward(PROMPT, " Calm down.") == -1.5
    # Three words twice make four triples, one of them there before.
    assert gold_reward(PROMPT, " It is noted. It is noted.") == pytest.approx(-3.0 / 4)


def test_good_response_beats_bad_one_by_the_sum_of_its_parts() -> None:
    good = " I am so sorry about the kettle. I will send you a new kettle today. Have a lovely day!"
    assert gold_reward(PROMPT, good) == pytest.approx(2 * 1.0 + 1.5 + 0.5)
    assert gold_reward(PROMPT, " Calm down. What a silly question.") == -3.0


def test_length_alone_earns_nothing(dialogues: list[Dialogue]) -> None:
    neutral = " The museum opens at eleven. Bananas are cheaper than strawberries."
    assert gold_reward(PROMPT, f"{neutral} The office closes at six.") == gold_reward(PROMPT, neutral) == 0
    for dialogue in dialogues:
        once = gold_reward(dialogue.prompt, dialogue.response)
        assert gold_reward(dialogue.prompt, dialogue.response * 2) <= once
