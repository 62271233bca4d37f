"""`mpo compare`: the same prompts to several models, side by side."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from mpo_client.cli import exit_codes
from mpo_client.cli.error_lines import Misuse
from mpo_client.cli.gaps import brief
from mpo_client.cli.screen import Screen, cell, facts, table
from mpo_client.cli.session import Session, connected
from mpo_client.cli.waiting import at_work
from mpo_client.comparisons import Comparison

MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens a response may have.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Only the likeliest tokens that hold this share.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts", exists=True, dir_okay=False, help='JSON Lines, {"prompt": …} or a text a line.'
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(compare)


@connected
def compare(
    session: Session,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="2 to 8.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    prompts: PromptsFile = None,
    dataset: Annotated[str | None, typer.Option(help="Ask its prompts.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Of the dataset, the first so many.")] = None,
    scorer: Annotated[
        str | None, typer.Option(help="A reward model; without, there are no win rates.")
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    n: Annotated[int | None, typer.Option(min=1, help="Responses a prompt and model.")] = None,
    show: Annotated[int, typer.Option(min=0, max=20, help="Rows to show.")] = 3,
    save: Annotated[
        Path | None, typer.Option(help="All rows into a file: .csv, .jsonl, or .html, a page to read.")
    ] = None,
) -> None:
    """Compare models on the same prompts, and wait for it. Ctrl-C leaves it running."""
    asked = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if bool(asked) == (dataset is not None):
        raise Misuse("give prompts (--prompt, --prompts FILE) or --dataset, one of the two")
    client, screen = session.client, session.screen
    begun = client.comparisons.create(
        models=models,
        prompts=asked or None,
        dataset=dataset,
        limit=limit,
        reward_model=scorer,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        n=n,
    )
    with at_work(screen, begun.id):
        found = client.comparisons.wait(begun.id, deadline_seconds=math.inf)
    if save is not None:
        _save(session, found.id, save)
    if screen.as_json:
        screen.document(found)
    else:
        _tell(screen, found, show)
    if found.status != "succeeded":
        raise typer.Exit(exit_codes.UNSUCCESSFUL)


def _save(session: Session, comparison_id: str, to: Path) -> None:
    comparisons = session.client.comparisons
    match to.suffix.lower():
        case ".html" | ".htm":
            comparisons.save_html(comparison_id, to)
        case ".jsonl" | ".ndjson":
            comparisons.save_json_lines(comparison_id, to)
        case _:
            comparisons.save_csv(comparison_id, to)


def read_prompts(file: Path) -> list[str]:
    """A text a line; a line that is JSON may be a text or an object with `prompt`. Raises Misuse."""
    found = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line) if line.lstrip().startswith(("{", '"')) else line
        except ValueError as error:
            raise Misuse(f"{file}, line {number} is no JSON: {error}") from error
        value = value.get("prompt") if isinstance(value, dict) else value
        if not isinstance(value, str):
            raise Misuse(f"{file}, line {number}: `prompt` should be a text")
        found.append(value)
    return found


def _tell(screen: Screen, found: Comparison, shown: int) -> None:
    screen.show(f"{found.id} {found.status}")
    if found.error:
        screen.note(f"error: {found.error.code}: {found.error.message}")
    names = _short_names(found.models)
    if found.win_rates:
        head = ("model", "against", "won/lost/tied", "win rate", "95 % interval", "n")
        rows = [
            (
                names[each.model_a],
                names[each.model_b],
                f"{each.wins:g}/{each.losses:g}/{each.ties:g}",
                each.win_rate,
                f"{each.ci95[0]:.3f} to {each.ci95[1]:.3f}",
                each.n,
            )
            for each in found.win_rates
        ]
        screen.show(table(head, rows, numbers=("win rate", "n")))
    for row in found.rows[:shown]:
        said = [(names.get(each.model or "", "?"), _scored(each.score, each.text)) for each in row.responses]
        screen.show("", facts([("prompt", brief(row.prompt)), *((name, cell(text)) for name, text in said)]))


def _scored(score: float | None, text: str) -> str:
    return brief(text) if score is None else f"{score:+.3f} | {brief(text)}"


def _short_names(models: list[str]) -> dict[str, str]:
    """`ppo` for `job_…:ppo`, where that tells them apart."""
    short = {model: model.rpartition(":")[2] for model in models}
    return short if len(set(short.values())) == len(models) else {model: model for model in models}
