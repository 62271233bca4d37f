from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from mpo.chat_template import render
from mpo.errors import UnusableModel
from mpo.gguf_models import convert_gguf
from mpo.policies import load_policy, new_reward_model
from mpo.records import Message
from mpo.tokenization import load_tokenizer, terminators
from tests.mpo.tiny_gguf import digit_splitting_tokenizer, write_gguf

IDS = torch.tensor([[5, 9, 44, 250, 17, 3]])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf", GGMLQuantizationType.Q4_1)
    convert_gguf(folder / "tiny.gguf", folder / "plain")
    return folder


def test_the_plain_model_has_the_logits_of_the_dequantized_one(converted: Path) -> None:
    quantized = AutoModelForCausalLM.from_pretrained(converted, gguf_file="tiny.gguf", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(load_policy(converted / "plain")(IDS).logits, quantized.eval()(IDS).logits)


def test_unquantized_weights_come_through_to_the_bit(tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.F32)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "plain")
    plain = load_policy(tmp_path / "plain").state_dict()
    for name, weight in original.state_dict().items():
        assert torch.equal(plain[name], weight), name


def test_the_plain_model_is_one_that_stages_train(converted: Path) -> None:
    config = load_policy(converted / "plain").config
    assert getattr(config, "quantization_config", None) is None
    assert config.max_position_embeddings == 64
    assert new_reward_model(converted / "plain", seed=0).config.pad_token_id == 0


def test_padding_ends_no_response(converted: Path) -> None:
    tokenizer = load_tokenizer(converted / "plain")
    ends = terminators(converted / "plain", tokenizer)
    assert (ends.terminator_id, ends.stop_ids, ends.pad_id) == (2, {2}, 0)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert load_policy(converted / "plain").generation_config.pad_token_id == 0


def test_the_chat_template_is_kept(converted: Path) -> None:
    text = render([Message(role="user", content="hi")], load_tokenizer(converted / "plain"))
    assert text == "<|im_start|>user\nhi<|im_end|>\n"


def test_digits_are_parted_as_the_model_was_trained(converted: Path) -> None:
    tokenizer, trained = load_tokenizer(converted / "plain"), digit_splitting_tokenizer()
    for text in ("1. yes\n\n2. no", "one  3", "times 34"):
        assert tokenizer(text)["input_ids"] == trained.encode(text).ids
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_tokenizer_of_an_unknown_rule_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.F32, split_rule="qwen2")
    with pytest.raises(UnusableModel, match="rule 'qwen2'"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "plain")


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGML no")
    with pytest.raises(UnusableModel, match=r"no\.gguf is no GGUF file"):
        convert_gguf(tmp_path / "no.gguf", tmp_path / "plain")
