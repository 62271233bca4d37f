"""A world small enough to enumerate: every response of a tiny policy, its probability and its reward."""

from itertools import product

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from mpo.config import PPOStage
from mpo.ppo.networks import Critic, Networks, ValueHead, trained_networks
from mpo.ppo.prompts import EncodedPrompt
from mpo.ppo.state import PPOTraining, episode_counts
from mpo.reward_model.score import score_responses
from mpo.tokenization import Terminators

PAD, START, STOP = range(3)
TOKENS = 5
PROMPT = [START]


def llama_config(vocabulary: int = TOKENS, width: int = 16, spread: float = 0.4) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=spread,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=STOP,
        num_labels=1,
    )


def policy_of(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config()).eval()


def reward_model_of(seed: int, scale: float = 1.0) -> PreTrainedModel:
    """scale: multiplies the head."""
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(llama_config()).eval()
    with torch.no_grad():
        model.score.weight *= scale
    return model


def training_of(
    config: PPOStage, *, prompts: int = 1, scale: float = 1.0, policy_seed: int = 0, reference_seed: int = 0
) -> PPOTraining:
    """The training of a tiny policy against a random reward model, in memory."""
    policy = policy_of(policy_seed)
    critic = Critic(reward_model_of(5, scale), 0.0) if config.critic == "separate" else ValueHead(16)
    networks = Networks(
        policy=policy,
        reference=policy_of(reference_seed),
        critic=critic,
        reward_model=reward_model_of(5, scale).requires_grad_(False),
    )
    return PPOTraining(
        config=config,
        seed=0,
        networks=networks,
        prompts=[EncodedPrompt(f"row {i}", [START, *[3] * i]) for i in range(prompts)],
        terminators=Terminators(STOP, frozenset({STOP}), PAD),
        counts=episode_counts(config, prompts),
        trained=trained_networks(networks, config.learning_rate),
        kl_coefficient=config.kl_coefficient,
    )


def all_responses(longest: int) -> list[list[int]]:
    """Every response that can be drawn: it ends with the first stop token, or at the limit."""
    ids = range(TOKENS)
    return [
        list(tokens)
        for length in range(1, longest + 1)
        for tokens in product(ids, repeat=length)
        if STOP not in tokens[:-1] and (tokens[-1] == STOP or length == longest)
    ]


@torch.no_grad()
def response_logprobs_of(policy: PreTrainedModel, responses: list[list[int]]) -> Tensor:
    """Logprob of each response, (responses,), float64: one row at a time, no padding."""
    logprobs = []
    for response in responses:
        logits = policy(torch.tensor([PROMPT + response])).logits[0, len(PROMPT) - 1 : -1].double()
        logprobs.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(logprobs)


def best_policy(training: PPOTraining, responses: list[list[int]]) -> Tensor:
    """π* ∝ π_ref · exp(r / β): (responses,), with what a cut response loses taken off its reward."""
    config = training.config
    scores = score_responses(training.networks.reward_model, [PROMPT] * len(responses), responses).double()
    was_cut = torch.tensor([response[-1] != STOP for response in responses])
    rewards = scores - config.missing_eos_penalty * was_cut
    reference = response_logprobs_of(training.networks.reference, responses)
    return (reference + rewards / config.kl_coefficient).softmax(0)


def total_variation(left: Tensor, right: Tensor) -> float:
    """Half the sum of absolute differences of two distributions."""
    return 0.5 * float((left - right).abs().sum())
