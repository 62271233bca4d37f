"""MPO against DPO alone and PPO alone: three specs, what they share done once, their models side by side.

    python -m examples.ablation --state .demo --pairs examples/pairs.jsonl.gz

The specs are `examples/ablations/*.json`; `mpo jobs submit FILE --dataset ds_…` takes them too. Where the
pairs are those of `mpo demo` and it has run in the same folder, MPO's models are cached. Answers to the
held-out prompts are scored by the gold reward that the example pairs' labels were drawn from.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedded.gold import GoldWins, gold_means, gold_rewards, gold_wins
from mpo_client import Client
from mpo_client.cli.connection import Source, connect

HERE = Path(__file__).parent
FINAL = {"dpo_only": "dpo", "ppo_only": "ppo", "mpo": "ppo"}
"""By spec, the stage whose model is compared."""
DEADLINE_SECONDS = 24 * 3600.0
MAX_TOKENS = 64


def specs() -> dict[str, dict[str, Any]]:
    """By name, as they are shipped."""
    return {name: json.loads((HERE / "ablations" / f"{name}.json").read_text()) for name in FINAL}


def train(client: Client, dataset: str, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Submits all at once; the final model of each, by name. Raises SystemExit where one does not succeed."""
    jobs = {name: client.jobs.create({**spec, "dataset": dataset}) for name, spec in asked.items()}
    models = {}
    for name, begun in jobs.items():
        job = client.jobs.wait(begun.id, deadline_seconds=DEADLINE_SECONDS)
        if job.status != "succeeded":
            sys.exit(f"{name}: {job.id} {job.status}: {job.error.message if job.error else ''}")
        cached = [stage.name for stage in job.stages if stage.cached]
        print(f"{name}: {job.id} succeeded, cached: {', '.join(cached) or 'nothing'}", flush=True)
        models[name] = job.models[FINAL[name]]
    return models


def compare(
    client: Client, models: Mapping[str, str], prompts: Sequence[str]
) -> tuple[dict[str, list[float]], list[GoldWins]]:
    """The gold reward of each model's answers, and who beats whom."""
    begun = client.comparisons.create(
        models=[*models.values()], prompts=prompts, max_tokens=MAX_TOKENS, seed=0
    )
    client.comparisons.wait(begun.id, deadline_seconds=DEADLINE_SECONDS)
    rows = list(client.comparisons.rows(begun.id))
    answers = {name: [row.responses[place].text for row in rows] for place, name in enumerate(models)}
    rewards = gold_rewards([str(row.prompt) for row in rows], answers)
    return rewards, gold_wins(rewards)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all three on the service of a state folder, and prints how they compare."""
    parser = argparse.ArgumentParser(prog="python -m examples.ablation", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".demo"), help="folder of a running `mpo up`")
    parser.add_argument("--pairs", type=Path, default=HERE / "pairs.jsonl.gz")
    chosen = parser.parse_args(arguments)
    service = connect([Source(state=chosen.state)])
    prompts = [json.loads(line)["prompt"] for line in (HERE / "prompts.jsonl").read_text().splitlines()]
    with Client(service.url, service.key) as client:
        dataset = client.datasets.wait(client.datasets.upload(chosen.pairs).id)
        rewards, wins = compare(client, train(client, dataset.id, specs()), prompts)
    print(f"\ngold reward of the answers to {len(prompts)} held-out prompts")
    for mean in gold_means(rewards):
        print(f"  {mean.model:<9} {mean.mean:+.2f}  [{mean.ci95[0]:+.2f}, {mean.ci95[1]:+.2f}]")
    for each in wins:
        low, high = each.ci95
        print(
            f"  {each.model} against {each.against}: {each.rate:.3f} [{low:.3f}, {high:.3f}], {each.verdict}"
        )


if __name__ == "__main__":
    main()
