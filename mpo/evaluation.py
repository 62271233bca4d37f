"""The stage `evaluate`: win rates, rewards and KL of models on held-out prompts, by a judge."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mpo.batches import rows_at_once
from mpo.config import EvaluateStage
from mpo.errors import StageInterrupted
from mpo.generation import SampledResponse, SamplingConfig, sample
from mpo.intervals import bootstrap_interval, wilson_interval
from mpo.policies import load_policy, load_reward_model, to_training_device
from mpo.records import Content, PreferencePair, read_pairs
from mpo.reporter import Reporter, StageInput, StageTask
from mpo.responses import distinct_prompts, even_parts, pad_responses, response_logits
from mpo.reward_model.score import score_encoded, score_responses
from mpo.seeds import permutation, row_seed
from mpo.summaries import write_summary
from mpo.tokenization import Terminators, encode_pairs, encode_prompt, load_tokenizer, terminators
from mpo.win_rates import win_rate

SHARED_NOISE = (
    "The judge was trained on the same labels as the reward model, with another seed: it shares their noise."
)


@dataclass(frozen=True)
class EvaluationPrompts:
    """The prompts that all models answer: as they are, and as token ids."""

    contents: list[Content]
    ids: list[list[int]]


@dataclass
class Answers:
    """One model's response to each prompt, as text and token ids, and what the scorers gave it."""

    model: StageInput
    texts: list[str]
    responses: list[SampledResponse]
    judge_scores: list[float]
    training_scores: list[float]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each response, its stop token included."""
        return [len(response.token_ids) for response in self.responses]


class Progress:
    """Counts the phases of an evaluation, and is where it can be interrupted."""

    def __init__(self, reporter: Reporter, total: int) -> None:
        self.reporter, self.total, self.done = reporter, total, 0

    def step(self, metrics: Mapping[str, float]) -> None:
        """A phase has ended with these numbers."""
        self.done += 1
        self.reporter.progress(self.done, self.total, metrics)
        self.check()

    def check(self, _index: int = 0) -> bool:
        """False; raises StageInterrupted where the stage is asked to stop. Nothing is kept: it is short."""
        if self.reporter.should_stop():
            raise StageInterrupted(phases=self.done)
        return False


def evaluate(task: StageTask, reporter: Reporter) -> None:
    """The stage `evaluate`: roles models, reward_model, judge and data -> report.json, samples.jsonl.

    Each model answers the same held-out prompts with the same seeds; the judge scores, as terminated where a
    response stopped. KL of a model to the first one, and to `dpo` where it is among them: over the full
    vocabulary, at temperature 1, summed over the sampled tokens, in nats a response. Raises UnusableModel,
    NoChatTemplate, StageInterrupted.
    """
    config, models = task.config, task.inputs["models"]
    assert isinstance(config, EvaluateStage)
    pairs = read_pairs(task.one("data").path)
    prompts = choose_prompts(pairs, config, models[0].path, task.seed)
    bases = [model for i, model in enumerate(models) if i == 0 or model.name == "dpo"]
    compared = [(m, b) for m in models for b in bases if m is not b]
    progress = Progress(reporter, len(models) + len(compared) + 2)
    ends = terminators(models[0].path)
    answers = [answer_prompts(model, prompts, config, ends, task.seed, progress) for model in models]
    accuracy = _score(task, answers, pairs, prompts, ends, progress)
    kls = {
        (m.name, b.name): sampled_kl(m, b, prompts, answers[models.index(m)], ends.pad_id, progress)
        for m, b in compared
    }
    report: dict[str, object] = {
        "prompts": len(prompts.ids),
        "judge": accuracy,
        "judge_independence": "other_seed",
        "note": SHARED_NOISE,
        "models": [model_report(answer, kls, task.seed) for answer in answers],
        "win_rates": [
            win_rate(
                b.model.name, a.model.name, (b.judge_scores, a.judge_scores), (b.tokens, a.tokens)
            ).to_json()
            for a, b in combinations(answers, 2)
        ],
    }
    write_samples(task.output / "samples.jsonl", prompts, answers)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (task.output / "report.json").write_text(text + "\n", encoding="utf-8")
    write_summary(task.output, report)


def choose_prompts(
    pairs: Sequence[PreferencePair], config: EvaluateStage, folder: Path, seed: int
) -> EvaluationPrompts:
    """At most config.prompts distinct prompts of the pairs, drawn by the seed and then in file order."""
    contents = distinct_prompts(pair.prompt for pair in pairs)
    chosen = sorted(permutation(len(contents), seed)[: config.prompts])
    tokenizer = load_tokenizer(folder)
    picked = [contents[number] for number in chosen]
    return EvaluationPrompts(picked, [encode_prompt(c, tokenizer, config.max_prompt_tokens) for c in picked])


def answer_prompts(
    model: StageInput,
    prompts: EvaluationPrompts,
    config: EvaluateStage,
    ends: Terminators,
    seed: int,
    progress: Progress,
) -> Answers:
    """One model's responses; the random numbers behind them depend on seed and prompt, not on the model."""
    assert config.max_new_tokens is not None, "lengths are resolved before a stage runs"
    sampling = SamplingConfig(
        config.max_new_tokens, ends.stop_ids, ends.pad_id, temperature=config.temperature
    )
    policy = _load(load_policy, model.path)
    seeds = [row_seed(seed, number) for number in range(len(prompts.ids))]
    responses = sample(policy, prompts.ids, sampling, seeds, progress.check)
    tokenizer = load_tokenizer(model.path)
    texts = [str(tokenizer.decode(r.token_ids, skip_special_tokens=True)) for r in responses]
    progress.step({"prompts": float(len(responses))})
    return Answers(model, texts, responses, [], [])


def _load(loader: Callable[[Path], PreTrainedModel], folder: Path) -> PreTrainedModel:
    return to_training_device(loader(folder)).eval().requires_grad_(False)


def _score(
    task: StageTask,
    answers: Sequence[Answers],
    pairs: Sequence[PreferencePair],
    prompts: EvaluationPrompts,
    ends: Terminators,
    progress: Progress,
) -> dict[str, object]:
    """Fills in the scores of all answers; returns how well the judge tells held-out chosen from rejected."""
    judge = _load(load_reward_model, task.one("judge").path)
    reward_model = _load(load_reward_model, task.one("reward_model").path)
    rows = [
        [(number, *r.terminated_ids(ends.terminator_id)) for number, r in enumerate(answer.responses)]
        for answer in answers
    ]
    # Each response once: batches differ in their rounding, and equal responses must tie.
    distinct = sorted({row for of_model in rows for row in of_model})
    ids = [prompts.ids[number] for number, *_ in distinct], [response for _, *response in distinct]
    judge_scores = dict(zip(distinct, score_responses(judge, *ids).tolist(), strict=True))
    training_scores = dict(zip(distinct, score_responses(reward_model, *ids).tolist(), strict=True))
    for answer, of_model in zip(answers, rows, strict=True):
        answer.judge_scores = [judge_scores[row] for row in of_model]
        answer.training_scores = [training_scores[row] for row in of_model]
    progress.step({"responses": float(len(distinct))})
    accuracy = judge_accuracy(task, judge, pairs)
    progress.step({"pairs": float(len(pairs))})
    return accuracy


def judge_accuracy(
    task: StageTask, judge: PreTrainedModel, pairs: Sequence[PreferencePair]
) -> dict[str, object]:
    """Share of the held-out pairs whose chosen response the judge scores higher, ties half, with interval."""
    config, source = task.config, task.one("judge")
    assert isinstance(config, EvaluateStage)
    encoded, _ = encode_pairs(
        pairs,
        load_tokenizer(source.path),
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    chosen, rejected = score_encoded(judge, encoded).unbind(-1)
    correct = float(((chosen - rejected).sign() + 1).sum() / 2)
    return {
        "name": source.name,
        "accuracy": correct / len(encoded),
        "accuracy_ci95": list(wilson_interval(correct, len(encoded))),
        "pairs": len(encoded),
    }


@torch.no_grad()
def sampled_kl(
    model: StageInput,
    base: StageInput,
    prompts: EvaluationPrompts,
    answers: Answers,
    pad_id: int,
    progress: Progress,
) -> list[float]:
    """KL(model ‖ base) over the whole vocabulary, summed over each response's tokens: nats a response.

    The responses are the model's own, so that the mean over them estimates the KL of whole responses, with
    less noise than the sampled tokens' log-ratios.
    """
    policy, reference = _load(load_policy, model.path), _load(load_policy, base.path)
    responses = [response.token_ids for response in answers.responses]
    longest = max(len(p) + len(r) for p, r in zip(prompts.ids, responses, strict=True))
    rows = max(1, rows_at_once(longest, policy.config.get_text_config().vocab_size) // 2)
    kls: list[float] = []
    for part in even_parts(len(responses), -(-len(responses) // rows)):
        here = slice(part.start, part.stop)
        batch = pad_responses(prompts.ids[here], responses[here], pad_id, policy.device)
        logprobs = torch.log_softmax(response_logits(policy, batch), dim=-1)
        reference_logprobs = torch.log_softmax(response_logits(reference, batch), dim=-1)
        tokens = (logprobs.exp() * (logprobs - reference_logprobs)).sum(dim=-1)
        kls += tokens.masked_fill(~batch.response_mask, 0.0).sum(dim=1).tolist()
        progress.check()
    progress.step({f"kl_to_{base.name}": sum(kls) / len(kls)})
    return kls


def model_report(
    answers: Answers, kls: Mapping[tuple[str, str], Sequence[float]], seed: int
) -> dict[str, object]:
    """Means over the prompts of one model's answers, with bootstrap intervals over prompts."""
    name, count = answers.model.name, len(answers.responses)
    return {
        "model": name,
        "reward": _mean(answers.judge_scores, seed),
        "training_reward": _mean(answers.training_scores, seed),
        "response_tokens": _mean(answers.tokens, seed),
        "eos_rate": sum(response.finish_reason == "stop" for response in answers.responses) / count,
        "kl": {base: _mean(values, seed) for (model, base), values in kls.items() if model == name},
    }


def _mean(values: Sequence[float], seed: int) -> dict[str, object]:
    return {"mean": sum(values) / len(values), "ci95": list(bootstrap_interval(values, seed=seed))}


def write_samples(path: Path, prompts: EvaluationPrompts, answers: Sequence[Answers]) -> None:
    """One line a prompt, with every model's response and the judge's score."""
    with path.open("w", encoding="utf-8") as file:
        for index, prompt in enumerate(prompts.contents):
            responses = [
                {
                    "model": answer.model.name,
                    "text": answer.texts[index],
                    "finish_reason": answer.responses[index].finish_reason,
                    "tokens": answer.tokens[index],
                    "score": answer.judge_scores[index],
                }
                for answer in answers
            ]
            row = {"index": index, "prompt": prompt, "responses": responses}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
