"""What the sampler's memory does over 1,000 requests to five models of which two have room."""

import os
import random
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench.load_stack import running_stack
from bench.sampling_sides import Service

MODELS, ROOM, REQUESTS, WARM = 5, 2, 1_000, 100
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory_row(folder: Path, like: Path) -> list[str]:
    """A row of the table. like: whose tokenizer the models have."""
    folder.mkdir(parents=True)
    models = [write_model(folder / f"model-{number}", like, number) for number in range(MODELS)]
    size = sum(file.stat().st_size for file in models[0].glob("*.safetensors"))
    environment = {
        "MPO_MODELS": os.pathsep.join(map(str, models)),
        "MPO_SAMPLER_MEMORY_BYTES": str(int((ROOM + 0.5) * size)),
    }
    with running_stack(folder / "stack", **environment) as stack:
        pid = stack.processes()["sampler"]
        services, choice = [Service(stack, model.name) for model in models], random.Random(0)  # noqa: S311
        found = []
        for number in range(REQUESTS):
            choice.choice(services).text(f"{number} of {REQUESTS}: ", 4)
            found.append(_resident_bytes(pid))
    after_warm, highest, last = found[WARM], max(found[WARM:]), found[-1]
    models_said = f"{MODELS} models of {size / 1e6:.0f} MB, room for {ROOM}"
    what = f"MB of the sampler after {WARM} and {REQUESTS:,} requests to {models_said}"
    shown = f"{after_warm / 1e6:.0f}, {last / 1e6:.0f}; highest {highest / 1e6:.0f}"
    return [what, shown, "–", f"{last / after_warm:.2f}"]


def write_model(folder: Path, like: Path, seed: int, width: int = 512) -> Path:
    """A Llama of four layers and random weights. like: whose tokenizer it has; width: of hidden states."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(like)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=4,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("generation_config.json", "chat_template.jinja"):
        if (like / name).is_file():
            shutil.copyfile(like / name, folder / name)
    return folder


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
