"""How large a world is, and what is done in it."""

from dataclasses import dataclass

from mpo.job_spec import JobSpec

ARMS = ("sft", "dpo_easy", "mpo", "dpo_all")
"""The models that are measured: the start, DPO on the easy pairs, then PPO on the difficult ones (which is
MPO), and DPO on all pairs."""

PAIRS, MODEL = "pairs", "tiny"
"""What the stages call the pairs and the base model."""


@dataclass(frozen=True)
class Settings:
    """Sizes. pairs: before the hold-out. prompts: held out from everything, for the gold reward. label_scale:
    nats of preference for one point of gold reward, so that a larger one is less noise."""

    pairs: int
    prompts: int
    folds: int
    reward_epochs: int
    dpo_epochs: int
    episodes: int
    label_scale: float = 1.2
    max_kl: float = 15.0
    max_new_tokens: int = 64
    max_prompt_tokens: int = 160
    max_response_tokens: int = 90
    engine: str = "native"
    """What trains reward models and DPO."""


MEASURED = Settings(pairs=800, prompts=200, folds=3, reward_epochs=3, dpo_epochs=2, episodes=1024)
SMALL = Settings(pairs=64, prompts=24, folds=2, reward_epochs=1, dpo_epochs=2, episodes=32)


def job_spec(settings: Settings, seed: int) -> JobSpec:
    """All arms as one plan, so that they share whatever they have in common."""
    return JobSpec.model_validate(
        {
            "name": f"gold world {seed}",
            "model": MODEL,
            "dataset": PAIRS,
            "seed": seed,
            "stages": [
                {"name": "hold_out", "kind": "hold_out", "inputs": {"data": PAIRS}},
                *_scoring(settings),
                *_policies(settings),
            ],
        }
    )


def _scoring(settings: Settings) -> list[dict[str, object]]:
    """Reward models, out-of-fold scores, split."""
    reward_model = {"kind": "reward_model", **_lengths(settings), "learning_rate": 1e-3, "batch_pairs": 16}
    reward_model |= {"epochs": settings.reward_epochs, "engine": settings.engine}
    numbers = range(1, settings.folds + 1)
    folds = [
        {
            "name": f"fold_{k}",
            **reward_model,
            "fold": k,
            "folds": settings.folds,
            "inputs": {"backbone": MODEL, "data": "hold_out.train"},
        }
        for k in numbers
    ]
    final = {"backbone": MODEL, "data": "hold_out.train", "eval": "hold_out.eval"}
    return [
        *folds,
        {"name": "reward_model", **reward_model, "inputs": final},
        {
            "name": "score",
            "kind": "score",
            **_lengths(settings),
            "folds": settings.folds,
            "on_weak": "warn",
            "inputs": {"reward_models": [f"fold_{k}" for k in numbers], "data": "hold_out.train"},
        },
        {
            "name": "split",
            "kind": "split",
            "easy_fraction": 0.5,
            "inputs": {"scores": "score", "data": "hold_out.train"},
        },
    ]


def _policies(settings: Settings) -> list[dict[str, object]]:
    dpo = {"kind": "dpo", **_lengths(settings), "learning_rate": 5e-4, "batch_pairs": 16}
    dpo |= {"epochs": settings.dpo_epochs, "engine": settings.engine}
    ppo = {
        "kind": "ppo",
        **_lengths(settings),
        "learning_rate": 4e-4,
        "rollout_prompts": 64,
        "mini_batches": 4,
        "epochs": 2,
        "episodes": settings.episodes,
        "max_new_tokens": settings.max_new_tokens,
        "max_kl": settings.max_kl,
    }
    start = {"policy": "sft", "reference": "sft"}
    curriculum = {"policy": "dpo_easy", "reference": "dpo_easy", "reward_model": "reward_model"}
    return [
        {
            "name": "sft",
            "kind": "sft",
            **_lengths(settings),
            "learning_rate": 1e-4,
            "inputs": {"policy": MODEL, "data": "hold_out.train"},
        },
        {"name": "dpo_easy", **dpo, "inputs": {**start, "data": "split.easy"}},
        {"name": "mpo", **ppo, "inputs": {**curriculum, "prompts": "split.difficult", "sft": "sft"}},
        {"name": "dpo_all", **dpo, "inputs": {**start, "data": "hold_out.train"}},
    ]


def _lengths(settings: Settings) -> dict[str, object]:
    return {
        "max_prompt_tokens": settings.max_prompt_tokens,
        "max_response_tokens": settings.max_response_tokens,
    }
