"""Makes the example data anew: the base model `tiny`, preference pairs and held-out prompts.

python -m examples.make_tiny --out examples --seed 0     writes them
python -m examples.make_tiny --data                      writes pairs and prompts, by the model that is there
python -m examples.make_tiny --check                     compares a fresh build with what is shipped
"""

import argparse
import hashlib
import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from examples.grammar import Dialogue
from examples.pairs import held_out_prompts, sample_pairs, write_pairs
from examples.tokenizer import train_tokenizer
from examples.training import (
    Recipe,
    held_out_dialogues,
    new_model,
    response_nll,
    train,
    training_dialogues,
)

HERE = Path(__file__).parent
TOKENIZER_TEXTS = 8000
PAIRS, PROMPTS = 800, 160
THREADS = 2
FILES = (
    "tiny/config.json",
    "tiny/generation_config.json",
    "tiny/model.safetensors",
    "tiny/tokenizer.json",
    "tiny/tokenizer_config.json",
    "tiny/chat_template.jinja",
    "pairs.jsonl.gz",
    "prompts.jsonl",
)


def make_all(out: Path, seed: int) -> None:
    """Writes every file of FILES under `out` and prints the figures of the build."""
    # The order of sums in a product depends on the number of threads, and the bytes on that order.
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(seed)
    model = make_model(tokenizer, seed)
    save_model(out / "tiny", model, tokenizer)
    write_data(out, model, tokenizer, seed)
    print(f"bytes in all               {sum((out / name).stat().st_size for name in FILES):,}")


def write_data(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Samples pairs from the model, labels them, writes them and the held-out prompts."""
    labelled = sample_pairs(model, tokenizer, seed=seed + 2, count=PAIRS)
    write_pairs(out / "pairs.jsonl.gz", labelled.pairs)
    prompts = held_out_prompts(seed=seed + 3, count=PROMPTS)
    lines = "".join(json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts)
    (out / "prompts.jsonl").write_bytes(lines.encode())
    print(f"pairs                      {len(labelled.pairs)}")
    print(f"labels against gold reward {labelled.noisy_share:.3f}")
    print(f"mean gold reward of tiny   {labelled.mean_gold_reward:.3f}")


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    dialogues = itertools.islice(training_dialogues(seed), TOKENIZER_TEXTS)
    return train_tokenizer(each.prompt + each.response for each in dialogues)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Trains `tiny` and prints how well it does on prompts that it never saw."""
    model = new_model(tokenizer)
    started = time.monotonic()
    train_loss = train(model, tokenizer, seed + 1, Recipe())
    took = time.monotonic() - started
    held_out = list(itertools.islice(held_out_dialogues(seed + 4), 200))
    shuffled = [shuffle_words(each, number) for number, each in enumerate(held_out)]
    print(f"parameters                 {model.num_parameters():,}")
    print(f"pieces                     {len(tokenizer):,}")
    print(f"training, s                {took:.0f}")
    print(f"training loss, nats        {train_loss:.3f}")
    print(f"held-out response, nats    {response_nll(model, tokenizer, held_out):.3f}")
    print(f"  with words shuffled      {response_nll(model, tokenizer, shuffled):.3f}")
    return model


def shuffle_words(dialogue: Dialogue, seed: int) -> Dialogue:
    """The same words in another order: what a model that knows only frequencies cannot tell apart."""
    words = dialogue.response.split()
    random.Random(seed).shuffle(words)  # noqa: S311 - texts, not secrets
    return Dialogue(dialogue.prompt, " " + " ".join(words))


def save_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    # Ids only: how to sample is for whoever asks.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only


def differing_files(shipped: Path, fresh: Path) -> list[str]:
    """The names in FILES whose SHA-256 is not the same in both folders, or that one lacks."""
    return [name for name in FILES if _digest(shipped / name) != _digest(fresh / name)]


def check(shipped: Path, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        make_all(Path(folder), seed)
        differing = differing_files(shipped, Path(folder))
    for name in differing:
        print(f"differs: {name}", file=sys.stderr)
    return 1 if differing else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to, or to check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="build aside and compare; 1 if a file differs")
    parser.add_argument("--data", action="store_true", help="pairs and prompts alone, by the model in --out")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.out, arguments.seed)
    if arguments.data:
        logging.disable_progress_bar()
        torch.set_num_threads(THREADS)
        folder = arguments.out / "tiny"
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        write_data(arguments.out, LlamaForCausalLM.from_pretrained(folder), tokenizer, arguments.seed)
        return 0
    make_all(arguments.out, arguments.seed)
    return 0


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
