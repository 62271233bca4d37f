"""`mpo evaluations`: create, list, show, samples, cancel."""

import math
from pathlib import Path
from typing import Annotated

import typer

from mpo_client.cli import exit_codes
from mpo_client.cli.screen import Screen, facts, moment, table
from mpo_client.cli.session import Session, connected
from mpo_client.cli.waiting import at_work
from mpo_client.evaluations import (
    EvaluatedModel,
    Evaluation,
    EvaluationReport,
    Independence,
    Mean,
    SeenByModel,
)

group = typer.Typer(help="Measure models on held-out prompts, by a judge.", no_args_is_help=True)

MODEL_HEAD = (
    "model",
    "reward",
    "tokens",
    "distinct-1",
    "distinct-2",
    "self-BLEU",
    "KL in nats",
    "seen prompts",
)
RATE_HEAD = ("model", "against", "won/lost/tied", "win rate", "95 % interval")

EvaluationId = Annotated[str, typer.Argument(metavar="EVALUATION", help="eval_…")]


@group.command()
@connected
def create(
    session: Session,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="1 to 8.")],
    judge: Annotated[str, typer.Option(help="A reward model that trained none of them.")],
    dataset: Annotated[str, typer.Option(help="Pairs, whose prompts are asked.")],
    reward_model: Annotated[
        str | None, typer.Option(help="What they were trained against: numbers come by its gaps.")
    ] = None,
    sft: Annotated[str | None, typer.Option(help="KL is measured to it; else to the first model.")] = None,
    dpo: Annotated[str | None, typer.Option(help="KL is measured to it too.")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Responses a prompt and model.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens a response may have.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 0.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of prompts and responses.")] = None,
    judge_independence: Annotated[
        Independence | None, typer.Option(help="What the judge differs in, where nobody else can know.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the report, and show it.")] = True,
) -> None:
    """Evaluate models, and wait for the report. Ctrl-C leaves it running; --no-wait prints its id."""
    made = session.client.evaluations.create(
        models=models,
        judge=judge,
        dataset=dataset,
        reward_model=reward_model,
        sft=sft,
        dpo=dpo,
        prompts=prompts,
        samples=samples,
        max_new_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        judge_independence=judge_independence,
    )
    if not wait:
        return _begun(session.screen, made)
    with at_work(session.screen, made.id):
        found = session.client.evaluations.wait(made.id, deadline_seconds=math.inf)
    _tell(session.screen, found)
    if found.status != "succeeded":
        raise typer.Exit(exit_codes.UNSUCCESSFUL)
    return None


@group.command("list")
@connected
def list_evaluations(
    session: Session, limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20
) -> None:
    """List evaluations, newest first."""
    found = [*session.client.evaluations.list(limit=limit)]
    if session.screen.as_json:
        return session.screen.document(found)
    rows = [(e.id, e.status, ", ".join(e.models), e.judge, moment(e.created_at)) for e in found]
    return session.screen.show(table(("id", "status", "models", "judge", "created"), rows))


@group.command()
@connected
def show(session: Session, evaluation: EvaluationId) -> None:
    """Show an evaluation, and its report once there is one."""
    _tell(session.screen, session.client.evaluations.get(evaluation))


@group.command()
@connected
def samples(
    session: Session,
    evaluation: EvaluationId,
    to: Annotated[Path, typer.Argument(dir_okay=False, help="A file; JSON Lines.")],
) -> None:
    """Save what every model answered, a line a prompt."""
    session.client.evaluations.save_samples(evaluation, to)
    session.screen.note(f"samples of {evaluation} in {to}")


@group.command()
@connected
def cancel(session: Session, evaluation: EvaluationId) -> None:
    """End an evaluation; it leaves no report."""
    found = session.client.evaluations.cancel(evaluation)
    if session.screen.as_json:
        session.screen.document(found)
    else:
        session.screen.note(f"{found.id} is {found.status}")


def _begun(screen: Screen, made: Evaluation) -> None:
    if screen.as_json:
        return screen.document(made)
    screen.show(made.id)
    return screen.note(f"mpo evaluations show {made.id}")


def _tell(screen: Screen, found: Evaluation) -> None:
    if screen.as_json:
        return screen.document(found)
    progress, error = found.progress, found.error
    told = [
        ("id", found.id),
        ("status", found.status),
        ("judge", found.judge),
        ("dataset", found.dataset),
        ("done", f"{progress.fraction:.0%}" if progress else None),
        ("finished", moment(found.finished_at)),
        ("error", error and f"{error.code}: {error.message}"),
    ]
    screen.show(facts(told))
    for warning in found.warnings:
        screen.note(f"warning: {warning}")
    if found.report is not None:
        _report(screen, found.report)
    return None


def _report(screen: Screen, report: EvaluationReport) -> None:
    if report.note:
        screen.note(report.note)
    seen = {each.model: each for each in report.contamination.models} if report.contamination else {}
    screen.show("", table(MODEL_HEAD, [_model(each, seen.get(each.model)) for each in report.models]))
    rates = [
        (r.model_a, r.model_b, f"{r.wins:g}/{r.losses:g}/{r.ties:g}", r.win_rate, _interval(r.ci95))
        for r in report.win_rates
    ]
    if rates:
        screen.show("", table(RATE_HEAD, rates, numbers=("win rate",)))


def _model(found: EvaluatedModel, seen: SeenByModel | None) -> tuple[object, ...]:
    kl = ", ".join(f"{value.mean:.3g} to {base}" for base, value in found.kl.items())
    known = f"{seen.equal.prompts}" if seen and seen.equal else "not known"
    diversity = found.diversity
    return (
        found.model,
        _mean(found.reward),
        found.response_tokens and f"{found.response_tokens.mean:.1f}",
        diversity.distinct_1,
        diversity.distinct_2,
        diversity.self_bleu,
        kl or None,
        known,
    )


def _mean(value: Mean) -> str:
    return f"{value.mean:+.3f} [{_interval(value.ci95)}]"


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
