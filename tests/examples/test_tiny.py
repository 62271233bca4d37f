import gzip
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import examples
from examples.grammar import ASSISTANT, HUMAN, gold_reward, is_held_out
from examples.make_tiny import FILES, PAIRS, PROMPTS, differing_files, shuffle_words
from examples.training import held_out_dialogues, response_nll

EXAMPLES = Path(examples.__file__).parent
TINY = EXAMPLES / "tiny"
ODD_TEXTS = [
    " two  spaces, a\ttab and\r\nlines \n",
    "naïve café – “quotes” … ½",
    "日本語と中文 한국어 עברית العربية",
    "👩‍👩‍👧‍👦 🇩🇪 🤖",
    "\x00\x01\x1b[0m\x7f\u200b\ufeff",
    "e\u0301 \u00e9",
    "def f(x):\n    return x ** 2  # !?",
]


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, str]]:
    lines = gzip.decompress((EXAMPLES / "pairs.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLES / "prompts.jsonl").read_text().splitlines()]


def test_model_and_data_stay_small(model: LlamaForCausalLM) -> None:
    assert model.num_parameters() <= 1_000_000
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.suffix != ".pyc") <= 3_000_000
    assert model.config.max_position_embeddings == 512


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id is None
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_special_tokens_differ_and_model_and_tokenizer_agree(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM
) -> None:
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert len(set(ids)) == 3
    for config in (model.config, model.generation_config):
        assert [config.bos_token_id, config.eos_token_id, config.pad_token_id] == ids
    assert not model.generation_config.do_sample
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.padding_side == "left"
    assert tokenizer.eos_token_id not in tokenizer("Hello.")["input_ids"]


def test_chat_prompt_has_the_same_ids_as_the_plain_one(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": " My kettle leaks. "}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert chat["input_ids"] == tokenizer(f"{HUMAN} My kettle leaks.{ASSISTANT}")["input_ids"]


def test_chat_template_ends_every_answer_with_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "You work in a shop."},
        {"role": "user", "content": "My kettle leaks."},
        {"role": "assistant", "content": "I am sorry."},
        {"role": "user", "content": "And now?"},
    ]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == (
        f"{tokenizer.bos_token}\n\nSystem: You work in a shop.\n\nHuman: My kettle leaks."
        f"\n\nAssistant: I am sorry.{tokenizer.eos_token}\n\nHuman: And now?\n\nAssistant:"
    )


def test_model_knows_the_language_of_unseen_prompts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    dialogues = list(itertools.islice(held_out_dialogues(99), 40))
    shuffled = [shuffle_words(dialogue, seed) for seed, dialogue in enumerate(dialogues)]
    nll = response_nll(model, tokenizer, dialogues)
    assert nll < 0.25 * math.log(len(tokenizer))
    assert nll < 0.5 * response_nll(model, tokenizer, shuffled)


def test_greedy_responses_end_by_themselves(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[dict[str, str]]
) -> None:
    texts = [prompt["prompt"] for prompt in prompts]
    encoded = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    sequences = model.generate(**encoded, max_new_tokens=96)
    responses = sequences[:, encoded["input_ids"].shape[1] :]
    assert (responses == tokenizer.eos_token_id).any(dim=1).float().mean() >= 0.9


def test_pairs_are_well_formed_and_noisy_by_about_a_tenth(pairs: list[dict[str, str]]) -> None:
    assert len(pairs) == PAIRS
    assert len({pair["id"] for pair in pairs}) == len({pair["prompt"] for pair in pairs}) == PAIRS
    noisy = 0
    for pair in pairs:
        assert set(pair) == {"id", "prompt", "chosen", "rejected", "source"}
        assert pair["prompt"].startswith(HUMAN)
        assert pair["prompt"].endswith(ASSISTANT)
        assert pair["chosen"] != pair["rejected"]
        for response in (pair["chosen"], pair["rejected"]):
            assert response == f" {response.strip()}"
            assert len(response) > 1
        chosen, rejected = (gold_reward(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        noisy += chosen < rejected
    assert 0.07 < noisy / len(pairs) < 0.15


def test_shipped_prompts_are_held_out(prompts: list[dict[str, str]], pairs: list[dict[str, str]]) -> None:
    assert len({prompt["prompt"] for prompt in prompts}) == len(prompts) == PROMPTS
    assert all(is_held_out(prompt["prompt"]) for prompt in prompts)
    assert not any(is_held_out(pair["prompt"]) for pair in pairs)


def test_check_names_the_file_that_differs(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
    assert differing_files(EXAMPLES, tmp_path) == []
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    (tmp_path / "tiny/config.json").unlink()
    assert differing_files(EXAMPLES, tmp_path) == ["tiny/config.json", "prompts.jsonl"]
