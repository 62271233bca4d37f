import pytest

from mpo.config import EvaluateStage, PPOStage, SFTStage, SplitStage
from mpo.lengths import LengthsExceedContext, resolve_lengths


@pytest.mark.parametrize(
    ("context", "prompt", "response", "sampled"),
    [(512, 256, 128, 128), (100, 50, 25, 25), (2048, 1024, 512, 128), (32_768, 1024, 512, 128)],
)
def test_open_lengths_are_shares_of_the_context_up_to_a_limit(
    context: int, prompt: int, response: int, sampled: int
) -> None:
    for config in (PPOStage(), EvaluateStage()):
        found = resolve_lengths(config, context)
        lengths = found.max_prompt_tokens, found.max_response_tokens, found.max_new_tokens
        assert lengths == (prompt, response, sampled)
    trained = resolve_lengths(SFTStage(), context)
    assert (trained.max_prompt_tokens, trained.max_response_tokens) == (prompt, response)


def test_lengths_that_are_given_stay() -> None:
    config = EvaluateStage(max_prompt_tokens=3, max_response_tokens=5, max_new_tokens=7)
    assert resolve_lengths(config, 512) == config


@pytest.mark.parametrize("fits", [True, False])
def test_prompt_response_and_terminator_must_fit_the_context_together(fits: bool) -> None:
    config = SFTStage(max_prompt_tokens=60, max_response_tokens=39 if fits else 40)
    if fits:
        assert resolve_lengths(config, 100) == config
        return
    with pytest.raises(ValueError, match="come to 101 tokens; the model's context is 100"):
        resolve_lengths(config, 100)


def test_sampled_responses_must_fit_too() -> None:
    config = PPOStage(max_prompt_tokens=60, max_response_tokens=5, max_new_tokens=40)
    with pytest.raises(ValueError, match="come to 101"):
        resolve_lengths(config, 100)


def test_a_stage_without_lengths_has_none_to_resolve() -> None:
    assert resolve_lengths(SplitStage(), 1) == SplitStage()


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (SFTStage(max_response_tokens=60), "max_response_tokens"),
        (SFTStage(max_prompt_tokens=62), "max_prompt_tokens"),
        (PPOStage(max_prompt_tokens=20, max_new_tokens=60), "max_new_tokens"),
    ],
)
def test_the_largest_length_that_is_given_is_named(config: SFTStage | PPOStage, field: str) -> None:
    with pytest.raises(LengthsExceedContext) as caught:
        resolve_lengths(config, 64)
    assert caught.value.field == field


def test_ppo_reads_no_response_of_the_data() -> None:
    found = resolve_lengths(PPOStage(max_prompt_tokens=1900, max_new_tokens=100), 2048)
    assert (found.max_prompt_tokens, found.max_new_tokens) == (1900, 100)
