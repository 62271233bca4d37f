"""Models trained as adapters answer from one base in memory, and as their own merged weights would."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.sampling import ModelFiles, SampleReply, SampleRequest
from core.storage import Storage
from mpo.adapters import ADAPTER
from mpo.config import SFTStage
from mpo.sft.train import train_sft
from mpo.training_config import LoRAConfig
from tests.mpo.tiny import RecordingReporter, task_of, write_pairs, write_policy
from tests.sampler import connect, files_of, sampler_without_database
from tests.workers.test_sampler import loaded
from workers.sampler_client import SamplerClient
from workers.sampling.model_cache import ModelCache, NoRoom

TOKENS = 10
PROMPTS = ["red cat 1: ", "blue", "green bird sleeps dog runs: "]


@dataclass(frozen=True)
class House:
    """A base, and two models trained as adapters over it."""

    base: ModelFiles
    adapted: tuple[ModelFiles, ModelFiles]
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house")
    base = write_policy(folder / "base", seed=1, spread=0.3)
    pairs = write_pairs(folder / "pairs.parquet", 22)
    folders = {"base": base}
    for rank in (2, 4):
        lora = LoRAConfig(rank=rank, alpha=8)
        config = SFTStage(learning_rate=2e-2, epochs=2, batch_pairs=8, lora=lora)
        inputs = {"policy": base, "base": base, "data": pairs}
        train_sft(task_of(config, folder / f"rank{rank}", inputs), RecordingReporter())
        folders[f"rank{rank}"] = folder / f"rank{rank}" / "model"
    first, second = (over(files_of(folders[name]), files_of(base)) for name in ("rank2", "rank4"))
    return House(files_of(base), (first, second), {f"{files_of(f).sha256}": f for f in folders.values()})


def over(files: ModelFiles, base: ModelFiles | None) -> ModelFiles:
    return files.model_copy(update={"base": base})


@pytest.fixture(scope="module")
def ask(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sampler_without_database(redis_url, tmp_path_factory.mktemp("sampler")), connect() as redis:
        redis.set("mpo:sampler:alive", "test", ex=600)
        yield ask_once


def ask_once(request: SampleRequest) -> SampleReply:
    with connect() as redis:
        reply: SampleReply = SamplerClient(redis).ask(request)
        return reply


def request_of(files: ModelFiles, **changes: Any) -> SampleRequest:
    fields = {"model": files, "prompts": PROMPTS, "max_tokens": TOKENS, "temperature": 0.0, **changes}
    return SampleRequest.model_validate(fields)


@torch.no_grad()
def assert_likeliest(folder: Path, reply: SampleReply) -> None:
    """Every token is the merged model's likeliest, but for the rounding of weights that were added up."""
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    for prompt, result in zip(PROMPTS, reply.results, strict=True):
        before, drawn = list(tokenizer(prompt)["input_ids"]), result.samples[0].token_ids
        assert drawn
        logits = model(torch.tensor([before + drawn])).logits[0, len(before) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(drawn)[:, None])[:, 0]
        assert (logits.amax(dim=1) - chosen).max() < 1e-4


def test_models_of_one_base_answer_together_each_as_its_own_files_would(ask: Any, house: House) -> None:
    """Many requests at once for the base and both adapters."""
    asked = [files for _ in range(6) for files in (house.base, *house.adapted)]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(ask, [request_of(files) for files in asked]))
    for files, reply in zip(asked, replies, strict=True):
        assert_likeliest(house.folders[files.sha256], reply)
    assert len({str(reply) for reply in replies}) == 3, "each model writes what no other does"


def test_an_echo_is_scored_by_the_adapter(ask: Any, house: House) -> None:
    for files in (house.base, *house.adapted):
        model, tokenizer = (
            kind.from_pretrained(house.folders[files.sha256])
            for kind in (AutoModelForCausalLM, AutoTokenizer)
        )
        ids = list(tokenizer(PROMPTS[0])["input_ids"])
        request = request_of(files, prompts=[ids], echo=True, max_tokens=1, logprobs=1)
        found = ask(request).results[0].samples[0].token_logprobs[1 : len(ids)]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], dim=-1)
        expected = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=1e-4)


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def cache_of(budget: int, tmp_path: Path, **more: Any) -> ModelCache:
    return ModelCache(Storage(f"file://{tmp_path}"), budget, tmp_path, **more)


def test_adapters_take_their_own_bytes_alone(house: House, tmp_path: Path) -> None:
    whole = bytes_of(house.folders[house.base.sha256])
    cache = cache_of(10 * whole, tmp_path)
    first, second = (loaded(cache, files, "policy") for files in house.adapted)
    base = loaded(cache, house.base, "policy")
    assert first.model is second.model is base.model
    assert {first.network, second.network, base.network} == {house.base.sha256}
    for held, files in zip((first, second), house.adapted, strict=True):
        adapter = bytes_of(house.folders[files.sha256] / ADAPTER)
        assert held.bytes - held.voice.prefixes._budget <= adapter < whole / 2
    assert cache.bytes == first.bytes + second.bytes + base.bytes


def test_a_base_goes_with_its_adapters_and_stays_for_one_that_answers(house: House, tmp_path: Path) -> None:
    whole, other = bytes_of(house.folders[house.base.sha256]), write_policy(tmp_path / "other", seed=9)
    cache = cache_of(2 * whole, tmp_path)
    first = loaded(cache, house.adapted[0], "policy")
    with pytest.raises(NoRoom):
        cache.model(files_of(other), "policy", in_use={first.digest})
    assert first.network in {digest for _, digest in cache.held}
    loaded(cache, files_of(other), "policy")
    assert cache.held == [("policy", files_of(other).sha256)]
    assert cache.bytes <= 2 * whole


def test_an_adapter_that_goes_leaves_the_base(house: House, tmp_path: Path) -> None:
    ample = cache_of(10 * bytes_of(house.folders[house.base.sha256]), tmp_path)
    for files in house.adapted:
        loaded(ample, files, "policy")
    scarce = cache_of(ample.bytes - 1, tmp_path)
    first = loaded(scarce, house.adapted[0], "policy")
    second = loaded(scarce, house.adapted[1], "policy")
    assert second.model is first.model
    assert {digest for _, digest in scarce.held} == {second.network, second.digest}
    assert second.mixture._layers
    assert all(list(layer.adapters) == [second.digest] for layer in second.mixture._layers.values())


@pytest.mark.parametrize("why", ["another base", "no files", "no base named", "no room for both"])
def test_where_the_base_is_of_no_use_the_merged_weights_answer(
    house: House, tmp_path: Path, why: str
) -> None:
    files, whole = house.adapted[0], bytes_of(house.folders[house.base.sha256])
    base = {
        "another base": files_of(write_policy(tmp_path / "another", seed=9)),
        "no files": ModelFiles(name="gone", location="file:///nowhere/gone", sha256="0"),
        "no base named": None,
        "no room for both": house.base,
    }[why]
    budget = int(1.01 * whole) if why == "no room for both" else 10 * whole
    held = loaded(cache_of(budget, tmp_path), over(files, base), "policy")
    assert held.network == files.sha256
    assert held.voice.adapter is None
    ids = torch.tensor([[1, 5, 9, 20, 33]])
    with torch.no_grad(), held.alone():
        merged = AutoModelForCausalLM.from_pretrained(house.folders[files.sha256])(ids).logits
        torch.testing.assert_close(held.model(ids).logits, merged)
