"""What an evaluation is given: models, held-out prompts, judge, and what KL is measured to."""

from collections.abc import Sequence
from dataclasses import dataclass

from mpo.answers import choose_prompts
from mpo.config import EvaluateStage
from mpo.judging import Scorer
from mpo.model_tokens import ModelTokens
from mpo.records import Content, PreferencePair, read_pairs
from mpo.reporter import Reporter, StageInput, StageTask
from mpo.roles import training_role


@dataclass(frozen=True)
class Evaluation:
    """What is compared, on what, and by whom.

    models, speakers: the models and how each writes text. bases: models that KL is measured to, with their
    tokens. reward_model: the one that the models were trained against, where there is one. trained_on: what
    each model was trained on; None where nobody has said.
    """

    config: EvaluateStage
    seed: int
    pairs: Sequence[PreferencePair]
    prompts: Sequence[Content]
    models: Sequence[StageInput]
    speakers: Sequence[ModelTokens]
    bases: Sequence[tuple[StageInput, ModelTokens]]
    judge: Scorer
    reward_model: Scorer | None
    trained_on: Sequence[Sequence[StageInput] | None]

    @classmethod
    def of(cls, task: StageTask, reporter: Reporter) -> "Evaluation":
        """Reads the task's inputs, all but the networks; raises UnusableModel, TooFewPrompts."""
        config, models = task.config, task.inputs["models"]
        assert isinstance(config, EvaluateStage)
        pairs = read_pairs(task.one("data").path)
        scorers = {
            role: Scorer.of(role, task.one(role), config)
            for role in ("judge", "reward_model")
            if role in task.inputs
        }
        judge, reward_model = scorers["judge"], scorers.get("reward_model")
        if reward_model and judge.source.path == reward_model.source.path:
            reporter.warn(
                "The judge is the reward model that was trained against: its verdict is no evidence."
            )
        speakers = [ModelTokens.of(model) for model in models]
        bases = [(base, ModelTokens.of(base)) for base in kl_bases(task)]
        longest = _longest(config)
        for tokens in [*speakers, *(scorer.tokens for scorer in scorers.values())]:
            tokens.refuse_longer(longest)
        return cls(
            config,
            task.seed,
            pairs,
            choose_prompts(pairs, config.prompts, task.seed),
            models,
            speakers,
            bases,
            judge,
            reward_model,
            [task.inputs.get(training_role(number)) for number in range(len(models))],
        )

    def kl_pairs(self, reporter: Reporter) -> list[tuple[int, StageInput]]:
        """Numbers of models with the bases that their KL is measured to; warns of those that have none."""
        found = []
        for number, (model, tokens) in enumerate(zip(self.models, self.speakers, strict=True)):
            for base, base_tokens in self.bases:
                if model == base:
                    continue
                if tokens.same_ids(base_tokens):
                    found.append((number, base))
                else:
                    reporter.warn(
                        f"There is no KL of {model.name} to {base.name}: their vocabularies differ."
                    )
        return found


def _longest(config: EvaluateStage) -> int:
    """Tokens of the longest sequence that a model reads: prompt, response and terminator."""
    lengths = config.max_prompt_tokens, config.max_new_tokens, config.max_response_tokens
    prompt, sampled, given = (length or 0 for length in lengths)
    return prompt + max(sampled, given) + 1


def kl_bases(task: StageTask) -> list[StageInput]:
    """The models that KL is measured to: role sft, else the first model; and role dpo, where there is one."""
    sft = task.inputs.get("sft", task.inputs["models"][:1])
    return list(dict.fromkeys([*sft, *task.inputs.get("dpo", ())]))
