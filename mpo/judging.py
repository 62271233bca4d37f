"""What reward models say of sampled responses and of held-out pairs, each through its own tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mpo.answers import Answers, load_still
from mpo.config import EvaluateStage
from mpo.errors import UnusableModel
from mpo.model_tokens import ModelTokens
from mpo.policies import load_reward_model
from mpo.records import Content, Message, PreferencePair
from mpo.reporter import StageInput
from mpo.reward_model.report import ScoredPairs, calibration_report
from mpo.reward_model.score import score_encoded, score_responses
from mpo.tokenization import EncodedPair, encode_pairs, encode_response

ScoredRow = tuple[int, ...]
"""A prompt's number, then the ids of a response to it."""


@dataclass(frozen=True)
class Scorer:
    """A reward model as it judges: its folder, its tokens, and the lengths to which it reads.

    role: what the evaluation needs it for, as errors name it.
    """

    role: str
    source: StageInput
    tokens: ModelTokens
    max_prompt_tokens: int | None
    max_response_tokens: int | None

    @classmethod
    def of(cls, role: str, source: StageInput, config: EvaluateStage) -> "Scorer":
        """The reward model of a role; raises UnusableModel where its tokenizer does not load."""
        return cls(role, source, ModelTokens.of(source), config.max_prompt_tokens, config.max_response_tokens)

    def load(self) -> PreTrainedModel:
        """The network; raises UnusableModel where the folder holds no reward model."""
        try:
            return load_still(load_reward_model, self.source.path)
        except UnusableModel as error:
            raise UnusableModel(
                f"{self.source.name} cannot be the {self.role}: {error.detail}. Give a model that a stage of "
                "kind reward_model made.",
                model=self.source.name,
                role=self.role,
            ) from error

    def gaps(self, pairs: Sequence[PreferencePair]) -> list[float]:
        """Chosen reward minus rejected reward of each pair; raises UnusableModel, NoChatTemplate."""
        network = self.load()
        chosen, rejected = score_encoded(network, self._encoded(pairs)).double().unbind(-1)
        gaps: list[float] = (chosen - rejected).tolist()
        return gaps

    def calibration(self, pairs: Sequence[PreferencePair], gaps: Sequence[float]) -> dict[str, object]:
        """How far the gaps of pairs, as `gaps` gave them, are to be believed. Raises NoChatTemplate."""
        return calibration_report(ScoredPairs.of(self._encoded(pairs), gaps))

    def _encoded(self, pairs: Sequence[PreferencePair]) -> Sequence[EncodedPair]:
        encoded, _ = encode_pairs(
            pairs,
            self.tokens.tokenizer,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
        )
        return encoded

    def scores(
        self,
        answers: Sequence[tuple[ModelTokens, Answers]],
        prompts: Sequence[Content],
        warn: Callable[[str], None],
    ) -> list[float]:
        """Reward of every response of every model, in their order; terminated where a response stopped.

        Raises UnusableModel, NoChatTemplate, ChatTemplateRefused.
        """
        network = self.load()
        rows = [row for speaker, answer in answers for row in self.rows(speaker, answer, prompts, warn)]
        # Each response once: batches differ in their rounding, and equal responses must tie.
        distinct = sorted(set(rows))
        prompt_ids = self.tokens.encode(prompts, self.max_prompt_tokens)
        ids = [prompt_ids[number] for number, *_ in distinct], [response for _, *response in distinct]
        rewards = score_responses(network, *ids)
        if not bool(torch.isfinite(rewards).all()):
            raise UnusableModel(
                f"{self.source.name}, the {self.role}, gives rewards that are not finite.",
                model=self.source.name,
                role=self.role,
            )
        score_of = dict(zip(distinct, rewards.tolist(), strict=True))
        return [score_of[row] for row in rows]

    def rows(
        self,
        speaker: ModelTokens,
        answers: Answers,
        prompts: Sequence[Content],
        warn: Callable[[str], None],
    ) -> list[ScoredRow]:
        """A model's responses in the scorer's ids: its own where both share a vocabulary, else re-encoded."""
        samples = len(answers.responses) // len(prompts)
        numbers = [place // samples for place in range(len(answers.responses))]
        if self.tokens.same_ids(speaker):
            terminator = self.tokens.ends.terminator_id
            responses = zip(numbers, answers.responses, strict=True)
            return [(number, *response.terminated_ids(terminator)) for number, response in responses]
        longest = max(len(response.token_ids) for response in answers.responses)
        limit = max(longest, self.max_response_tokens or 0)
        rows, cut = [], 0
        for number, text, response in zip(numbers, answers.texts, answers.responses, strict=True):
            stopped = response.finish_reason == "stop"
            ids = self._encode(prompts[number], text, limit, stopped)
            cut += stopped and ids[-1:] != [self.tokens.ends.terminator_id]
            rows.append((number, *ids))
        warn(
            f"{speaker.name} and the {self.role} {self.source.name} have different vocabularies: its "
            f"responses were encoded again from their text, and {cut} of them cut at {limit} tokens."
        )
        return rows

    def _encode(self, prompt: Content, text: str, limit: int, terminated: bool) -> list[int]:
        if isinstance(prompt, str):
            return encode_response(text, self.tokens.tokenizer, limit, terminated)
        turn = [Message(role="assistant", content=text)]
        return encode_response(turn, self.tokens.tokenizer, limit, terminated, prompt=prompt)
