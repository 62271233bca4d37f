"""Tiny models and rows, made where a test asks for them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mpo.config import Stage
from mpo.policies import new_reward_model, save_model
from mpo.records import PreferencePair, write_rows
from mpo.reporter import StageInput, StageTask

SPECIAL = ["<pad>", "<s>", "</s>"]
PAD, BOS, EOS = range(3)
WORDS = ("red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps")


def word_pairs(count: int) -> list[PreferencePair]:
    """Pairs whose chosen response repeats the prompt's first word, and whose rejected one does not."""
    pairs = []
    for i in range(count):
        first, second = WORDS[i % len(WORDS)], WORDS[(i // len(WORDS) + 3) % len(WORDS)]
        prompt = f"{first} {second} {i // 16}: "
        pairs.append(PreferencePair(str(i), prompt, f"{first} {first}", f"{second} {WORDS[(i + 5) % 8]}"))
    return pairs


def write_lines(path: Path, count: int) -> Path:
    """`word_pairs` as JSON Lines, as a user has them; returns path."""
    names = ("id", "prompt", "chosen", "rejected")
    lines = [json.dumps({name: getattr(pair, name) for name in names}) for pair in word_pairs(count)]
    path.write_text("\n".join(lines))
    return path


def train_tokenizer(texts: list[str], vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that sets <s> before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def tiny_llama(vocabulary: int, seed: int = 0, spread: float = 0.1, context: int = 64) -> PreTrainedModel:
    """A random Llama with two layers of width 32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=spread,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


def write_policy(folder: Path, seed: int = 0, spread: float = 0.1) -> Path:
    """The folder of a random policy with its tokenizer."""
    pairs = word_pairs(64)
    tokenizer = train_tokenizer([f"{pair.prompt}{pair.chosen} {pair.rejected}" for pair in pairs])
    tiny_llama(len(tokenizer), seed, spread).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_reward_model(folder: Path, policy: Path, seed: int = 0) -> Path:
    """The folder of a random reward model on a policy's backbone."""
    model = new_reward_model(policy, seed)
    with torch.no_grad():
        model.score.weight *= 20
    save_model(model, policy, folder)
    return folder


def write_pairs(path: Path, count: int = 24) -> Path:
    """A canonical file of `word_pairs`."""
    write_rows(path, word_pairs(count))
    return path


def task_of(
    config: Stage,
    output: Path,
    inputs: Mapping[str, Path | list[Path]],
    seed: int = 0,
    resume: Path | None = None,
) -> StageTask:
    """A task whose inputs are named after their paths."""
    listed = {role: paths if isinstance(paths, list) else [paths] for role, paths in inputs.items()}
    output.mkdir(parents=True, exist_ok=True)
    named = {role: tuple(StageInput(path.name, path) for path in paths) for role, paths in listed.items()}
    return StageTask(config, named, output, seed, resume)


def untimed(metrics: Mapping[str, float]) -> dict[str, float]:
    """What two runs of the same have in common: all but how fast they were."""
    return {name: value for name, value in metrics.items() if not name.endswith("_per_second")}


class RecordingReporter:
    """Keeps what a stage reports. stop_after: asks the stage to stop after this step."""

    def __init__(self, kept: Path | None = None, stop_after: int | None = None) -> None:
        self.kept, self.stop_after = kept, stop_after
        self.steps: list[tuple[int, int, dict[str, float]]] = []
        self.warnings: list[str] = []
        self.checkpoints: list[int] = []

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """Kept in `steps`."""
        self.steps.append((step, total_steps, dict(metrics)))

    def warn(self, message: str) -> None:
        """Kept in `warnings`."""
        self.warnings.append(message)

    def checkpoint_due(self) -> bool:
        """Never by time."""
        return False

    def checkpoint(self, folder: Path, step: int) -> None:
        """Copied to `kept`, over what was there."""
        self.checkpoints.append(step)
        if self.kept is not None:
            self.kept.mkdir(exist_ok=True)
            for path in folder.iterdir():
                (self.kept / path.name).write_bytes(path.read_bytes())

    def should_stop(self) -> bool:
        """Whether `stop_after` steps have been reported."""
        return self.stop_after is not None and len(self.steps) >= self.stop_after
