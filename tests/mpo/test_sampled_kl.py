from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mpo.errors import StageInterrupted
from mpo.policies import load_policy
from mpo.sampled_kl import sampled_kl
from tests.mpo.tiny import PAD, write_policy

PROMPTS, RESPONSES = [[1, 40, 50], [1, 60]], [[70, 80], [90, 100, 2]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kl")
    for seed, name in enumerate(("sft", "ppo")):
        write_policy(folder / name, seed)
    return folder


def test_kl_equals_a_sum_over_the_vocabulary_written_out(house: Path) -> None:
    kls = sampled_kl(house / "ppo", house / "sft", PROMPTS, RESPONSES, PAD)
    policy, reference = load_policy(house / "ppo"), load_policy(house / "sft")
    for prompt, response, kl in zip(PROMPTS, RESPONSES, kls, strict=True):
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(prompt) - 1 : -1].double().softmax(-1) for m in (policy, reference))
        assert_close(torch.tensor(kl).double(), (p * (p / q).log()).sum(), atol=1e-4, rtol=1e-4)


def test_kl_of_a_model_to_itself_is_exactly_zero(house: Path) -> None:
    assert sampled_kl(house / "ppo", house / "ppo", PROMPTS, RESPONSES, PAD) == [0.0, 0.0]


def test_what_asks_it_to_stop_ends_it(house: Path) -> None:
    def stop(done: int) -> bool:
        raise StageInterrupted(done=done)

    with pytest.raises(StageInterrupted) as caught:
        sampled_kl(house / "ppo", house / "sft", PROMPTS, RESPONSES, PAD, stop)
    assert caught.value.facts == {"done": 2}
