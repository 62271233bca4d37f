"""How much a stage has to compute: tokens, passes through networks, optimizer steps. Torch-free."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mpo.config import DPOStage, EvaluateStage, PPOStage, RewardModelStage, ScoreStage, SFTStage
from mpo.estimates_rows import Rows, fold_rows, scored_rows
from mpo.plan import PlannedStage, Source
from mpo.token_counts import Integers
from mpo.training_config import TrainingConfig

DECODED_TOGETHER = 64
"""Sequences that are sampled at once (`mpo/generation.py`)."""

BATCHES_SORTED = 8
"""Batches that are sorted by length together (`mpo/batches.py: GROUP_BATCHES`)."""

LengthsOf = Callable[[Source], Mapping[str, Integers] | None]
"""Tokens of a dataset's sampled rows by column, as the stage's model counts them; None where it cannot."""


@dataclass(frozen=True)
class RowTokens:
    """Mean tokens of some rows after cutting, by column; a response with its terminator."""

    prompt: float
    chosen: float
    rejected: float

    @property
    def both(self) -> float:
        """Of a pair's two sequences."""
        return 2 * self.prompt + self.chosen + self.rejected


@dataclass(frozen=True)
class Longest:
    """The longest prompt and response of a stage's rows, in tokens, its terminator included.

    rows: means over those that are trained together when the longest are; None: as the longest.
    """

    prompt: int
    response: int
    rows: RowTokens | None = None

    @property
    def row(self) -> int:
        """Tokens of both."""
        return self.prompt + self.response

    @property
    def long(self) -> RowTokens:
        """Means over the rows of the largest step."""
        return self.rows or RowTokens(self.prompt, self.response, self.response)


@dataclass(frozen=True)
class Work:
    """What a stage computes. tokens: what the field of that name counts.

    trained, read, sampled: positions that pass through a network with a backward pass, without one, and one
    by one; a position counts once for each network and pass. steps: optimizer steps; decodings: tokens that
    are sampled one after another, each for a whole batch of sequences; rows: of the stage's data.
    """

    tokens: float = 0.0
    trained: float = 0.0
    read: float = 0.0
    sampled: float = 0.0
    steps: float = 0.0
    decodings: float = 0.0
    rows: float = 0.0


def stage_work(stage: PlannedStage, rows: Mapping[Source, Rows], lengths_of: LengthsOf) -> Work | None:
    """What a stage will compute; None where its rows or their lengths are not known.

    Sampled responses count as long as they may become. A stage that runs no model has 0 tokens.
    """
    config = stage.config
    if not isinstance(config, TrainingConfig):
        given = rows.get(stage.inputs["data"][0])
        return None if given is None or given.count is None else Work(rows=given.count)
    data = _data(stage, rows)
    lengths = None if data is None else lengths_of(data.dataset)
    if data is None or data.count is None or lengths is None:
        return None
    if isinstance(config, PPOStage):
        return _ppo(stage, config, data, lengths)
    if isinstance(config, EvaluateStage):
        return _evaluate(stage, config, data, lengths)
    tokens = _mean_tokens(data, lengths, config)
    if isinstance(config, ScoreStage):
        read = tokens.both * data.count
        return Work(tokens=read, read=read, rows=data.count)
    a_row = tokens.prompt + tokens.chosen if isinstance(config, SFTStage) else tokens.both
    steps, passes = _steps(config, data.count)
    trained = a_row * data.count * passes
    read = tokens.both * data.count if isinstance(config, DPOStage | RewardModelStage) else 0.0
    held_out = rows.get(stage.inputs["eval"][0]) if "eval" in stage.inputs else None
    if held_out is not None and held_out.count:
        read += tokens.both * held_out.count
    return Work(tokens=trained, trained=trained, read=read, steps=steps, rows=data.count)


def longest(stage: PlannedStage, rows: Mapping[Source, Rows], lengths_of: LengthsOf) -> Longest:
    """Of the sampled rows, cut as the stage cuts them; as long as it allows where nothing is known."""
    config = stage.config
    assert isinstance(config, TrainingConfig)
    here = _counted(stage, rows, lengths_of)
    prompt, response = config.max_prompt_tokens or 1, (config.max_response_tokens or 1) + 1
    sampled = max(config.max_new_tokens or 1, 1) if isinstance(config, PPOStage | EvaluateStage) else 0
    if here is None:
        return Longest(prompt, sampled if isinstance(config, PPOStage) else max(response, sampled))
    if "text" in here:
        texts = np.minimum(here["text"] + 1, prompt + response)
        return Longest(0, int(texts.max()), RowTokens(0.0, _long_mean(texts, texts), 0.0))
    cut = {
        name: np.minimum(column + (name != "prompt"), prompt if name == "prompt" else response)
        for name, column in here.items()
    }
    sides = [cut[name] for name in ("chosen", "rejected") if name in cut]
    if isinstance(config, PPOStage):
        prompts, step = cut["prompt"], max(1, config.rollout_prompts // config.mini_batches)
        usual = float(prompts.mean() + prompts.std() / math.sqrt(step))
        return Longest(int(prompts.max()), sampled, RowTokens(usual, sampled, sampled))
    response = max((int(side.max()) for side in sides), default=1)
    order = cut["prompt"] + (np.maximum.reduce(sides) if sides else 0)
    long = RowTokens(*(_long_mean(cut.get(name), order) for name in ("prompt", "chosen", "rejected")))
    return Longest(int(cut["prompt"].max()), max(response, sampled), long)


def are_lengths_known(stage: PlannedStage, rows: Mapping[Source, Rows], lengths_of: LengthsOf) -> bool:
    """Whether `longest` says how long rows are, and not how long the stage lets them be."""
    return _counted(stage, rows, lengths_of) is not None


def _counted(
    stage: PlannedStage, rows: Mapping[Source, Rows], lengths_of: LengthsOf
) -> Mapping[str, Integers] | None:
    """Tokens of the stage's sampled rows by column; None where there is none, or nobody has counted."""
    data = _data(stage, rows)
    if data is None or data.members is None or not len(data.members):
        return None
    lengths = lengths_of(data.dataset)
    return {name: column[data.members] for name, column in lengths.items()} if lengths else None


def _long_mean(lengths: Integers | None, order: Integers) -> float:
    """Mean over the longest rows, one in as many as there are batches that are sorted by length together."""
    if lengths is None:
        return 0.0
    count = -(-len(order) // BATCHES_SORTED)
    return float(lengths[np.argsort(order)[-count:]].mean())


def _data(stage: PlannedStage, rows: Mapping[Source, Rows]) -> Rows | None:
    """The rows that a stage works on, of those that its input holds."""
    data = rows.get(stage.inputs["prompts" if stage.kind == "ppo" else "data"][0])
    if data is not None and isinstance(stage.config, RewardModelStage):
        return fold_rows(data, stage.config)
    if data is not None and isinstance(stage.config, ScoreStage):
        return scored_rows(data, stage.config)
    return data


def _mean_tokens(rows: Rows, lengths: Mapping[str, Integers], config: TrainingConfig) -> RowTokens:
    assert config.max_prompt_tokens is not None, "lengths are resolved before a stage is estimated"
    assert config.max_response_tokens is not None, "lengths are resolved before a stage is estimated"
    members = rows.members
    if members is None or len(members) == 0:
        return RowTokens(0.0, 0.0, 0.0)
    if "text" in lengths:
        limit = config.max_prompt_tokens + config.max_response_tokens
        return RowTokens(0.0, _closed(lengths["text"][members], limit), 0.0)
    prompt = float(np.minimum(lengths["prompt"][members], config.max_prompt_tokens).mean())
    sides = [
        _closed(lengths[side][members], config.max_response_tokens) if side in lengths else 0.0
        for side in ("chosen", "rejected")
    ]
    return RowTokens(prompt, *sides)


def _closed(lengths: Integers, limit: int) -> float:
    """Mean length of what is cut at its end; what is not cut gets a terminator."""
    return float((np.minimum(lengths, limit) + (lengths <= limit)).mean())


def _steps(config: TrainingConfig, rows: float) -> tuple[float, float]:
    """Optimizer steps, and passes over the rows that they come to."""
    a_pass = max(1, -(-round(rows) // config.batch_pairs))
    steps = a_pass * config.epochs if rows else 0
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    return steps, steps / a_pass


def _ppo(stage: PlannedStage, config: PPOStage, data: Rows, lengths: Mapping[str, Integers]) -> Work | None:
    if data.prompts is None:
        return None
    episodes = float(config.episodes or max(1, round(data.prompts)))
    iterations = -(-episodes // config.rollout_prompts)
    updates = config.epochs * min(config.mini_batches, episodes / iterations)
    if config.max_steps is not None:
        taken = min(iterations, -(-config.max_steps // updates))
        episodes, iterations = episodes * taken / iterations, taken
    new = config.max_new_tokens or 1
    sequences = episodes * (_mean_tokens(data, lengths, config).prompt + new)
    networks = 2 if config.critic == "separate" else 1
    readers = 3 + (networks - 1) + ("sft" in stage.inputs)  # reward model, old policy, reference, critic, SFT
    batches = iterations * -(-(episodes / iterations) // DECODED_TOGETHER)
    return Work(
        tokens=sequences * config.epochs,
        trained=sequences * config.epochs * networks,
        read=sequences * readers,
        sampled=sequences,
        steps=iterations * updates * networks,
        decodings=batches * new,
        rows=data.count or 0.0,
    )


def _evaluate(
    stage: PlannedStage, config: EvaluateStage, data: Rows, lengths: Mapping[str, Integers]
) -> Work:
    tokens, new = _mean_tokens(data, lengths, config), config.max_new_tokens or 1
    answers = min(float(config.prompts), data.prompts or 0.0) * config.samples
    models = len(stage.inputs["models"])
    scorers = 2 if "reward_model" in stage.inputs else 1
    bases = {*stage.inputs.get("sft", stage.inputs["models"][:1]), *stage.inputs.get("dpo", ())}
    compared = sum(base != model for base in bases for model in stage.inputs["models"])
    a_model = answers * (tokens.prompt + new)
    read = a_model * (models * scorers + 2 * compared) + tokens.both * (data.count or 0.0) * scorers
    batches = -(-answers // DECODED_TOGETHER) * models
    return Work(
        tokens=a_model * models,
        read=read,
        sampled=a_model * models,
        decodings=batches * new,
        rows=data.count or 0.0,
    )
