"""The opponents' pairs and prompts, read as `bench/peers/README.md` says: the file's first that fit."""

import argparse
import gzip
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mpo.tokenization import EncodedPair, load_tokenizer

TEXTS = ("prompt", "chosen", "rejected")
RESPONSE_TOKENS = 48
"""Sampled to each prompt of a PPO run."""


@dataclass(frozen=True)
class Pairs:
    """Pairs as token ids. useful_tokens: of each its prompt once, and both responses."""

    encoded: Sequence[EncodedPair]
    useful_tokens: Sequence[int]
    pad_id: int
    tokenize_seconds: float

    def part(self, start: int, stop: int) -> "Pairs":
        """Some of them."""
        return replace(self, encoded=self.encoded[start:stop], useful_tokens=self.useful_tokens[start:stop])


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids."""

    token_ids: Sequence[list[int]]
    pad_id: int
    tokenize_seconds: float


def scoring_parser(program: str, rounds: int) -> argparse.ArgumentParser:
    """Of benches that run a reward model over the first pairs of a file, as `read_pairs` takes them."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--docs", type=Path)
    parser.set_defaults(held_out=0, max_length=512, parity=None)
    return parser


def read_pairs(chosen: argparse.Namespace) -> Pairs:
    """The pairs of a training and its held-out ones: those whose two sequences both fit.

    Prompt and response are encoded together, as the opponents do; what both sequences begin with alike is
    the shared prompt. Exits where there are too few.
    """
    tokenizer = load_tokenizer(chosen.model)
    wanted = chosen.batch if chosen.parity else chosen.steps * chosen.batch + chosen.held_out
    fitting = _fitting_pairs(chosen.pairs, tokenizer, chosen.max_length)
    started = time.perf_counter()
    encoded = list(islice(fitting, wanted))
    seconds = time.perf_counter() - started
    if len(encoded) < wanted:
        raise SystemExit(f"only {len(encoded)} pairs of at most {chosen.max_length} tokens, {wanted} needed")
    assert isinstance(tokenizer.pad_token_id, int)
    return Pairs(encoded, [pair.tokens for pair in encoded], tokenizer.pad_token_id, seconds)


def read_prompts(chosen: argparse.Namespace) -> Prompts:
    """The prompts of a PPO run: those that fit with the tokens that are sampled. Exits where too few do."""
    tokenizer = load_tokenizer(chosen.model)
    wanted = chosen.steps * chosen.batch
    started = time.perf_counter()
    ids = (tokenizer(texts[0])["input_ids"] for texts in _texts(chosen.pairs))
    prompts = list(islice((row for row in ids if len(row) + RESPONSE_TOKENS <= chosen.max_length), wanted))
    if len(prompts) < wanted:
        raise SystemExit(f"only {len(prompts)} prompts, {wanted} needed")
    assert isinstance(tokenizer.pad_token_id, int)
    return Prompts(prompts, tokenizer.pad_token_id, time.perf_counter() - started)


def _texts(path: Path) -> Iterator[tuple[str, str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            prompt, chosen, rejected = (json.loads(line)[name] for name in TEXTS)
            yield prompt, chosen, rejected


def _fitting_pairs(path: Path, tokenizer: PreTrainedTokenizerBase, longest: int) -> Iterator[EncodedPair]:
    end = str(tokenizer.eos_token)
    for number, (prompt, chosen, rejected) in enumerate(_texts(path)):
        prompt_ids, *both = tokenizer([prompt, prompt + chosen + end, prompt + rejected + end])["input_ids"]
        if max(map(len, both)) > longest:
            continue
        shared = len(prompt_ids)
        if any(ids[:shared] != prompt_ids for ids in both):  # the last token of the prompt took in more
            alike = (a == b for a, b in zip(*both, strict=False))
            shared = next((place for place, same in enumerate(alike) if not same), min(map(len, both)) - 1)
        yield EncodedPair(str(number), both[0][:shared], both[0][shared:], both[1][shared:], True, True)
