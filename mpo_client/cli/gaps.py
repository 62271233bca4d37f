"""`mpo gaps`: the histogram of a job's reward gaps, what another split would give, the pairs themselves."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mpo_client.cli import charts
from mpo_client.cli.error_lines import Misuse
from mpo_client.cli.jobs import JobId
from mpo_client.cli.screen import facts, table
from mpo_client.cli.session import Session, connected
from mpo_client.reward_gaps import PICTURES, Order, Part, RewardGaps

group = typer.Typer(help="Look at reward gaps before and after the split.", no_args_is_help=True)

PartOption = Annotated[Part, typer.Option(help="Pairs of one part of the split alone.")]


@group.command("histogram")
@connected
def show_histogram(
    session: Session,
    job: JobId,
    bins: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    lower: Annotated[float | None, typer.Option(help="Where the bins begin.")] = None,
    upper: Annotated[float | None, typer.Option(help="Where the bins end.")] = None,
    part: PartOption = "all",
    save: Annotated[Path | None, typer.Option(help=f"Into a file besides: {', '.join(PICTURES)}.")] = None,
) -> None:
    """Show the histogram of the pairs' reward gaps, and where the split's threshold lies."""
    if save is not None and save.suffix.lower() not in PICTURES:
        raise Misuse(f"--save {save}: the name should end in {', '.join(PICTURES)}")
    client, screen = session.client, session.screen
    found = client.gaps.get(job, bins=bins, lower=lower, upper=upper, part=part)
    if save is not None:
        client.gaps.save_picture(job, save, bins=bins, part=part)
    if screen.as_json:
        return screen.document(found)
    screen.show(charts.histogram(found, min(screen.out.width, 80)), _figures(found))
    if save is not None:
        screen.note(f"saved {save}")
    return None


def _figures(found: RewardGaps) -> Table:
    low, high = found.accuracy_ci95 or (None, None)
    interval = f" (95 % interval {low:.3f} to {high:.3f})" if low is not None else ""
    split = f"{found.easy:,} easy, {found.difficult:,} difficult, {found.dropped:,} dropped"
    outside = f"{found.below:,} below, {found.above:,} above" if found.below or found.above else None
    return facts(
        [
            ("pairs", f"{found.pairs:,}: {split}"),
            ("outside", outside),
            ("accuracy", None if found.accuracy is None else f"{found.accuracy:.3f}{interval}"),
            ("mean", found.mean),
            ("std", found.std),
            ("|gap| ≤ 1", None if found.share_within_one is None else f"{found.share_within_one:.1%}"),
            ("scored by", f"{found.reward_model or ''} {found.scored_by}".strip()),
        ]
    )


@group.command()
@connected
def preview(
    session: Session,
    job: JobId,
    threshold: Annotated[float | None, typer.Option(help="Easy from this gap on.")] = None,
    quantile: Annotated[float | None, typer.Option(help="Easy from this quantile of the gaps on.")] = None,
    easy_fraction: Annotated[float | None, typer.Option(help="This share of the pairs is easy.")] = None,
) -> None:
    """Preview another split; the job's own where no option is given."""
    found = session.client.gaps.preview(
        job, threshold=threshold, quantile=quantile, easy_fraction=easy_fraction
    )
    if session.screen.as_json:
        return session.screen.document(found)
    parts = {"easy": found.easy, "difficult": found.difficult, "dropped": found.dropped}
    head = ("part", "pairs", "accuracy", "expected accuracy", "mean gap", "tokens")
    rows = [
        (name, each.pairs, each.accuracy, each.expected_accuracy, each.mean_gap, each.tokens)
        for name, each in parts.items()
    ]
    return session.screen.show(f"threshold {found.threshold:.4g}", table(head, rows, numbers=head[1:]))


@group.command()
@connected
def pairs(
    session: Session,
    job: JobId,
    part: PartOption = "all",
    order: Annotated[Order | None, typer.Option(help="In the data's order where not given.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 10,
) -> None:
    """Show scored pairs: prompt, responses, rewards, gap."""
    found = [*session.client.gaps.pairs(job, part=part, order=order, limit=limit)]
    if session.screen.as_json:
        return session.screen.document(found)
    for pair in found:
        fold = "" if pair.fold is None else f", fold {pair.fold}"
        session.screen.show(
            facts(
                [
                    ("pair", f"{pair.id}  gap {pair.gap:+.3f}  {pair.part} ({pair.why}{fold})"),
                    ("prompt", brief(pair.prompt)),
                    ("chosen", f"{pair.reward_chosen:+.3f} | {brief(pair.chosen)}"),
                    ("rejected", f"{pair.reward_rejected:+.3f} | {brief(pair.rejected)}"),
                ]
            ),
            "",
        )
    return None


def brief(content: object) -> str:
    """A text, or the turns of a conversation, in one paragraph."""
    if isinstance(content, list):
        content = " ".join(f"{turn['role']}: {turn['content']}" for turn in content if isinstance(turn, dict))
    return " ".join(str(content).split())
