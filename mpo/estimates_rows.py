"""Which rows each stage of a plan will read, as far as that is known before anything runs. Torch-free."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpo.config import HoldOutStage, RewardModelStage, ScoreStage, SplitStage
from mpo.errors import TooFewPrompts
from mpo.hold_out import GroupKey, assign_folds, group_key, held_out_groups
from mpo.plan import PlannedStage, Source
from mpo.token_counts import Integers, SampledRows

SCORED_HALF, HALVES = 1, 2
"""Of `held_out`: the fold that is scored, and how many there are (`mpo/reward_model/scheme.py`)."""

NOT_SCORED = (
    "How many pairs lie above the threshold is known once they are scored: tokens and seconds are null. "
    "easy_fraction in its place tells them before."
)

KnownShares = Callable[[PlannedStage], Mapping[str, float] | None]
"""Shares of the scored pairs by output of a split, where the scores exist already; else None."""


@dataclass(frozen=True)
class Rows:
    """Rows that a stage reads. dataset: whose they are; groups: the prompt group of each sampled row;
    members: places among the sampled rows, None where nothing was sampled.

    count, prompts: how many rows and distinct prompts; None where nobody can tell, and `why` says so. exact:
    the members are the rows, not a sample that stands for them.
    """

    dataset: Source
    groups: Sequence[GroupKey]
    members: Integers | None
    count: float | None
    prompts: float | None
    exact: bool
    why: str = ""

    @classmethod
    def of(cls, dataset: Source, sampled: SampledRows) -> "Rows":
        """All rows of a dataset."""
        rows = sampled.rows
        members = np.arange(sampled.table.num_rows)
        distinct = rows * sampled.distinct_prompts
        return cls(dataset, _groups(sampled), members, rows, distinct, sampled.complete)

    @classmethod
    def unknown(cls, dataset: Source, why: str) -> "Rows":
        """Rows of a dataset that cannot be read yet."""
        return cls(dataset, (), None, None, None, False, why)

    def chosen(self, wanted: Callable[[int], bool]) -> "Rows":
        """Those members whose place is wanted, of exact rows."""
        assert self.members is not None
        members = np.array([place for place in self.members if wanted(int(place))], np.int64)
        groups = {self.groups[place] for place in members}
        every = {self.groups[place] for place in self.members}
        prompts = self.prompts and self.prompts * len(groups) / max(1, len(every))
        return replace(self, members=members, count=float(len(members)), prompts=prompts)

    def share(self, share: float) -> "Rows":
        """A share of the rows of which nothing else is known; those of one prompt may be parted."""
        if self.count is None or self.prompts is None:
            return self
        rows_a_prompt = self.count / max(1.0, self.prompts)
        prompts = self.prompts * (1 - (1 - share) ** rows_a_prompt)
        return replace(self, count=self.count * share, prompts=prompts, exact=False)


def rows_by_source(
    stages: Sequence[PlannedStage], datasets: Mapping[Source, Rows], known_shares: KnownShares
) -> dict[Source, Rows]:
    """The rows of every dataset and of every output that holds some. stages: each after its inputs."""
    found = dict(datasets)
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        if isinstance(stage.config, HoldOutStage):
            made = _held_out(stage, stage.config, found)
        elif isinstance(stage.config, SplitStage):
            made = _parts(stage, stage.config, by_name, found, known_shares)
        else:
            continue
        found |= {Source.stage(stage.name, output): rows for output, rows in made.items()}
    return found


def _groups(sampled: SampledRows) -> list[GroupKey]:
    """As `mpo/hold_out.py: row_keys`."""
    if "text" in sampled.contents:
        texts = [str(text) for text in sampled.contents["text"]]
        return [hashlib.sha256(text.encode()).digest() + b"text" for text in texts]
    return [group_key(prompt) for prompt in sampled.contents["prompt"]]


def fold_rows(rows: Rows, config: RewardModelStage) -> Rows:
    """The rows outside the fold that the reward model leaves out."""
    if config.fold is None or config.folds is None:
        return rows
    return _without_fold(rows, config.fold, config.folds)


def scored_rows(rows: Rows, config: ScoreStage) -> Rows:
    """The rows that get a score."""
    if config.scheme != "held_out":
        return rows
    fold_of = _folds(rows, HALVES)
    return rows.chosen(lambda place: fold_of[place] == SCORED_HALF) if fold_of else rows.share(1 / HALVES)


def _without_fold(rows: Rows, fold: int, folds: int) -> Rows:
    fold_of = _folds(rows, folds)
    return rows.chosen(lambda place: fold_of[place] != fold) if fold_of else rows.share(1 - 1 / folds)


def _folds(rows: Rows, folds: int) -> dict[int, int] | None:
    """The fold of each member; None where the members are a sample, or the groups too few."""
    if not rows.exact or rows.members is None:
        return None
    places = rows.members.tolist()
    numbers: dict[GroupKey, int] = {}
    for key in rows.groups:
        numbers.setdefault(key, len(numbers))
    try:
        dealt = assign_folds([numbers[rows.groups[place]] for place in places], folds)
        return dict(zip(places, dealt, strict=True))
    except TooFewPrompts:
        return None


def _held_out(stage: PlannedStage, config: HoldOutStage, found: Mapping[Source, Rows]) -> dict[str, Rows]:
    data = found[stage.inputs["data"][0]]
    if "eval" in stage.inputs:
        return {"train": data, "eval": found[stage.inputs["eval"][0]]}
    if config.fraction == 0 or not data.exact or data.members is None:
        return {"train": data.share(1 - config.fraction), "eval": data.share(config.fraction)}
    sizes = Counter(data.groups[place] for place in data.members.tolist())
    try:
        held = held_out_groups(sizes, config.fraction)
    except TooFewPrompts:
        held = set()
    return {
        "train": data.chosen(lambda place: data.groups[place] not in held),
        "eval": data.chosen(lambda place: data.groups[place] in held),
    }


def _parts(
    stage: PlannedStage,
    config: SplitStage,
    stages: Mapping[str, PlannedStage],
    found: Mapping[Source, Rows],
    known_shares: KnownShares,
) -> dict[str, Rows]:
    data, source = found[stage.inputs["data"][0]], stage.inputs["scores"][0]
    score = stages[source.name].config if source.kind == "stage" else None
    scored = scored_rows(data, score) if isinstance(score, ScoreStage) else data
    shares = known_shares(stage)
    if shares is None:
        easy = config.easy_fraction if config.quantile is None else 1 - config.quantile
        if easy is None:
            lost = replace(scored, count=None, prompts=None, exact=False, why=scored.why or NOT_SCORED)
            return dict.fromkeys(("easy", "difficult", "dropped"), lost)
        shares = {"easy": easy, "difficult": 1 - easy, "dropped": 0.0}
    return {part: scored.share(share) for part, share in shares.items()}
