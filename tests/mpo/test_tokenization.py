import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mpo.chat_template import render_response, turn_end
from mpo.errors import ChatTemplateRefused, NoChatTemplate, UnusableModel
from mpo.records import Message, PreferencePair
from mpo.tokenization import (
    EncodedPair,
    encode_pairs,
    encode_prompt,
    encode_response,
    load_tokenizer,
    terminator_id,
    terminators,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]
UNK, BOS, EOS, END = range(4)
CHATML = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ASK = [Message(role="user", content="ab")]


def answer(content: str) -> list[Message]:
    return [Message(role="assistant", content=content)]


def byte_tokenizer(template: str = "<s> $A", **options: Any) -> PreTrainedTokenizerFast:
    """A token a byte, after the special ones; Llama's way of setting <s> before a text by default."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | options
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def ids(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(c) for c in text]


def encode(
    tokenizer: PreTrainedTokenizerFast,
    *pairs: PreferencePair,
    prompt: int | None = None,
    response: int | None = None,
) -> tuple[list[EncodedPair], dict[str, int]]:
    encoded, counts = encode_pairs(pairs, tokenizer, max_prompt_tokens=prompt, max_response_tokens=response)
    return encoded, counts.to_json()


def test_prompt_has_special_tokens_and_responses_have_a_terminator() -> None:
    tokenizer = byte_tokenizer()
    (pair,), counts = encode(tokenizer, PreferencePair("x", "ab", "cd", "e"))
    assert pair == EncodedPair(
        "x",
        [BOS, *ids("ab", tokenizer)],
        [*ids("cd", tokenizer), EOS],
        [*ids("e", tokenizer), EOS],
        True,
        True,
    )
    assert counts == {"pairs": 1, "prompts_cut": 0, "chosen_cut": 0, "rejected_cut": 0, "joint_differs": 0}


def test_eos_that_the_tokenizer_sets_after_a_prompt_is_removed() -> None:
    tokenizer = byte_tokenizer("<s> $A </s>")
    assert encode_prompt("ab", tokenizer, None) == [BOS, *ids("ab", tokenizer)]
    (pair,), counts = encode(tokenizer, PreferencePair("x", "ab", "cd", "e"))
    assert (pair.chosen_ids[-1], counts["joint_differs"]) == (EOS, 0)


def test_only_an_eos_at_the_very_end_of_a_prompt_is_removed() -> None:
    tokenizer = byte_tokenizer("<s> $A </s>")
    assert encode_prompt("a</s>b", tokenizer, None) == [BOS, *ids("a", tokenizer), EOS, *ids("b", tokenizer)]
    assert encode_prompt("ab</s>", tokenizer, None) == [BOS, *ids("ab", tokenizer), EOS]


def test_both_sides_see_the_prompt_that_is_cut_for_neither_s_length() -> None:
    tokenizer = byte_tokenizer()
    long, short = PreferencePair("x", "abcd", "e" * 40, "f"), PreferencePair("y", "abcd", "e", "f")
    (first, second), counts = encode(tokenizer, long, short, prompt=3, response=4)
    assert first.prompt_ids == second.prompt_ids == encode_prompt("abcd", tokenizer, 3)
    assert (len(first.chosen_ids), len(first.rejected_ids)) == (4, 2)
    assert (counts["prompts_cut"], counts["chosen_cut"], counts["rejected_cut"]) == (2, 1, 0)


def test_cutting_is_never_a_failure() -> None:
    (pair,), counts = encode(
        byte_tokenizer(), PreferencePair("x", "a" * 99, "b" * 99, "c" * 99), prompt=1, response=1
    )
    assert (len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)) == (1, 1, 1)
    assert (pair.chosen_terminated, pair.rejected_terminated) == (False, False)
    assert counts == {"pairs": 1, "prompts_cut": 1, "chosen_cut": 1, "rejected_cut": 1, "joint_differs": 0}


def test_a_response_that_ends_with_the_terminator_gets_no_second_one() -> None:
    tokenizer = byte_tokenizer()
    (pair,), _ = encode(tokenizer, PreferencePair("x", "ab", "cd</s>", "</s>"))
    assert (pair.chosen_ids, pair.rejected_ids) == ([*ids("cd", tokenizer), EOS], [EOS])


def test_an_empty_response_is_its_terminator() -> None:
    (pair,), _ = encode(byte_tokenizer(), PreferencePair("x", "ab", "", "c"), response=1)
    assert (pair.chosen_ids, pair.chosen_terminated) == ([EOS], True)


def test_prompts_are_cut_at_their_beginning_and_responses_at_their_end() -> None:
    tokenizer = byte_tokenizer()
    (pair,), counts = encode(tokenizer, PreferencePair("x", "abcd", "efgh", "ij"), prompt=3, response=3)
    assert pair.prompt_ids == ids("bcd", tokenizer)
    assert (pair.chosen_ids, pair.chosen_terminated) == (ids("efg", tokenizer), False)
    assert (pair.rejected_ids, pair.rejected_terminated) == ([*ids("ij", tokenizer), EOS], True)
    assert (counts["prompts_cut"], counts["chosen_cut"], counts["rejected_cut"]) == (1, 1, 0)


def test_a_response_of_just_the_limit_is_not_cut_and_gets_its_terminator() -> None:
    tokenizer = byte_tokenizer()
    (pair,), counts = encode(tokenizer, PreferencePair("x", "a", "efg", "h"), response=3)
    assert (len(pair.chosen_ids), pair.chosen_terminated, counts["chosen_cut"]) == (4, True, 0)


def test_one_response_encodes_as_it_does_in_a_pair() -> None:
    tokenizer = byte_tokenizer()
    assert encode_response("cd", tokenizer, 5) == [*ids("cd", tokenizer), EOS]
    assert encode_response("cd", tokenizer, 5, terminated=False) == ids("cd", tokenizer)
    assert encode_response("cd", tokenizer, 1) == ids("c", tokenizer)


def test_pairs_whose_joint_ids_differ_are_counted() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["bc"])
    _, counts = encode(tokenizer, PreferencePair("x", "ab", "cd", "e"), PreferencePair("y", "ab", "d", "e"))
    assert counts["joint_differs"] == 1
    _, cut = encode(tokenizer, PreferencePair("x", "ab", "cd", "e"), prompt=1, response=1)
    assert (cut["prompts_cut"], cut["joint_differs"]) == (1, 1)


def test_messages_go_through_the_chat_template() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    (pair,), counts = encode(tokenizer, PreferencePair("x", ASK, answer("cd"), answer("e")))
    assert tokenizer.decode(pair.prompt_ids) == "<s>[user]ab<|end|>\n[assistant]"
    assert pair.prompt_ids.count(BOS) == 1
    assert pair.chosen_ids == [*ids("cd", tokenizer), END]
    assert counts["joint_differs"] == 0


def test_strings_are_never_templated_and_end_as_the_model_s_turns_do() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    (pair, other), _ = encode(
        tokenizer, PreferencePair("x", "ab", "cd", "e"), PreferencePair("y", ASK, answer("cd"), answer("e"))
    )
    assert pair.prompt_ids == [BOS, *ids("ab", tokenizer)]
    assert pair.chosen_ids == other.chosen_ids == [*ids("cd", tokenizer), END]


def test_response_may_hold_several_turns() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    turns = [*answer("cd"), *ASK, *answer("e")]
    (pair,), _ = encode(tokenizer, PreferencePair("x", ASK, turns, answer("f")))
    assert tokenizer.decode(pair.chosen_ids) == "cd<|end|>\n[user]ab<|end|>\n[assistant]e<|end|>"


def test_messages_without_a_chat_template_are_refused() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(NoChatTemplate) as caught:
        encode(tokenizer, PreferencePair("x", ASK, answer("c"), answer("d")))
    with pytest.raises(NoChatTemplate):
        encode_prompt(ASK, tokenizer, None)
    assert caught.value.code == "no_chat_template"


def test_conversation_that_the_chat_template_refuses_is_an_error_of_ours() -> None:
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    )
    tokenizer = byte_tokenizer(chat_template=refusing)
    with pytest.raises(ChatTemplateRefused, match="no system"):
        encode_prompt([Message(role="system", content="s"), *ASK], tokenizer, None)


def test_template_that_opens_a_turn_with_more_than_it_writes_back_is_followed() -> None:
    thinking = CHATML.replace("[assistant]{% endif", "[assistant]<think>{% endif")
    tokenizer = byte_tokenizer(chat_template=thinking)
    assert render_response(ASK, answer("cd"), tokenizer) == "cd"


def test_template_that_rewrites_earlier_turns_leaves_the_content() -> None:
    rewriting = "{{ messages|length }}" + CHATML
    tokenizer = byte_tokenizer(chat_template=rewriting)
    assert render_response(ASK, answer("cd"), tokenizer) == "cd"


def test_turn_end_without_a_special_token_falls_back_on_eos(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML.replace("<|end|>", ""))
    assert turn_end(tokenizer).terminator_id is None
    assert terminators(tmp_path, tokenizer).terminator_id == EOS
    assert encode_response(answer("cd"), tokenizer, None, prompt=ASK) == [*ids("cd", tokenizer), EOS]


def saved(folder: Path, generation_config: dict[str, Any] | None, **options: Any) -> Path:
    byte_tokenizer(**options).save_pretrained(folder)
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder


def test_stop_ids_are_the_terminator_and_those_of_the_generation_config(tmp_path: Path) -> None:
    found = terminators(saved(tmp_path, {"eos_token_id": [BOS, EOS]}))
    assert (found.terminator_id, found.stop_ids, found.pad_id) == (EOS, {BOS, EOS}, UNK)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert terminators(tmp_path).stop_ids == {EOS, 7}
    (tmp_path / "generation_config.json").write_text("{}")
    assert terminators(tmp_path).stop_ids == {EOS}


def test_a_model_without_generation_config_stops_where_its_configuration_says(tmp_path: Path) -> None:
    folder = saved(tmp_path, None)
    (folder / "config.json").write_text('{"eos_token_id": [7, 8]}')
    assert terminators(folder).stop_ids == {EOS, 7, 8}


def test_a_model_may_end_with_another_token_than_its_tokenizer_s_eos(tmp_path: Path) -> None:
    found = terminators(saved(tmp_path, {"eos_token_id": BOS}))
    assert (found.terminator_id, found.stop_ids) == (EOS, {EOS, BOS})
    assert found.pad_id not in found.stop_ids


def test_terminator_is_what_the_chat_template_sets(tmp_path: Path) -> None:
    found = terminators(saved(tmp_path, {"eos_token_id": EOS}, chat_template=CHATML))
    assert (found.terminator_id, found.stop_ids) == (END, {END, EOS})


def test_pad_is_never_a_stop_id(tmp_path: Path) -> None:
    folder = saved(tmp_path, {"eos_token_id": [EOS]}, pad_token="</s>")
    assert terminators(folder).pad_id == UNK
    assert terminators(saved(tmp_path, None, pad_token="<|end|>")).pad_id == END
    everything = {"eos_token_id": list(range(4))}
    assert terminators(saved(tmp_path, everything, pad_token="</s>")).pad_id == 4


def test_a_tokenizer_without_pad_and_unk_pads_with_what_ends_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path, None, unk_token=None)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (None, None)
    found = terminators(folder)
    assert found.pad_id == BOS
    (pair,), _ = encode(tokenizer, PreferencePair("x", "ab", "cd", "e"))
    assert pair.chosen_ids == [*ids("cd", tokenizer), EOS]


def test_model_without_any_terminator_is_refused_wherever_one_is_needed() -> None:
    tokenizer = byte_tokenizer(eos_token=None)
    with pytest.raises(UnusableModel, match="no EOS token, and no other"):
        encode(tokenizer, PreferencePair("x", "ab", "cd", "e"))
    with pytest.raises(UnusableModel, match="no EOS token, and no other"):
        encode_response("cd", tokenizer, None)
    with pytest.raises(UnusableModel, match="no EOS token, and no other"):
        terminator_id(tokenizer, "<|none|>")
    assert encode_response("cd", tokenizer, None, terminated=False) == ids("cd", tokenizer)
    assert encode_prompt("ab", tokenizer, None) == [BOS, *ids("ab", tokenizer)]


def test_the_token_that_is_told_counts_only_where_there_is_no_eos() -> None:
    assert terminator_id(byte_tokenizer(), "<|end|>") == EOS
    assert terminator_id(byte_tokenizer(eos_token=None), "<|end|>") == END
    assert terminator_id(byte_tokenizer(chat_template=CHATML), "<s>") == END


def test_model_without_eos_ends_with_the_token_that_it_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path, None, eos_token=None)
    assert terminators(folder, end_token="<|end|>").terminator_id == END
    with pytest.raises(UnusableModel, match="no EOS"):
        terminators(folder)


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match="does not load"):
        load_tokenizer(tmp_path)


def test_batches_change_nothing() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    texts = [PreferencePair(str(n), f"p{n}", f"c{n}", f"r{n}") for n in range(600)]
    talks = [PreferencePair(str(n), ASK, answer(f"c{n}"), answer(f"r{n}")) for n in range(600, 620)]
    together, counts = encode(tokenizer, *texts[:300], *talks, *texts[300:])
    assert counts["pairs"] == 620
    for pair in (texts[0], talks[3], texts[599]):
        (alone,), _ = encode(tokenizer, pair)
        assert alone == next(found for found in together if found.id == pair.id)
