"""Faults that are easy to make and hard to see: each is planted, and caught by a test of other purpose."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mpo.dpo.loss import dpo_loss
from mpo.dpo.reference import pair_logprobs
from mpo.gap_cuts import cut_gaps
from mpo.generation import choose
from mpo.logprobs import sequence_logprobs
from mpo.masking import masked_whiten
from mpo.ppo.advantages import estimate_advantages
from mpo.ppo.loss import policy_loss
from mpo.ppo.rewards import penalise_cut_responses, token_rewards
from mpo.responses import response_logits
from mpo.reward_model.loss import bradley_terry_loss
from mpo.reward_model.score import end_scores
from tests.mpo import test_gap_cuts, test_logprobs, test_masking
from tests.mpo.dpo import test_loss as test_dpo_loss
from tests.mpo.dpo import test_reference
from tests.mpo.planting import planted
from tests.mpo.ppo import test_advantages, test_rewards, test_rollouts
from tests.mpo.ppo import test_loss as test_ppo_loss
from tests.mpo.reward_model import test_loss as test_reward_loss
from tests.mpo.reward_model import test_score

DOCUMENT = Path(__file__).parents[2] / "docs" / "method.md"


@dataclass(frozen=True)
class Fault:
    """What is wrong, in which function, at which place of its source, and which test finds it."""

    name: str
    function: Callable[..., Any]
    text: str
    fault: str
    test: Callable[..., None]
    arguments: tuple[object, ...] = ()

    def run_test(self, tmp_path: Path) -> None:
        """Runs the test as pytest would; raises AssertionError where it fails."""
        wanted = inspect.signature(self.test).parameters
        self.test(*self.arguments, **({"tmp_path": tmp_path} if "tmp_path" in wanted else {}))

    @property
    def test_name(self) -> str:
        """As pytest is told it."""
        file = Path(inspect.getfile(self.test)).relative_to(DOCUMENT.parents[1])
        return f"{file}::{self.test.__name__}"


FAULTS = [
    Fault(
        "the DPO loss has the wrong sign",
        dpo_loss,
        "-F.logsigmoid(beta * difference), -F.logsigmoid(-beta * difference)",
        "-F.logsigmoid(-beta * difference), -F.logsigmoid(beta * difference)",
        test_dpo_loss.test_gradient_is_beta_times_the_probability_of_the_wrong_order,
    ),
    Fault(
        "the response mask is off by one",
        sequence_logprobs,
        "response_mask[:, 1:]",
        "response_mask[:, :-1]",
        test_logprobs.test_a_response_token_is_predicted_one_position_earlier,
    ),
    Fault(
        "the reference's log-probabilities are shuffled",
        pair_logprobs,
        "side[list(rows)] = numbers.cpu()",
        "side[list(rows)] = numbers.cpu().flip(0)",
        test_reference.test_logprobs_of_both_responses_in_order,
    ),
    Fault(
        "the update's logits are not divided by T",
        response_logits,
        ".float() / temperature",
        ".float()",
        test_rollouts.test_padded_rows_equal_plain_ones,
    ),
    Fault(
        "the rollout's logits are not divided by T",
        choose,
        "logprobs.double() / temperature",
        "logprobs.double()",
        test_rollouts.test_the_first_token_of_a_rollout_follows_the_softmax_over_the_whole_vocabulary,
    ),
    Fault(
        "padded positions count in the whitening",
        masked_whiten,
        "masked_mean(centred.square(), mask)",
        "centred.square().mean()",
        test_masking.test_whitened_entries_have_mean_zero_and_variance_one,
    ),
    Fault(
        "values in the padding follow the last token",
        estimate_advantages,
        "values = values * response_mask",
        "values = values + 0",
        test_advantages.test_what_stands_in_the_padding_changes_nothing,
    ),
    Fault(
        "the score lands on the last column, not on the last token",
        token_rewards,
        "last = (lengths - 1).clamp(min=0)[:, None]",
        "last = (0 * lengths + response_mask.shape[1] - 1)[:, None]",
        test_rewards.test_score_lands_on_the_last_token_and_kl_on_every_token,
    ),
    Fault(
        "KL is rewarded",
        token_rewards,
        "-kl_coefficient",
        "kl_coefficient",
        test_rewards.test_score_lands_on_the_last_token_and_kl_on_every_token,
    ),
    Fault(
        "a cut response gains the penalty",
        penalise_cut_responses,
        "scores - missing_eos_penalty",
        "scores + missing_eos_penalty",
        test_rewards.test_only_a_cut_response_loses_the_penalty,
    ),
    Fault(
        "the surrogate takes the better of clipped and unclipped",
        policy_loss,
        "torch.minimum",
        "torch.maximum",
        test_ppo_loss.test_clipping_caps_the_gain_of_a_large_step,
        (1.5, 1.0, -1.2),
    ),
    Fault(
        "the reward is read at the last column, padding or not",
        end_scores,
        "batch.real_mask.sum(-1) - 1",
        "0 * batch.real_mask.sum(-1) - 1",
        test_score.test_a_batch_scores_as_its_rows_do_one_by_one_whatever_id_a_response_ends_with,
    ),
    Fault(
        "a margin makes the task easier",
        bradley_terry_loss,
        "gap - margin",
        "gap + margin",
        test_reward_loss.test_a_margin_is_taken_from_the_gap_of_its_pair,
    ),
    Fault(
        "a pair at the threshold is difficult",
        cut_gaps,
        'easy_from = int(np.searchsorted(gaps, threshold, "left"))',
        'easy_from = int(np.searchsorted(gaps, threshold, "right"))',
        test_gap_cuts.test_a_gap_at_the_threshold_is_easy,
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_planted_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    (tmp_path / "faulty").mkdir()
    with planted(fault.function, fault.text, fault.fault), pytest.raises(AssertionError):
        fault.run_test(tmp_path / "faulty")
    (tmp_path / "sound").mkdir()
    fault.run_test(tmp_path / "sound")


def test_the_document_lists_every_fault_with_its_test() -> None:
    rows = [f"| {fault.name} | `{fault.test_name}` |" for fault in FAULTS]
    text = DOCUMENT.read_text(encoding="utf-8")
    missing = [row for row in rows if row not in text]
    assert not missing, "docs/method.md lacks these rows:\n" + "\n".join(missing)
