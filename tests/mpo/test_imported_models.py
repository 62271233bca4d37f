import json
from pathlib import Path

import pytest
import torch
from transformers import T5Config

from mpo.errors import UnusableModel
from mpo.imported_models import check_folder, main
from mpo.policies import load_policy
from tests.mpo.tiny import write_policy, write_reward_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "model")


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_policy_and_a_reward_model_can_be_started_from(folder: Path, tmp_path: Path) -> None:
    check_folder(folder)
    check_folder(write_reward_model(tmp_path / "rm", folder))


def test_an_unknown_architecture_is_refused_and_its_code_not_run(folder: Path) -> None:
    change_config(folder, model_type="odd")
    with pytest.raises(UnusableModel, match=r"architecture 'odd'$"):
        check_folder(folder)
    change_config(folder, auto_map={"AutoConfig": "odd.OddConfig"})
    (folder / "odd.py").write_text("raise SystemExit('this was run')")
    with pytest.raises(UnusableModel, match="never run"):
        check_folder(folder)


def test_an_encoder_decoder_is_no_causal_language_model(folder: Path) -> None:
    T5Config().save_pretrained(folder)
    with pytest.raises(UnusableModel, match="'t5' is no causal language model"):
        check_folder(folder)


def test_quantized_weights_are_refused(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnusableModel, match="quantized"):
        check_folder(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load_policy(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnusableModel, match="no safetensors"):
        check_folder(folder)


def test_a_part_that_the_index_names_is_missed(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnusableModel, match="safetensors cannot be read"):
        check_folder(folder)


def test_the_command_says_what_is_wrong_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder)]) == 0
    (folder / "tokenizer.json").unlink()
    assert main(["check", str(folder)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
