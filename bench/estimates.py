"""What a dry run forecasts against what a job then took: `python -m bench.estimates`.

Starts a stack of its own in a temporary folder, with the base model `tiny` and a made-up one, of random
weights, that is some thirty times as large. Prints a row a stage, and what a second dry run says, once there
are past runs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "examples" / "tiny"
METHOD: dict[str, Any] = {
    "type": "mpo",
    "sft": {"max_steps": 4},
    "reward_model": {"on_weak": "warn", "max_steps": 4},
    "score": {"folds": 2},
    "split": {"easy_fraction": 0.5},
    "dpo": {"max_steps": 4},
    "ppo": {"episodes": 32, "rollout_prompts": 16, "epochs": 2, "mini_batches": 2, "max_new_tokens": 24},
    "evaluate": {"prompts": 16, "max_new_tokens": 24},
}


def write_model(folder: Path) -> None:
    """A Llama of random weights with the tokenizer of `tiny` and a larger embedding."""
    config = LlamaConfig.from_pretrained(TINY)
    for name, value in {
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 64,
        "vocab_size": 16_000,
    }.items():
        setattr(config, name, value)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)


def upload(client: httpx.Client, pairs: int) -> str:
    """A dataset of the first example pairs, once it is ready."""
    import gzip

    with gzip.open(ROOT / "examples" / "pairs.jsonl.gz", "rb") as file:
        content = b"".join(line for _, line in zip(range(pairs), file, strict=False))
    made = client.post("/v1/datasets", json={"name": "pairs", "kind": "preference"}).raise_for_status().json()
    path = f"/v1/datasets/{made['id']}"
    client.put(f"{path}/content", content=content).raise_for_status()
    while client.get(path, params={"wait": 5}).json()["status"] != "ready":
        pass
    return str(made["id"])


def dry_run(client: httpx.Client, spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The forecast by stage."""
    answer = client.post("/v1/jobs?dry_run=true", json=spec).raise_for_status().json()
    return {stage["name"]: stage for stage in answer["stages"]}


def measured(client: httpx.Client, spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """An artifact of each stage of the job, once it has ended."""
    path = f"/v1/jobs/{client.post('/v1/jobs', json=spec).raise_for_status().json()['id']}"
    while (job := client.get(path, params={"wait": 30}).json())["status"] in {"queued", "running"}:
        pass
    assert job["status"] == "succeeded", job["error"]
    return {
        stage["name"]: client.get(f"/v1/artifacts/{next(iter(stage['artifacts'].values()))}").json()
        for stage in job["stages"]
    }


def compare(client: httpx.Client, spec: dict[str, Any]) -> None:
    """Prints a line a stage: forecast and measured."""
    forecast, found = dry_run(client, spec), measured(client, spec)
    again = dry_run(client, spec | {"seed": 77})
    print(f"| {spec['model']} | tokens | MB | measured | ratio | seconds | measured | second forecast |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, stage in forecast.items():
        memory, real = stage["memory_bytes"] / 1e6, found[name]["peak_memory_bytes"] / 1e6
        print(
            f"| {name} | {stage['tokens']:,} | {memory:.0f} | {real:.0f} | {memory / real:.2f} "
            f"| {stage['seconds']:.1f} | {found[name]['wall_seconds']:.1f} "
            f"| {again[name]['seconds']:.1f} ({again[name]['basis']}) |",
            flush=True,
        )


def main() -> None:
    """Runs a job on each model and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=80)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "larger")
        up = [sys.executable, "-m", "mpo_client.cli", "up", "--state", str(folder / "state"), "--port", "0"]
        command = ["env", f"MPO_MODELS={folder / 'larger'}", *up]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stack:
            try:
                assert stack.stdout is not None
                url = stack.stdout.readline().split()[1]
                key = (folder / "state" / "api-key").read_text().strip()
                headers = {"Authorization": f"Bearer {key}"}
                with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
                    dataset = upload(client, pairs)
                    for model in ("tiny", "larger"):
                        compare(client, {"model": model, "dataset": dataset, "method": METHOD})
            finally:
                stack.terminate()


if __name__ == "__main__":
    main()
