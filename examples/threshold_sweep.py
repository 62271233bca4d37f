"""What another threshold would have given: one job, its split anew at several shares of easy pairs.

    python -m examples.threshold_sweep JOB --state .demo --easy 0.2 0.35 0.5 0.65 0.8 --plot sweep.png

Reward models and scores of the first job are cached, so each point costs the split, DPO, PPO and the
evaluation alone. The plot needs matplotlib, which the extra `server` brings.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpo_client import Client
from mpo_client.cli.connection import Source, connect
from mpo_client.jobs import Job

DEADLINE_SECONDS = 24 * 3600.0
EVALUATED = (("ppo", "sft"), ("ppo", "dpo"))
"""Whose win rates are shown: MPO against SFT, and against DPO on the easy pairs."""


@dataclass(frozen=True)
class Point:
    """What a share of easy pairs gave. rates: win rate and its 95 % interval, by the job's judge."""

    easy_fraction: float
    threshold: float
    easy: int
    difficult: int
    cached: int
    stages: int
    seconds: int
    rates: dict[tuple[str, str], tuple[float, tuple[float, float]]]


def sweep(client: Client, job_id: str, easy_fractions: Sequence[float]) -> list[Point]:
    """Submits all jobs at once, and waits for each; raises SystemExit where one does not succeed."""
    first = client.jobs.get(job_id)
    if first.method.get("type") != "mpo":
        sys.exit(f"{job_id} is no job of the method mpo: there is nothing to split")
    jobs = {share: client.jobs.create(another_split(first, share)) for share in easy_fractions}
    points = []
    for share, begun in jobs.items():
        job = client.jobs.wait(begun.id, deadline_seconds=DEADLINE_SECONDS)
        if job.status != "succeeded":
            sys.exit(f"{job.id} {job.status}: {job.error.message if job.error else ''}")
        points.append(point(client, job, share))
    return points


def another_split(job: Job, easy_fraction: float) -> dict[str, Any]:
    """The spec of a job, split elsewhere."""
    return {
        "name": f"{job.name or job.id}, {easy_fraction:g} easy",
        "model": job.model,
        "dataset": job.dataset,
        "seed": (job.model_extra or {})["seed"],
        "method": {**job.method, "split": {"easy_fraction": easy_fraction}},
        "labels": {"sweep": job.id},
    }


def point(client: Client, job: Job, easy_fraction: float) -> Point:
    """What a finished job came to."""
    gaps = client.gaps.get(job.id)
    report: dict[str, Any] = client.jobs.report(job.id).model_dump()
    rates = {
        (rate["model_a"], rate["model_b"]): (rate["win_rate"], (rate["ci95"][0], rate["ci95"][1]))
        for rate in report["evaluation"]["win_rates"]
    }
    took = job.finished_at - job.started_at if job.finished_at and job.started_at else 0
    cached = sum(stage.cached for stage in job.stages)
    split = (gaps.threshold or 0.0, gaps.easy, gaps.difficult)
    return Point(easy_fraction, *split, cached, len(job.stages), took, rates)


def table(points: Sequence[Point]) -> str:
    """A line a point."""
    head = f"{'easy':>5} {'threshold':>10} {'pairs':>11} {'cached':>7} {'seconds':>8}"
    lines = [head + "".join(f"   {a} against {b} (95 %)" for a, b in EVALUATED)]
    for p in points:
        line = f"{p.easy_fraction:5.2f} {p.threshold:10.3f} {p.easy:5} /{p.difficult:4}"
        line += f" {p.cached:3}/{p.stages:3} {p.seconds:8}"
        for pair in EVALUATED:
            rate, (low, high) = p.rates[pair]
            line += f"   {rate:.3f} [{low:.3f}, {high:.3f}]".ljust(25)
        lines.append(line.rstrip())
    return "\n".join(lines)


def plot(points: Sequence[Point], to: Path) -> None:
    """Win rates over the share of easy pairs, with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    shares = [p.easy_fraction for p in points]
    for a, b in EVALUATED:
        found = [p.rates[a, b] for p in points]
        middle = [rate for rate, _ in found]
        below = [rate - low for rate, (low, _) in found]
        above = [high - rate for rate, (_, high) in found]
        axes.errorbar(shares, middle, yerr=[below, above], marker="o", capsize=3, label=f"{a} against {b}")
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.set(xlabel="share of easy pairs", ylabel="win rate by the judge, 95 % interval", ylim=(0, 1))
    axes.legend()
    figure.savefig(to, dpi=150)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the sweep on the service of a state folder, prints the table, draws the plot."""
    parser = argparse.ArgumentParser(prog="python -m examples.threshold_sweep", description=__doc__)
    parser.add_argument("job")
    parser.add_argument("--state", type=Path, default=Path(".demo"), help="folder of a running `mpo up`")
    parser.add_argument("--easy", type=float, nargs="+", default=[0.2, 0.35, 0.5, 0.65, 0.8])
    parser.add_argument("--plot", type=Path, default=Path("sweep.png"))
    chosen = parser.parse_args(arguments)
    service = connect([Source(state=chosen.state)])
    with Client(service.url, service.key) as client:
        points = sweep(client, chosen.job, sorted(chosen.easy))
    print(table(points))
    plot(points, chosen.plot)
    print(f"plot: {chosen.plot}")


if __name__ == "__main__":
    main()
