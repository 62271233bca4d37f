"""Trains `tiny`, a Llama of half a million parameters, on the grammar's dialogues."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.grammar import ASSISTANT, HUMAN, Dialogue, is_held_out, write_dialogues
from examples.tokenizer import CONTEXT

IGNORED = -100  # the label that transformers' losses leave out


@dataclass(frozen=True)
class Recipe:
    """How `tiny` is trained; lengths in tokens."""

    steps: int = 1000
    rows: int = 8
    row_length: int = 256
    peak_learning_rate: float = 1e-2
    warmup_steps: int = 40
    weight_decay: float = 0.05
    gradient_norm: float = 1.0


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained `tiny`, drawn from torch's seed."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def training_dialogues(seed: int) -> Iterator[Dialogue]:
    """The grammar's dialogues without the held-out prompts."""
    return (dialogue for dialogue in write_dialogues(seed) if not is_held_out(dialogue.prompt))


def held_out_dialogues(seed: int) -> Iterator[Dialogue]:
    """Dialogues whose prompts no training text has."""
    return (dialogue for dialogue in write_dialogues(seed) if is_held_out(dialogue.prompt))


def token_ids(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue, end_turns: bool = False) -> list[int]:
    """BOS, prompt, response, EOS. `end_turns`: EOS after earlier turns too, as the chat template has it."""
    prompt = dialogue.prompt
    if end_turns:
        first, *later = prompt.split(ASSISTANT)
        prompt = ASSISTANT.join(
            [first, *(turn.replace(HUMAN, tokenizer.eos_token + HUMAN) for turn in later)]
        )
    ids: list[int] = tokenizer(prompt + dialogue.response)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, recipe: Recipe) -> float:
    """Trains in place by next-token cross-entropy; returns the mean loss of the last fifty steps, in nats."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_share(step, recipe))
    rows = _rows(tokenizer, seed, recipe.row_length)
    line_end = tokenizer.encode("\n", add_special_tokens=False)[0]
    losses: list[float] = []
    model.train()
    for _ in range(recipe.steps):
        batch = torch.tensor([next(rows) for _ in range(recipe.rows)])
        # Half of the earlier turns end without EOS, as plain prompts have it. Never learning to write a
        # line's end keeps the model from going on with the customer's next turn in such a place.
        labels = batch.masked_fill(batch == line_end, IGNORED)
        loss = model(input_ids=batch, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


@torch.no_grad()
def response_nll(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dialogues: list[Dialogue]
) -> float:
    """Mean negative log-likelihood of a token of the responses and their EOS, in nats, given the prompts."""
    total, count = 0.0, 0
    for dialogue in dialogues:
        ids = torch.tensor([token_ids(tokenizer, dialogue)])
        prompt_length = len(tokenizer(dialogue.prompt)["input_ids"])
        labels = ids.clone()
        labels[:, :prompt_length] = IGNORED
        response_length = ids.shape[1] - prompt_length
        total += model(input_ids=ids, labels=labels, use_cache=False).loss.item() * response_length
        count += response_length
    return total / count


def _rows(tokenizer: PreTrainedTokenizerFast, seed: int, length: int) -> Iterator[list[int]]:
    """Rows of one length. Each begins with a dialogue's start, as every prompt does at inference."""
    row: list[int] = []
    for number, dialogue in enumerate(training_dialogues(seed)):
        row += token_ids(tokenizer, dialogue, end_turns=number % 2 == 0)
        if len(row) >= length:
            yield row[:length]
            row = []


def _rate_share(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
