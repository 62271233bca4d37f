"""The lm_eval command, unmodified, against the service and against the same files by its own `hf` backend.

python -m experiments.lm_eval [--command LM_EVAL] [--limit 40]

Tasks of our own on example data: one of multiple choice (which of two answers is likelier), one of whole
texts' likelihoods, one of generation (the answer's exact continuation) and the same as a chat. Scores must be
equal to 1e-4, task by task, and none may be 0 or 1, which says nothing; exits 1 where one is otherwise.
`make lm-eval` installs the command into an environment of its own.
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
OPENING, ENDING = "\n\nHuman: ", "\n\nAssistant:"
"""What the chat template puts around a message: so the same prompt comes of a chat."""
CHOICE, LIKELIHOOD, GENERATION, CHAT = "mpo_choice", "mpo_likelihood", "mpo_generation", "mpo_chat"
ROWS = "sample_len"
"""What lm_eval lists beside the metrics, and is none."""
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{{shown}}}}}"
target_delimiter: ""
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
OF_LIKELIHOOD = """\
doc_to_target: "{{{{prompt + chosen}}}}"
metric_list:
  - metric: bits_per_byte
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
            files = f"pretrained={MODEL},dtype=float32"
            plain = service.scores("hf", f"{files},add_bos_token=True", [CHOICE, LIKELIHOOD, GENERATION])
            common = f"model=tiny,tokenizer={MODEL},max_retries=1,max_length=512"
            ours = service.scores(
                "local-completions",
                f"{common},base_url={stack.url}/v1/completions,num_concurrent=4,add_bos_token=True",
                [CHOICE, LIKELIHOOD, GENERATION],
            )
            chat = service.scores("hf", files, [CHAT], "--apply_chat_template")
            our_chat = service.scores(
                "local-chat-completions",
                f"{common},base_url={stack.url}/v1/chat/completions,num_concurrent=4",
                [CHAT],
                "--apply_chat_template",
            )
    return compare({**plain, **chat}, {**ours, **our_chat})


def compare(plain: Mapping[str, float], ours: Mapping[str, float]) -> int:
    """Print both sides; 1 where they differ, where a score says nothing, or where there is none."""
    differing = 0 if plain else 1
    for name, score in sorted(plain.items()):
        same = name in ours and abs(ours[name] - score) <= TOLERANCE
        says_something = score not in (0, 1)
        differing += not (same and says_something)
        verdict = ("equal" if says_something else "TRIVIAL") if same else "DIFFERENT"
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
            if isinstance(value, int | float) and "stderr" not in name and name != ROWS
        }


def write_tasks(folder: Path, limit: int) -> Path:
    """Tasks and their data. The right continuation of a half of the rows is what the model itself writes."""
    tasks = folder / "tasks"
    tasks.mkdir()
    with gzip.open(FOLDER / "pairs.jsonl.gz", "rt") as file:
        pairs = [json.loads(line) for _, line in zip(range(limit), file, strict=False)]
    answers = greedy_answers([pair["prompt"] for pair in pairs[::2]])
    asked = [pair["prompt"].removeprefix(OPENING).removesuffix(ENDING) for pair in pairs]
    rows = [
        pair | {"greedy": pair["chosen"], "question": question}
        for pair, question in zip(pairs, asked, strict=True)
    ]
    for row, answer in zip(rows[::2], answers, strict=True):
        row["greedy"] = answer
    data = tasks / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, shown, more in (
        (CHOICE, "multiple_choice", "prompt", OF_CHOICE),
        (LIKELIHOOD, "loglikelihood_rolling", "prompt", OF_LIKELIHOOD),
        (GENERATION, "generate_until", "prompt", OF_GENERATION),
        (CHAT, "generate_until", "question", OF_GENERATION),
    ):
        text = TASK.format(name=name, data=data, kind=kind, shown=shown, more=more.format())
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
