"""The reference's log-probabilities, computed once before the training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mpo.adapters import TRAINED, Opened, read_adapter
from mpo.dpo.loss import PairLogprobs
from mpo.dpo.objective import logprobs_of_pairs, pair_passes
from mpo.errors import StageInterrupted, UnusableModel
from mpo.policies import load_policy
from mpo.ragged_pairs import lengths_of
from mpo.ranks import ALONE, Ranks, any_of
from mpo.reporter import StageTask
from mpo.tokenization import EncodedPair
from mpo.training import listed_rows

FROZEN = "reference"
"""Name of the adapter that is the reference, where it is one over the policy's base."""


@contextmanager
def reference_model(task: StageTask, opened: Opened, digest: str) -> Iterator[PreTrainedModel]:
    """The role `reference`, to be run before the policy has trained. digest: of its weights.

    Where it is the policy as it starts, the policy's base, or an adapter over that base, the policy's own
    modules run it, so that equal weights give equal numbers to the bit; else it is loaded for this once.
    Raises UnusableModel.
    """
    folder, base = task.one("reference").path, opened.base
    if base is None:
        same = folder == task.one("policy").path
        yield opened.model if same else _load_other(folder, opened.model)
        return
    adapter = read_adapter(folder)
    if digest == base.digest:
        base.activate(None)
        yield base.model
        base.activate(TRAINED)
    elif adapter is not None and adapter.base_sha256 == base.digest:
        base.add_frozen(FROZEN, adapter)
        yield base.model
        base.activate(TRAINED)
        base.wrapped().delete_adapter(FROZEN)
    else:
        yield _load_other(folder, base.model)


def _load_other(folder: Path, policy: PreTrainedModel) -> PreTrainedModel:
    reference = load_policy(folder)
    theirs, ours = (model.config.get_text_config().vocab_size for model in (reference, policy))
    if theirs != ours:
        raise UnusableModel(
            f"The reference has a vocabulary of {theirs} tokens and the policy one of {ours}: token ids of "
            "one mean nothing to the other. Give a reference with the policy's tokenizer.",
            reference=folder.name,
            reference_vocabulary=theirs,
            policy_vocabulary=ours,
        )
    return reference


@torch.no_grad()
def pair_logprobs(
    model: PreTrainedModel,
    pairs: Sequence[EncodedPair],
    pad_id: int,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> PairLogprobs:
    """Log-probabilities of both responses of each pair, in order, on the CPU of every rank.

    The passes are the same whoever computes them. Raises StageInterrupted.
    """
    counted = lengths_of(pairs)
    tokens, lengths = counted.tokens, counted.longest
    # Longest first, so that what does not fit the memory fails at once.
    order = sorted(range(len(pairs)), key=lambda row: (-lengths[row], row))
    logprobs, stopping = PairLogprobs(torch.zeros(len(pairs)), torch.zeros(len(pairs))), False
    for rows in islice(pair_passes(model, order, tokens, lengths), ranks.number, None, ranks.count):
        if stopping := should_stop():
            break
        found = logprobs_of_pairs(model, [pairs[row] for row in rows], pad_id)
        for side, numbers in zip(logprobs, found, strict=True):
            side[list(rows)] = numbers.cpu()
    if any(any_of(ranks, stopping)):
        raise StageInterrupted
    return PairLogprobs(*map(ranks.sum, logprobs))


def check_reference(told: PairLogprobs, ids: Sequence[str]) -> None:
    """Raises UnusableModel where the reference told no finite number: the first step that read it would say
    that the policy diverged. ids: of the pairs."""
    finite = told.chosen.isfinite() & told.rejected.isfinite()
    if broken := [ids[row] for row in (~finite).nonzero()[:, 0].tolist()]:
        raise UnusableModel(
            f"The reference's log-probabilities are not finite on {len(broken)} of {len(ids)} pairs: "
            f"{listed_rows(broken)}. Look at its weights, then at these rows.",
            rows=broken,
        )
