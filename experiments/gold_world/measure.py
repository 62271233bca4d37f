"""What the gold reward, which nobody trained on, says of a model's answers, and how far it has moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.grammar import gold_reward
from mpo.generation import SamplingConfig, sample
from mpo.policies import load_policy
from mpo.sampled_kl import sampled_kl
from mpo.seeds import row_seed
from mpo.tokenization import encode_prompt, load_tokenizer, terminators


@dataclass(frozen=True)
class Answers:
    """A model's answers to the prompts. gold: of each; kl: full-vocabulary KL to SFT, in nats a response."""

    gold: list[float]
    kl: float
    tokens: float
    ended: float


def measure(folder: Path, sft: Path, prompts: Sequence[str], sampling: tuple[int, int], seed: int) -> Answers:
    """Samples one answer a prompt at temperature 1. sampling: longest prompt and answer, in tokens."""
    tokenizer, ends = load_tokenizer(folder), terminators(folder)
    ids = [encode_prompt(prompt, tokenizer, sampling[0]) for prompt in prompts]
    policy = load_policy(folder).eval()
    config = SamplingConfig(sampling[1], ends.stop_ids, ends.pad_id)
    responses = sample(policy, ids, config, [row_seed(seed, number) for number in range(len(ids))])
    texts = [str(tokenizer.decode(r.token_ids, skip_special_tokens=True)) for r in responses]
    kls = sampled_kl(folder, sft, ids, [r.token_ids for r in responses], ends.pad_id)
    return Answers(
        gold=[gold_reward(prompt, text) for prompt, text in zip(prompts, texts, strict=True)],
        kl=sum(kls) / len(kls),
        tokens=sum(len(r.token_ids) for r in responses) / len(responses),
        ended=sum(r.finish_reason == "stop" for r in responses) / len(responses),
    )
