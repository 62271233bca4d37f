"""On a world that can be enumerated, DPO on all its pairs reaches π* ∝ π_ref·exp(r/β)."""

import math
from itertools import combinations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mpo.config import DPOStage
from mpo.dpo.loss import PairLogprobs, dpo_loss
from mpo.dpo.objective import PairObjective
from mpo.dpo.reference import pair_logprobs
from mpo.logprobs import response_logprobs
from mpo.tokenization import EncodedPair
from mpo.training import Training, train_step

A, B, END = 0, 1, 2
RESPONSES = [[END], [A, END], [B, END], [A, A], [A, B], [B, A], [B, B]]
"""All of at most two tokens: one that is not ended by then is cut."""

REWARDS = torch.tensor([0.0, 1.2, -0.5, 2.0, 1.0, 0.3, 1.1])
PROMPT = [3]
FEW = [[END], [A, END], [A, B], [B, A]]
FEW_REWARDS = math.log(3) * torch.tensor([0.0, 1, 0, 1])
PAIRS = list(combinations(range(len(RESPONSES)), 2))


def variation(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().sum().item() / 2


def tree_logprobs(first: Tensor, second: Tensor) -> Tensor:
    """Log-probabilities of all responses. first: logits (3,); second: after A and after B, (2, 3)."""
    starts, rests = first.log_softmax(0), second.log_softmax(1)
    return torch.stack([starts[r[0]] + (rests[r[0], r[1]] if len(r) > 1 else 0) for r in RESPONSES])


def test_a_table_trained_on_bradley_terry_preferences_becomes_the_optimal_policy() -> None:
    generator, beta = torch.Generator().manual_seed(0), 0.7
    tables = [torch.randn(shape, generator=generator) for shape in ((3,), (2, 3))]
    reference = tree_logprobs(*tables)
    policy = [table.clone().requires_grad_(True) for table in tables]
    left, right = torch.tensor(PAIRS).unbind(1)
    preferred = torch.sigmoid(REWARDS[left] - REWARDS[right])
    optimizer = torch.optim.LBFGS(policy, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logprobs = tree_logprobs(*policy)
        one = PairLogprobs(logprobs[left], logprobs[right]), PairLogprobs(reference[left], reference[right])
        other = [PairLogprobs(side.rejected, side.chosen) for side in one]
        weighed = preferred * dpo_loss(*one, beta) + (1 - preferred) * dpo_loss(*other, beta)
        weighed.mean().backward()
        return weighed.mean()

    optimizer.step(loss)
    target = (reference + REWARDS / beta).softmax(0)
    assert variation(reference.exp(), target) > 0.2, "nothing was to be learnt"
    assert variation(tree_logprobs(*policy).detach().exp(), target) < 0.001


def test_the_training_loop_brings_a_language_model_there() -> None:
    # Of four responses, each pair four times: rewards that differ by log 3 are preferred 3 to 1.
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model, beta = LlamaForCausalLM(config), 0.7
    pairs = []
    for i, j in combinations(range(len(FEW)), 2):
        times = round(4 * torch.sigmoid(FEW_REWARDS[i] - FEW_REWARDS[j]).item())
        pairs += [EncodedPair("", PROMPT, FEW[i], FEW[j], True, True)] * times
        pairs += [EncodedPair("", PROMPT, FEW[j], FEW[i], True, True)] * (4 - times)
    target = (few_logprobs(model) + FEW_REWARDS / beta).softmax(0)
    assert variation(few_logprobs(model).softmax(0), target) > 0.2, "nothing was to be learnt"
    stage = DPOStage(beta=beta, learning_rate=1e-2, epochs=150, batch_pairs=len(pairs))
    objective = PairObjective(pairs, pair_logprobs(model, pairs, END), stage, pad_id=END)
    training = Training(model, objective, stage, seed=0)
    for _ in range(training.total_steps):
        train_step(training)
    assert variation(few_logprobs(model).softmax(0), target) < 0.02


@torch.no_grad()
def few_logprobs(model: LlamaForCausalLM) -> Tensor:
    """Of the four responses; what probability others have, no pair tells."""
    return response_logprobs(model, [PROMPT] * len(FEW), FEW, pad_id=END)
