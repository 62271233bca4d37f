"""The lm_eval command, unmodified, against the service and against the same files by its own `hf` backend.

python -m experiments.lm_eval [--command LM_EVAL] [--limit 40]

Two tasks of our own on example data: one of multiple choice (which of two answers is likelier) and one of
generation (the answer's exact continuation). Scores must be equal to 1e-4, task by task; exits 1 where they
are not. `make lm-eval` installs the command into an environment of its own.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import examples
from bench.load_stack import running_stack
from embedded.services import inherited_environment

FOLDER = Path(examples.__file__).parent
MODEL = FOLDER / "tiny"
TOLERANCE = 1e-4
CHOICE, GENERATION, CHAT = "mpo_choice", "mpo_generation", "mpo_chat"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
{more}
metadata:
  version: 1.0
"""
OF_CHOICE = """\
doc_to_choice: "{{{{[chosen, rejected]}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
  - metric: acc_norm
"""
OF_GENERATION = """\
doc_to_target: "{{{{greedy}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 24
  do_sample: false
metric_list:
  - metric: exact_match
"""


def main(arguments: Sequence[str]) -> int:
    """Run each backend on each task and compare; 1 where a score differs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.lm_eval")
    parser.add_argument("--command", default="lm_eval", help="the program lm_eval")
    parser.add_argument("--limit", type=int, default=40, help="rows a task")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mpo-lm-eval-") as name:
        folder = Path(name)
        tasks = write_tasks(folder, chosen.limit)
        with running_stack(folder / "stack") as stack:
            service = Lm(chosen.command, tasks, folder, {"OPENAI_API_KEY": stack.key})
            plain = service.scores("hf", f"pretrained={MODEL},dtype=float32", [CHOICE, GENERATION])
            common = f"model=tiny,tokenizer={MODEL},max_retries=1,max_length=256"
            ours = service.scores(
                "local-completions",
                f"{common},base_url={stack.url}/v1/completions,num_concurrent=4",
                [CHOICE, GENERATION],
            )
            chat = service.scores("hf", f"pretrained={MODEL},dtype=float32", [CHAT], "--apply_chat_template")
            our_chat = service.scores(
                "local-chat-completions",
                f"{common},base_url={stack.url}/v1/chat/completions,num_concurrent=4",
                [CHAT],
                "--apply_chat_template",
            )
    return compare({**plain, **chat}, {**ours, **our_chat})


def compare(plain: Mapping[str, float], ours: Mapping[str, float]) -> int:
    """Print both sides; 1 where they differ, or there is nothing to compare."""
    differing = 0 if plain else 1
    for name, score in sorted(plain.items()):
        same = name in ours and abs(ours[name] - score) <= TOLERANCE
        differing += not same
        verdict = "equal" if same else "DIFFERENT"
        print(f"{name}: hf {score:.6f}, service {ours.get(name, float('nan')):.6f}, {verdict}")
    return 1 if differing else 0


class Lm:
    """The command, and what it is told each time."""

    def __init__(self, command: str, tasks: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self._command, self._tasks, self._folder = command, tasks, folder
        self._environment = {
            **inherited_environment(),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hf"),
            **environment,
        }
        self._runs = 0

    def scores(self, model: str, model_args: str, tasks: Sequence[str], *more: str) -> dict[str, float]:
        """By task and metric."""
        self._runs += 1
        output = self._folder / f"out-{self._runs}"
        command = [
            self._command, "--model", model, "--model_args", model_args, "--tasks", ",".join(tasks),
            "--include_path", str(self._tasks), "--output_path", str(output), "--batch_size", "8",
            "--device", "cpu", *more,
        ]  # fmt: skip
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        found: dict[str, Any] = json.loads(next(output.rglob("results_*.json")).read_text())["results"]
        return {
            f"{task} {name.partition(',')[0]}": float(value)
            for task, metrics in found.items()
            for name, value in metrics.items()
            if isinstance(value, int | float) and "stderr" not in name
        }


def write_tasks(folder: Path, limit: int) -> Path:
    """Tasks and their data. The right continuation of a half of the rows is what the model itself writes."""
    tasks = folder / "tasks"
    tasks.mkdir()
    with gzip.open(FOLDER / "pairs.jsonl.gz", "rt") as file:
        pairs = [json.loads(line) for _, line in zip(range(limit), file, strict=False)]
    answers = greedy_answers([pair["prompt"] for pair in pairs[::2]])
    rows = [pair | {"greedy": pair["chosen"]} for pair in pairs]
    for row, answer in zip(rows[::2], answers, strict=True):
        row["greedy"] = answer
    data = tasks / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, more in (
        (CHOICE, "multiple_choice", OF_CHOICE),
        (GENERATION, "generate_until", OF_GENERATION),
        (CHAT, "generate_until", OF_GENERATION),
    ):
        text = TASK.format(name=name, data=data, kind=kind, more=more.format())
        (tasks / f"{name}.yaml").write_text(text)
    return tasks


def greedy_answers(prompts: Sequence[str]) -> list[str]:
    """What the model writes after each prompt, up to a line's end."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        found = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        answers.append(str(tokenizer.decode(found, skip_special_tokens=True)).partition("\n")[0])
    return answers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
