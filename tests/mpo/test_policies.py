import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.bert import BertConfig
from transformers.models.mamba import MambaConfig
from transformers.models.qwen3_5 import Qwen3_5Config

from mpo.errors import UnusableModel
from mpo.policies import load_policy, load_reward_model, new_reward_model, save_model
from mpo.reward_model.score import reward_offset, set_reward_offset
from tests.mpo.tiny import EOS, PAD, tiny_llama, write_policy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "base")


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_saved_policy_loads_elsewhere_with_the_same_weights_tokenizer_and_settings(
    folder: Path, tmp_path: Path
) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[1, EOS])
    policy = load_policy(folder)
    policy.generation_config.pad_token_id = 17  # trainers write into it
    save_model(policy, folder, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for name, weight in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert loaded.generation_config.eos_token_id == [1, EOS]
    assert loaded.generation_config.pad_token_id == PAD
    text = "red cat sleeps"
    tokenizers = [AutoTokenizer.from_pretrained(f) for f in (folder, tmp_path / "saved")]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]


def test_a_half_precision_policy_is_loaded_in_fp32(tmp_path: Path, folder: Path) -> None:
    policy = load_policy(folder)
    policy.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert {p.dtype for p in load_policy(tmp_path / "half").parameters()} == {torch.float32}


def test_dropout_is_off_also_in_training_mode(folder: Path) -> None:
    edit_json(folder / "config.json", attention_dropout=0.5)
    policy = load_policy(folder).train()
    ids = torch.tensor([[1, 5, 9, 7]])
    assert torch.equal(policy(input_ids=ids).logits, policy(input_ids=ids).logits)


def test_a_new_reward_models_head_depends_on_the_seed_alone(folder: Path) -> None:
    torch.manual_seed(1)
    first = new_reward_model(folder, seed=7)
    state = torch.get_rng_state()
    second = new_reward_model(folder, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, new_reward_model(folder, seed=8).score.weight)
    assert torch.equal(first.base_model.norm.weight, load_policy(folder).base_model.norm.weight)


def test_the_reward_offset_survives_saving_and_plain_loading(folder: Path, tmp_path: Path) -> None:
    model = new_reward_model(folder, seed=0)
    set_reward_offset(model, 1.25)
    save_model(model, folder, tmp_path / "rm")
    assert reward_offset(load_reward_model(tmp_path / "rm")) == 1.25
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert plain.config.mpo == {"kind": "reward_model", "reward_offset": 1.25}
    assert plain.config.num_labels == 1
    assert torch.equal(plain.score.weight, model.score.weight)
    assert not (tmp_path / "rm" / "generation_config.json").exists()


def test_a_reward_model_and_its_tokenizer_agree_on_padding_that_is_no_stop_token(
    folder: Path, tmp_path: Path
) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token="</s>")
    model = new_reward_model(folder, seed=0)
    assert model.config.pad_token_id != EOS
    save_model(model, folder, tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert tokenizer.pad_token_id == model.config.pad_token_id
    text = "red cat sleeps"
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def write_base(folder: Path, source: Path, model: PreTrainedModel) -> Path:
    """A folder of such a model with the tokenizer of another."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def test_no_reward_model_is_made_of_an_architecture_without_a_class_for_it(
    folder: Path, tmp_path: Path
) -> None:
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    base = write_base(tmp_path / "mamba", folder, AutoModelForCausalLM.from_config(config))
    load_policy(base)
    with pytest.raises(UnusableModel, match="no class with a scalar head for the architecture 'mamba'"):
        new_reward_model(base, seed=0)


def test_no_reward_model_is_made_where_the_head_of_the_class_is_more_than_a_row(
    folder: Path, tmp_path: Path
) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    base = write_base(tmp_path / "bert", folder, AutoModelForCausalLM.from_config(config))
    with pytest.raises(UnusableModel, match="no head of one score"):
        new_reward_model(base, seed=0)


def test_a_reward_model_is_made_of_the_text_part_of_a_model_that_reads_images_too(
    folder: Path, tmp_path: Path
) -> None:
    tiny = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    text = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "layer_types": ["full_attention"]}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
    config = Qwen3_5Config(text_config=tiny | text, vision_config=vision)
    base = write_base(tmp_path / "qwen", folder, AutoModelForImageTextToText.from_config(config))
    model = new_reward_model(base, seed=0)
    save_model(model, base, tmp_path / "rm")
    loaded, policy = load_reward_model(tmp_path / "rm"), load_policy(base)
    for name, weight in policy.base_model.state_dict().items():
        assert torch.equal(loaded.base_model.state_dict()[name], weight), name


def test_a_policy_is_no_reward_model(folder: Path) -> None:
    with pytest.raises(UnusableModel, match="no reward model"):
        load_reward_model(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match=r"config\.json"):
        load_policy(tmp_path)


def test_weights_in_a_pickle_are_refused(tmp_path: Path) -> None:
    model = tiny_llama(50)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnusableModel):
        load_policy(tmp_path)


def test_a_damaged_weights_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UnusableModel):
        load_policy(folder)


def test_weights_that_a_file_lacks_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnusableModel, match="up_proj"):
        load_policy(folder)
