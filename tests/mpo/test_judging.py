import json
import shutil
from pathlib import Path

import pytest

from mpo.answers import Answers
from mpo.config import EvaluateStage
from mpo.errors import UnusableModel
from mpo.generation import SampledResponse
from mpo.judging import Scorer
from mpo.model_tokens import ModelTokens
from mpo.policies import load_reward_model
from mpo.records import Content, PreferencePair
from mpo.reporter import StageInput
from mpo.reward_model.score import score_responses
from mpo.tokenization import encode_prompt, encode_response, load_tokenizer
from tests.mpo.tiny import EOS, tiny_llama, train_tokenizer, write_policy, write_reward_model

CONFIG = EvaluateStage(max_prompt_tokens=16, max_response_tokens=8, max_new_tokens=6)
PROMPTS: list[Content] = ["red cat 0: ", "blue dog 1: "]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judging")
    write_reward_model(folder / "judge", write_policy(folder / "sft"))
    tokenizer = train_tokenizer(["none of these texts is known to the judge"] * 3, 290)
    tiny_llama(300, seed=2).save_pretrained(folder / "foreigner")
    tokenizer.save_pretrained(folder / "foreigner")
    return folder


def scorer(house: Path, name: str = "judge") -> Scorer:
    return Scorer.of("judge", StageInput(name, house / name), CONFIG)


def tokens(house: Path, name: str) -> ModelTokens:
    return ModelTokens.of(StageInput(name, house / name))


def spoken(speaker: ModelTokens, *texts: str, stopped: bool = True) -> Answers:
    """Answers of these texts in the speaker's own ids."""
    last = [EOS] if stopped else []
    responses = [
        SampledResponse(
            [*speaker.tokenizer(text, add_special_tokens=False)["input_ids"], *last],
            "stop" if stopped else "length",
        )
        for text in texts
    ]
    return Answers(list(texts), responses)


def test_a_reward_model_s_padding_token_does_not_make_its_vocabulary_another_one(house: Path) -> None:
    assert tokens(house, "sft").same_ids(tokens(house, "judge"))
    assert not tokens(house, "foreigner").same_ids(tokens(house, "judge"))


def test_rows_of_the_embedding_that_the_other_lacks_make_ids_differ(house: Path, tmp_path: Path) -> None:
    shutil.copytree(house / "sft", tmp_path / "wider")
    config = json.loads((tmp_path / "wider" / "config.json").read_text())
    (tmp_path / "wider" / "config.json").write_text(
        json.dumps(config | {"vocab_size": config["vocab_size"] + 64})
    )
    assert not tokens(tmp_path, "wider").same_ids(tokens(house, "judge"))


def test_responses_of_the_judge_s_vocabulary_are_scored_as_they_were_sampled(house: Path) -> None:
    speaker, warnings = tokens(house, "sft"), list[str]()
    sampled = [SampledResponse([100, 101, 0], "stop"), SampledResponse([100, 101, 102], "length")]
    rows = scorer(house).rows(speaker, Answers(["", ""], sampled), PROMPTS, warnings.append)
    # Whichever token stopped it: the judge has learnt that responses end with its terminator.
    assert rows == [(0, 100, 101, EOS), (1, 100, 101, 102)]
    assert warnings == []


@pytest.mark.parametrize("stopped", [True, False])
def test_responses_of_another_vocabulary_are_encoded_again_by_the_judge(house: Path, stopped: bool) -> None:
    speaker, warnings = tokens(house, "foreigner"), list[str]()
    texts = ["red red", "cat runs"]
    answers = spoken(speaker, *texts, stopped=stopped)
    scores = scorer(house).scores([(speaker, answers)], PROMPTS, warnings.append)
    tokenizer = load_tokenizer(house / "judge")
    expected = score_responses(
        load_reward_model(house / "judge"),
        [encode_prompt(prompt, tokenizer, 16) for prompt in PROMPTS],
        [encode_response(text, tokenizer, None, terminated=stopped) for text in texts],
    )
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)
    assert ["foreigner and the judge judge have different vocabularies" in w for w in warnings] == [True]


def test_equal_texts_of_two_vocabularies_tie(house: Path) -> None:
    native, foreign = tokens(house, "sft"), tokens(house, "foreigner")
    answers = [(speaker, spoken(speaker, "red red", "cat runs")) for speaker in (native, foreign)]
    first, second, *again = scorer(house).scores(answers, PROMPTS, lambda _: None)
    assert again == [first, second]
    assert first != second


def test_messages_are_encoded_again_through_the_judge_s_template(house: Path, tmp_path: Path) -> None:
    shutil.copytree(house / "judge", tmp_path / "judge")
    tokenizer = load_tokenizer(tmp_path / "judge")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "judge")
    speaker = tokens(house, "foreigner")
    prompt: Content = [{"role": "user", "content": "cat"}]
    ((_, *ids),) = scorer(tmp_path).rows(speaker, spoken(speaker, "runs"), [prompt], lambda _: None)
    assert ids == [*tokenizer("runs", add_special_tokens=False)["input_ids"], EOS]


def test_what_is_cut_on_encoding_again_is_counted(house: Path) -> None:
    speaker, warnings = tokens(house, "foreigner"), list[str]()
    answers = spoken(speaker, "a", "zqxzqxzqxzqxzqx")
    longest = len(answers.responses[1].token_ids)
    shortened = Answers(["a", "z" * 40], answers.responses)
    rows = scorer(house).rows(speaker, shortened, PROMPTS, warnings.append)
    assert [len(row) - 1 for row in rows] == [2, longest]
    assert f"1 of them cut at {longest} tokens" in warnings[0]


def test_gaps_are_of_chosen_less_rejected(house: Path) -> None:
    pair = PreferencePair("0", "red cat 0: ", "red red", "cat bird")
    exchanged = PreferencePair("1", "red cat 0: ", "cat bird", "red red")
    gap, opposite, nothing = scorer(house).gaps(
        [pair, exchanged, PreferencePair("2", "red cat 0: ", "same", "same")]
    )
    assert gap == pytest.approx(-opposite, abs=1e-5)
    assert abs(gap) > 1e-3
    assert nothing == 0


def test_a_policy_is_no_judge(house: Path) -> None:
    with pytest.raises(UnusableModel, match="sft cannot be the judge: this is no reward model"):
        scorer(house, "sft").load()


def test_a_folder_without_a_configuration_is_named(tmp_path: Path, house: Path) -> None:
    shutil.copytree(house / "sft", tmp_path / "broken")
    (tmp_path / "broken" / "config.json").unlink()
    with pytest.raises(UnusableModel, match=r"broken: there is no config\.json"):
        tokens(tmp_path, "broken")
