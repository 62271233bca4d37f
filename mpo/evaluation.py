"""The stage `evaluate`: win rates, rewards, KL and diversity of models on held-out prompts, by a judge."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpo.answers import Answers, answer_prompts
from mpo.contamination import contamination_report
from mpo.diversity import diversity_report
from mpo.evaluation_inputs import Evaluation
from mpo.evaluation_phases import Phases
from mpo.evaluation_report import (
    ModelNumbers,
    accuracy_numbers,
    compare_models,
    prompt_means,
    reports_by_gap,
)
from mpo.judging import Scorer
from mpo.reporter import Reporter, StageInput, StageTask
from mpo.sampled_kl import sampled_kl
from mpo.summaries import write_summary

SHARED_NOISE = (
    "The judge was trained on the same labels as the reward model, with another seed: it shares their noise."
)


def evaluate(task: StageTask, reporter: Reporter) -> None:
    """The stage `evaluate`: roles models, judge, data -> report.json, samples.jsonl.

    Optional roles: reward_model, by which the prompts' gaps are told; sft and dpo, to which KL is measured
    (without sft, to the first model); training_of_0, training_of_1 …, in which the prompts are looked for.
    Each model answers the same held-out prompts with the same seeds. KL: over the full vocabulary, at
    temperature 1, summed over the sampled tokens, in nats a response.
    Raises UnusableModel, NoChatTemplate, TooFewPrompts, StageInterrupted.
    """
    evaluation = Evaluation.of(task, reporter)
    measured = evaluation.kl_pairs(reporter)
    scorers = 1 if evaluation.reward_model is None else 2
    phases = Phases(task, reporter, len(evaluation.models) + 2 * scorers + len(measured))
    # What a wrong input can spoil comes first: sampling may take hours.
    judged = phases.numbers("judge_gap", lambda: evaluation.judge.gaps(evaluation.pairs))
    contamination = look_for_prompts(evaluation, phases, reporter)
    gaps = prompt_gaps(evaluation, phases)
    answers = [_answers(evaluation, number, phases) for number in range(len(evaluation.models))]
    # While phases are to come: a checkpoint of all of them would have nothing to go on with.
    diversities = [diversity_report(answer.texts, phases.check) for answer in answers]
    rewards = _scores(evaluation, evaluation.judge, answers, phases, reporter)
    training_rewards: Sequence[Sequence[float] | None] = [None for _ in answers]
    if evaluation.reward_model:
        training_rewards = _scores(evaluation, evaluation.reward_model, answers, phases, reporter)
    kls: list[dict[str, list[float]]] = [{} for _ in answers]
    for number, base in measured:
        kls[number][base.name] = _kl(evaluation, number, base, answers[number], phases)
    models = [
        model_numbers(model.name, answer, scored, trained, kl, diversity, evaluation.config.samples)
        for model, answer, scored, trained, kl, diversity in zip(
            evaluation.models, answers, rewards, training_rewards, kls, diversities, strict=True
        )
    ]
    write_samples(task.output / "samples.jsonl", evaluation, answers, rewards)
    write_report(task.output, evaluation, judged, gaps, models, contamination)


def prompt_gaps(evaluation: Evaluation, phases: Phases) -> list[float] | None:
    """Mean |gap| of each prompt over its held-out pairs, in reward units; None without a reward model."""
    reward_model = evaluation.reward_model
    if reward_model is None:
        return None
    numbers = {json.dumps(prompt): number for number, prompt in enumerate(evaluation.prompts)}
    rows = [(numbers[key], pair) for pair in evaluation.pairs if (key := json.dumps(pair.prompt)) in numbers]

    def compute() -> list[float]:
        sizes: list[list[float]] = [[] for _ in evaluation.prompts]
        for (number, _), gap in zip(rows, reward_model.gaps([pair for _, pair in rows]), strict=True):
            sizes[number].append(abs(gap))
        return [sum(of_prompt) / len(of_prompt) for of_prompt in sizes]

    return phases.numbers("gap", compute)


def look_for_prompts(evaluation: Evaluation, phases: Phases, reporter: Reporter) -> dict[str, object] | None:
    """What of the prompts is in what the models were trained on; None where that is known of no model.

    Warns of each model that has seen some of them. No phase: it is read again sooner than kept.
    """
    if not any(evaluation.trained_on):
        return None
    known = [
        (model.name, None if data is None else [(each.name, each.path) for each in data])
        for model, data in zip(evaluation.models, evaluation.trained_on, strict=True)
    ]
    report, seen = contamination_report(evaluation.prompts, known, phases.check)
    for name, count in seen.items():
        reporter.warn(
            f"{count} of the {len(evaluation.prompts)} prompts are in what {name} was trained on: "
            "its numbers are not of unseen prompts."
        )
    return report


def _answers(evaluation: Evaluation, number: int, phases: Phases) -> Answers:
    model, speaker = evaluation.models[number], evaluation.speakers[number]
    return phases.answers(
        f"answers_{number}",
        lambda: answer_prompts(
            model, speaker, evaluation.prompts, evaluation.config, evaluation.seed, phases.check
        ),
    )


def _scores(
    evaluation: Evaluation,
    scorer: Scorer,
    answers: Sequence[Answers],
    phases: Phases,
    reporter: Reporter,
) -> list[list[float]]:
    """Rewards by model, in the order of its responses."""
    spoken = list(zip(evaluation.speakers, answers, strict=True))
    phase = "reward" if scorer is evaluation.judge else "training_reward"
    scores = phases.numbers(phase, lambda: scorer.scores(spoken, evaluation.prompts, reporter.warn))
    each = len(scores) // len(answers)
    return [scores[start : start + each] for start in range(0, len(scores), each)]


def _kl(
    evaluation: Evaluation, number: int, base: StageInput, answers: Answers, phases: Phases
) -> list[float]:
    """KL of a model to a base on each of the model's responses, in nats."""
    model, speaker, config = evaluation.models[number], evaluation.speakers[number], evaluation.config

    def compute() -> list[float]:
        ids = speaker.encode(evaluation.prompts, config.max_prompt_tokens)
        prompts = [row for row in ids for _ in range(config.samples)]
        responses = [response.token_ids for response in answers.responses]
        return sampled_kl(model.path, base.path, prompts, responses, speaker.ends.pad_id, phases.check)

    return phases.numbers(f"kl_{number}_to_{base.name}", compute)


def model_numbers(
    name: str,
    answers: Answers,
    rewards: Sequence[float],
    training_rewards: Sequence[float] | None,
    kl: Mapping[str, Sequence[float]],
    diversity: Mapping[str, float | None],
    samples: int,
) -> ModelNumbers:
    """A model's numbers by prompt, from those of its responses; samples: responses a prompt."""
    return ModelNumbers(
        name,
        prompt_means(rewards, samples),
        None if training_rewards is None else prompt_means(training_rewards, samples),
        prompt_means(answers.tokens, samples),
        {base: prompt_means(values, samples) for base, values in kl.items()},
        answers.eos_rate,
        diversity,
    )


def write_report(
    output: Path,
    evaluation: Evaluation,
    judged: Sequence[float],
    gaps: Sequence[float] | None,
    models: Sequence[ModelNumbers],
    contamination: Mapping[str, object] | None,
) -> None:
    """Writes report.json, and the same as the stage's summary. judged: the judge's gaps of held-out pairs."""
    config, seed, judge = evaluation.config, evaluation.seed, evaluation.judge
    calibration = judge.calibration(evaluation.pairs, judged)
    report: dict[str, object] = {
        "prompts": len(evaluation.prompts),
        "samples": config.samples,
        "judge": {"name": judge.source.name, **accuracy_numbers(judged), "calibration": calibration},
        "judge_independence": config.judge_independence,
        "note": SHARED_NOISE if config.judge_independence == "other_seed" else None,
        "models": [model.to_json(seed) for model in models],
        "win_rates": compare_models(models),
        "by_gap": None if gaps is None else reports_by_gap(models, gaps, seed),
        "contamination": contamination,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (output / "report.json").write_text(text + "\n", encoding="utf-8")
    write_summary(output, report)


def write_samples(
    path: Path, evaluation: Evaluation, answers: Sequence[Answers], scores: Sequence[Sequence[float]]
) -> None:
    """One line a prompt, with every response of every model and the judge's score."""
    samples = evaluation.config.samples
    with path.open("w", encoding="utf-8") as file:
        for index, prompt in enumerate(evaluation.prompts):
            responses = [
                {
                    "model": model.name,
                    "sample": sample,
                    "text": answer.texts[place],
                    "finish_reason": answer.responses[place].finish_reason,
                    "tokens": len(answer.responses[place].token_ids),
                    "score": scored[place],
                }
                for model, answer, scored in zip(evaluation.models, answers, scores, strict=True)
                for sample, place in enumerate(range(index * samples, (index + 1) * samples))
            ]
            row = {"index": index, "prompt": prompt, "responses": responses}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
