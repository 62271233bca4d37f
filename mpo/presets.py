"""What each preset method expands to: its stages, with named inputs. Torch-free."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mpo.config import (
    DPOStage,
    EvaluateStage,
    PPOStage,
    RewardModelStage,
    ScoreStage,
    SFTStage,
    Stage,
)
from mpo.job_spec import DPOMethod, JobSpec, MPOMethod, PPOMethod, Preset, RewardModelMethod, SFTMethod
from mpo.roles import MAIN_OUTPUT
from mpo.stage_graph import PlannedStage, Source

Adaptable = SFTStage | RewardModelStage | DPOStage | PPOStage
HELD_OUT_FOLDS = 2
SEEDS = 2**31
"""Seeds are below this."""
JUDGE = "judge"
"""The stage whose seed is not the job's but the next: an independent reward model."""


def expand_preset(spec: JobSpec, method: Preset, *, model: str, dataset: str) -> list[PlannedStage]:
    """The stages of a preset, each after its inputs. model, dataset: names of the leaves."""
    expansion = Expansion(spec, method, Source.model(model), Source.dataset(dataset))
    match method:
        case MPOMethod():
            _expand_mpo(expansion, method)
        case SFTMethod():
            expansion.sft(method.sft)
        case RewardModelMethod():
            expansion.reward_model("reward_model", method.reward_model, expansion.model)
        case DPOMethod():
            _expand_dpo(expansion, method)
        case PPOMethod():
            _expand_ppo(expansion, method)
    return expansion.stages


def reseeded(stages: Iterable[PlannedStage], seed: int) -> list[PlannedStage]:
    """The stages of a preset as they would be of a job with this seed: nothing else of them depends on it."""
    return [replace(stage, seed=_next_seed(seed) if stage.name == JUDGE else seed) for stage in stages]


def _next_seed(seed: int) -> int:
    return (seed + 1) % SEEDS


class Expansion:
    """The stages so far; every method adds one and returns its main output."""

    def __init__(self, spec: JobSpec, method: Preset, model: Source, dataset: Source) -> None:
        self.model, self._seed = model, spec.seed
        self.stages: list[PlannedStage] = []
        given = [Source.dataset(spec.eval_dataset)] if spec.eval_dataset is not None else []
        self.train = self.add("hold_out", method.hold_out, data=[dataset], eval=given)
        self.held_out = Source.stage("hold_out", "eval")
        self._evaluated_on = [self.held_out] if given or method.hold_out.fraction > 0 else []

    def add(self, name: str, config: Stage, seed: int | None = None, **inputs: Iterable[Source]) -> Source:
        """A stage; roles without a source are left out, and adapters get their frozen base."""
        if isinstance(config, RewardModelStage):
            # The score asks it, also where the stages are sent again as explicit ones.
            config = config.model_copy(update={"on_weak": RewardModelStage.model_fields["on_weak"].default})
        if isinstance(config, Adaptable) and config.lora is not None:
            inputs["base"] = [self.model]
        listed = {role: tuple(sources) for role, sources in inputs.items()}
        filled = {role: sources for role, sources in listed.items() if sources}
        self.stages.append(PlannedStage(name, config, filled, self._seed if seed is None else seed))
        return Source.stage(name, MAIN_OUTPUT.get(config.kind, ""))

    def sft(self, config: SFTStage | None) -> Source:
        """The policy that preferences are learned from: the job's model where there is no SFT."""
        if config is None:
            return self.model
        return self.add("sft", config, policy=[self.model], data=[self.train])

    def reward_model(
        self, name: str, config: RewardModelStage, start: Source, seed: int | None = None
    ) -> Source:
        """A reward model on all training pairs."""
        return self.add(name, config, seed, backbone=[start], data=[self.train], eval=self._evaluated_on)

    def evaluate(
        self,
        config: EvaluateStage | None,
        judge: RewardModelStage,
        models: Sequence[Source],
        reward_model: Source | None = None,
        dpo: Source | None = None,
    ) -> None:
        """The judge and the evaluation, unless there is none.

        models: first the one before training, to which KL is measured, as it is to dpo.
        """
        if config is None:
            return
        start = models[0] if judge.backbone == "sft" else self.model
        trained = self.reward_model(JUDGE, judge, start, _next_seed(self._seed))
        scored_by = [reward_model] if reward_model else []
        self.add(
            "evaluate",
            config,
            models=models,
            reward_model=scored_by,
            judge=[trained],
            data=[self.held_out],
            sft=models[:1],
            dpo=[dpo] if dpo else [],
        )


def normalised_score(config: ScoreStage, *, on_weak: str | None) -> ScoreStage:
    """The configuration with what its scheme does not read at one value, so that no key depends on it."""
    default: int = ScoreStage.model_fields["folds"].default
    folds = {"cross_fit": config.folds, "held_out": HELD_OUT_FOLDS, "in_sample": default}[config.scheme]
    return config.model_copy(update={"folds": folds, "on_weak": on_weak})


def _expand_mpo(expansion: Expansion, method: MPOMethod) -> None:
    sft = expansion.sft(method.sft)
    backbone = sft if method.reward_model.backbone == "sft" else expansion.model
    score = normalised_score(method.score, on_weak=method.score.on_weak or method.reward_model.on_weak)
    fold_models = [
        expansion.add(
            f"reward_model_fold_{fold}",
            method.reward_model.model_copy(update={"fold": fold, "folds": score.folds}),
            backbone=[backbone],
            data=[expansion.train],
        )
        for fold in _scoring_folds(score)
    ]
    final = expansion.reward_model("reward_model", method.reward_model, backbone)
    scores = expansion.add("score", score, reward_models=fold_models or [final], data=[expansion.train])
    expansion.add("split", method.split, scores=[scores], data=[expansion.train])
    easy, difficult = Source.stage("split", "easy"), Source.stage("split", "difficult")
    dpo = expansion.add("dpo", method.dpo, policy=[sft], reference=[sft], data=[easy])
    ppo = _add_ppo(expansion, method.ppo, dpo, final, difficult, sft)
    expansion.evaluate(method.evaluate, _judge(method), [sft, dpo, ppo], final, dpo)


def _scoring_folds(score: ScoreStage) -> range:
    """Folds whose pairs are scored by a model that has not seen them."""
    return range(1, {"cross_fit": score.folds, "held_out": 1, "in_sample": 0}[score.scheme] + 1)


def _expand_dpo(expansion: Expansion, method: DPOMethod) -> None:
    sft = expansion.sft(method.sft)
    dpo = expansion.add("dpo", method.dpo, policy=[sft], reference=[sft], data=[expansion.train])
    expansion.evaluate(method.evaluate, method.judge or RewardModelStage(), [sft, dpo], dpo=dpo)


def _expand_ppo(expansion: Expansion, method: PPOMethod) -> None:
    sft = expansion.sft(method.sft)
    backbone = sft if method.reward_model.backbone == "sft" else expansion.model
    final = expansion.reward_model("reward_model", method.reward_model, backbone)
    ppo = _add_ppo(expansion, method.ppo, sft, final, expansion.train, sft)
    expansion.evaluate(method.evaluate, _judge(method), [sft, ppo], final)


def _add_ppo(
    expansion: Expansion, config: PPOStage, policy: Source, final: Source, prompts: Source, sft: Source
) -> Source:
    # sft is read for the logged KL alone: how far all steps together have moved the policy.
    return expansion.add(
        "ppo",
        config,
        policy=[policy],
        reference=[policy],
        reward_model=[final],
        prompts=[prompts],
        sft=[sft],
    )


def _judge(method: MPOMethod | PPOMethod) -> RewardModelStage:
    return method.judge or method.reward_model.model_copy(update={"backbone": "model"})
