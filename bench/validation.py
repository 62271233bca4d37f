"""How fast an upload of JSON Lines is validated, and in how much memory: ours against json and pydantic.

    python -m bench.validation --megabytes 2000 [--pairs FILE | --short] [--transcripts] [--rounds 2]

Ours does all that a worker's child does: checks, canonical Parquet, report. The opponent decodes and checks
each row and keeps nothing. Each measurement is a process of its own; both take turns. Without --pairs, pairs
of about 1,600 bytes are made up, with --short of about 420; pairs of a file are repeated, prompts and ids
told apart by a number. With --transcripts prompts stand at the beginning of both responses, as in HH-RLHF.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mpo.dataset_files import validate_file
from mpo.dataset_rows import ASSISTANT

MEGABYTE = 10**6


class Pair(BaseModel):
    """What the opponent checks."""

    model_config = ConfigDict(strict=True)

    prompt: str | None = None
    chosen: str
    rejected: str


def read_ours(file: Path, target: Path) -> int:
    """Rows of a file, validated as an upload is."""
    return validate_file(file, target).rows


def read_theirs(file: Path, target: Path) -> int:
    """Rows of a file, each decoded by json and checked by pydantic."""
    with file.open("rb") as lines:
        return sum(isinstance(Pair.model_validate(json.loads(line)), Pair) for line in lines)


SIDES: dict[str, Callable[[Path, Path], int]] = {"ours": read_ours, "json + pydantic": read_theirs}


def made_up_lines(prompt: int, response: int, count: int = 20_000) -> list[bytes]:
    """Lines of pairs of at most so many random words, the same at every call."""
    draw = random.Random(0)  # noqa: S311
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzäß", k=draw.randint(2, 9))) for _ in range(5000)]

    def text(most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(most // 8, most)))

    rows = (
        {"prompt": text(prompt), "chosen": text(response) + '\n"', "rejected": text(response)}
        for _ in range(count)
    )
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def lines_of(file: Path) -> list[bytes]:
    """The lines of an upload, plain or gzip."""
    content = file.read_bytes()
    return (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).splitlines()


def as_transcripts(lines: list[bytes]) -> list[bytes]:
    """Lines of pairs with the prompts, which are strings, in both responses alone."""
    rows = [json.loads(line) for line in lines]
    for row in rows:
        prompt = row.pop("prompt")
        if ASSISTANT not in prompt:
            prompt = f"\n\nHuman: {prompt}{ASSISTANT} "
        row["chosen"], row["rejected"] = prompt + row["chosen"], prompt + row["rejected"]
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def write_lines(target: Path, lines: list[bytes], size: int) -> None:
    """Repeats lines up to a size in bytes; no row twice, no id twice."""
    with target.open("wb") as file:
        for turn in itertools.count():
            for line in lines:
                begun = (b'"prompt": "',) if b'"prompt": "' in line else (b'"chosen": "', b'"rejected": "')
                for name in (*begun, b'"id": "'):
                    line = line.replace(name, name + b"%d " % turn, 1)
                file.write(line + b"\n")
            if file.tell() >= size:
                return


def measure(side: str, file: Path) -> dict[str, float]:
    """Seconds on the wall and of CPU, and bytes over idle at the peak, of this process."""
    idle, cpu = _status_bytes("VmRSS"), time.process_time()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        rows = SIDES[side](file, Path(folder) / "rows.parquet")
    return {
        "rows": rows,
        "wall": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "memory": _status_bytes("VmHWM") - idle,
    }


def _status_bytes(name: str) -> int:
    # Not ru_maxrss: a process inherits that from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _in_a_process(side: str, file: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.validation", "--measure", side, "--pairs", str(file)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(found.stdout)
    return measured


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--transcripts", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.pairs)))
        return 0
    made_up = (20, 41) if arguments.short else (80, 160)
    lines = lines_of(arguments.pairs) if arguments.pairs else made_up_lines(*made_up)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "upload.jsonl"
        lines = as_transcripts(lines) if arguments.transcripts else lines
        write_lines(file, lines, arguments.megabytes * MEGABYTE)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side in SIDES:
                found[side].append(_in_a_process(side, file))
        _print(found, file.stat().st_size / MEGABYTE)
    return 0


def _print(found: dict[str, list[dict[str, float]]], megabytes: float) -> None:
    rows = int(found["ours"][0]["rows"])
    print(
        f"{megabytes:.0f} MB, {rows} rows of {megabytes * MEGABYTE / rows:.0f} bytes; {os.cpu_count()} cores"
    )
    print("| | MB/s, wall | MB/s of one core's time | MB over idle, peak |\n| --- | --- | --- | --- |")
    for side, measured in found.items():
        walls, cores = ([megabytes / m[kind] for m in measured] for kind in ("wall", "cpu"))
        memory = max(m["memory"] for m in measured) / MEGABYTE
        print(f"| {side} | {_span(walls)} | {_span(cores)} | {memory:.0f} |")
    ratios = [theirs["wall"] / ours["wall"] for ours, theirs in zip(*found.values(), strict=True)]
    print(f"ours / json + pydantic, wall: {_span(ratios, 1)}")


def _span(values: list[float], digits: int = 0) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
