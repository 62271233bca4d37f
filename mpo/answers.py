"""What models answer to held-out prompts: several samples each, with seeds that no model changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mpo.config import EvaluateStage
from mpo.errors import TooFewPrompts, UnusableModel
from mpo.generation import SampledResponse, SamplingConfig, sample
from mpo.model_tokens import ModelTokens
from mpo.policies import load_policy, to_training_device
from mpo.records import Content, PreferencePair
from mpo.reporter import StageInput
from mpo.responses import distinct_prompts
from mpo.seeds import permutation, row_seed


@dataclass(frozen=True)
class Answers:
    """One model's responses, as text and token ids: all samples of the first prompt, then of the second, …

    responses carry no logprobs: nothing that is kept needs them.
    """

    texts: list[str]
    responses: list[SampledResponse]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each response, its stop token included."""
        return [len(response.token_ids) for response in self.responses]

    @property
    def eos_rate(self) -> float:
        """Share of the responses that a stop token ended."""
        return sum(response.finish_reason == "stop" for response in self.responses) / len(self.responses)

    def to_json(self) -> list[dict[str, object]]:
        """A response an entry, as JSON values."""
        return [
            {"text": text, "token_ids": response.token_ids, "finish_reason": response.finish_reason}
            for text, response in zip(self.texts, self.responses, strict=True)
        ]

    @classmethod
    def of_json(cls, kept: Sequence[Mapping[str, Any]]) -> "Answers":
        """The inverse of `to_json`."""
        texts = [str(entry["text"]) for entry in kept]
        return cls(texts, [SampledResponse(entry["token_ids"], entry["finish_reason"]) for entry in kept])


def choose_prompts(pairs: Sequence[PreferencePair], count: int, seed: int) -> list[Content]:
    """At most `count` distinct prompts of the pairs, drawn by the seed and then in file order.

    Raises TooFewPrompts where there is none.
    """
    contents = distinct_prompts(pair.prompt for pair in pairs)
    if not contents:
        raise TooFewPrompts(
            "There is no held-out prompt to evaluate on: hold some out (hold_out.fraction above 0), give an "
            "eval_dataset, or leave the evaluation out.",
            prompts=0,
        )
    return [contents[number] for number in sorted(permutation(len(contents), seed)[:count])]


def answer_prompts(
    model: StageInput,
    speaker: ModelTokens,
    prompts: Sequence[Content],
    config: EvaluateStage,
    seed: int,
    should_stop: Callable[[int], bool],
) -> Answers:
    """A model's responses, `config.samples` a prompt, at most `config.max_new_tokens` long.

    The random numbers behind a response depend on seed, prompt and sample, not on the model. should_stop: as
    in `mpo.generation.sample`. Raises UnusableModel, NoChatTemplate, ChatTemplateRefused.
    """
    assert config.max_new_tokens is not None, "lengths are resolved before a stage runs"
    ends = speaker.ends
    sampling = SamplingConfig(
        config.max_new_tokens, ends.stop_ids, ends.pad_id, temperature=config.temperature
    )
    policy = load_still(load_policy, model.path)
    ids = [row for row in speaker.encode(prompts, config.max_prompt_tokens) for _ in range(config.samples)]
    seeds = [row_seed(seed, number, k) for number in range(len(prompts)) for k in range(config.samples)]
    try:
        sampled = sample(policy, ids, sampling, seeds, should_stop)
    except UnusableModel as error:
        raise UnusableModel(f"{model.name}: {error.detail}", model=model.name) from error
    responses = [SampledResponse(response.token_ids, response.finish_reason) for response in sampled]
    texts = [str(speaker.tokenizer.decode(r.token_ids, skip_special_tokens=True)) for r in responses]
    return Answers(texts, responses)


def load_still(loader: Callable[[Path], PreTrainedModel], folder: Path) -> PreTrainedModel:
    """A model that is not trained here, on the device where models run."""
    return to_training_device(loader(folder)).eval().requires_grad_(False)
