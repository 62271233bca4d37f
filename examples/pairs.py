"""Preference pairs: two responses that `tiny` wrote itself, labelled by the gold reward with noise."""

import gzip
import itertools
import json
import math
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from examples.grammar import gold_reward
from examples.training import held_out_dialogues, training_dialogues

SOURCE = "examples/grammar.py, responses by tiny"
MAX_NEW_TOKENS = 96
BATCH = 64
# Nats of preference for one point of gold reward: at this scale about one label in ten is wrong.
LABEL_SCALE = 1.5


@dataclass(frozen=True)
class Pair:
    id: str
    prompt: str
    chosen: str
    rejected: str
    source: str = SOURCE


@dataclass(frozen=True)
class LabelledPairs:
    pairs: list[Pair]
    noisy_share: float
    mean_gold_reward: float


def sample_pairs(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    count: int,
    label_scale: float = LABEL_SCALE,
) -> LabelledPairs:
    """Samples two responses a prompt until `count` pairs are usable; prompts differ from each other.

    A pair is dropped when a response is empty, unended or not one plain turn, when both are the same, or
    when the gold reward cannot tell them apart. The label is drawn by Bradley and Terry: the first is
    chosen with probability sigmoid(label_scale (gold(first) - gold(second))).
    """
    rng = random.Random(seed)  # noqa: S311 - labels, not secrets
    torch.manual_seed(seed)
    prompts = iter(
        dict.fromkeys(each.prompt for each in itertools.islice(training_dialogues(seed), 4 * count))
    )
    pairs: list[Pair] = []
    rewards: list[float] = []
    noisy = 0
    while len(pairs) < count:
        batch = list(itertools.islice(prompts, BATCH))
        sampled = sample_responses(model, tokenizer, [prompt for prompt in batch for _ in range(2)])
        for prompt, first, second in zip(batch, sampled[::2], sampled[1::2], strict=True):
            if first is None or second is None or len(pairs) == count:
                continue
            gap = gold_reward(prompt, first) - gold_reward(prompt, second)
            if first == second or gap == 0:
                continue
            first_chosen = rng.random() < 1 / (1 + math.exp(-label_scale * gap))
            noisy += first_chosen != (gap > 0)
            rewards += [gold_reward(prompt, first), gold_reward(prompt, second)]
            chosen, rejected = (first, second) if first_chosen else (second, first)
            pairs.append(Pair(f"tiny-{len(pairs):04}", prompt, chosen, rejected))
    return LabelledPairs(pairs, noisy / count, sum(rewards) / len(rewards))


def sample_responses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[str | None]:
    """One response a prompt, drawn from the model's own distribution; None where it is not one plain turn."""
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.no_grad():
        sequences = model.generate(  # type: ignore[misc]
            **encoded, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=MAX_NEW_TOKENS
        )
    responses = sequences[:, encoded["input_ids"].shape[1] :].tolist()
    return [_plain_response(tokenizer, response) for response in responses]


def held_out_prompts(seed: int, count: int) -> list[dict[str, str]]:
    """Prompts that neither the model's texts nor the pairs have, each with an id."""
    prompts = dict.fromkeys(each.prompt for each in itertools.islice(held_out_dialogues(seed), 2 * count))
    return [
        {"id": f"held-out-{number:02}", "prompt": prompt}
        for number, prompt in enumerate(itertools.islice(prompts, count))
    ]


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Gzipped JSON Lines without a time or name in the header, so that equal pairs give equal bytes."""
    lines = "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


def _plain_response(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str | None:
    if tokenizer.eos_token_id not in ids:
        return None
    text = str(tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)]))
    plain = text.strip() and text == f" {text.strip()}" and "\n" not in text and "\ufffd" not in text
    return text if plain else None
