"""The sampler as its clients see it: real streams, real loop, tiny models."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.sampling import (
    REPLIES,
    REQUESTS,
    DetokenizeRequest,
    Message,
    ModelFiles,
    SampleParts,
    SampleReply,
    SampleRequest,
    SamplerRefused,
    ScoreItem,
    ScoreRequest,
    TokenizeRequest,
    envelope,
)
from mpo.policies import load_reward_model
from mpo.reward_model.score import score_responses
from mpo.tokenization import encode_prompt, encode_response
from tests.sampler import TinyModels, connect, files_of, sampler_without_database, write_models
from workers.sampler_client import SamplerClient

PROMPTS = ["red cat 1: ", "blue", "green bird sleeps dog runs: "]
GONE = ModelFiles(name="gone", location="file:///nowhere/gone", sha256="0")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sampler(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Without a database: a sampler needs none to answer."""
    with sampler_without_database(redis_url, tmp_path_factory.mktemp("sampler")):
        yield


@pytest.fixture
def ask(sampler: None) -> Iterator[Any]:
    with connect() as redis:
        redis.set("mpo:sampler:alive", "test", ex=60)
        yield SamplerClient(redis).ask


def request_of(models: TinyModels, **changes: Any) -> SampleRequest:
    fields = {"model": files_of(models.plain), "prompts": PROMPTS, "max_tokens": 12, "seed": 5, **changes}
    return SampleRequest.model_validate(fields)


def texts(reply: SampleReply) -> list[list[str]]:
    return [[sample.text for sample in result.samples] for result in reply.results]


def test_greedy_sampling_follows_the_model(ask: Any, models: TinyModels) -> None:
    model, tokenizer = (kind.from_pretrained(models.plain) for kind in (AutoModelForCausalLM, AutoTokenizer))
    reply = ask(request_of(models, temperature=0.0))
    for prompt, result in zip(PROMPTS, reply.results, strict=True):
        ids = list(tokenizer(prompt)["input_ids"])
        assert result.prompt_tokens == len(ids)
        for token_id in result.samples[0].token_ids:
            with torch.no_grad():
                assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token_id
            ids.append(token_id)


def test_a_seed_gives_the_same_text_whatever_else_is_asked(ask: Any, models: TinyModels) -> None:
    alone = texts(ask(request_of(models, n=3)))
    assert len({text for of_prompt in alone for text in of_prompt}) == 9

    def ask_apart(seed: int) -> SampleReply:
        with connect() as redis:
            prompts = PROMPTS if seed == 5 else [f"{seed} {'dog ' * seed}"]
            return SamplerClient(redis).ask(request_of(models, n=3, seed=seed, prompts=prompts))

    with ThreadPoolExecutor(9) as pool:
        replies = dict(zip([*range(1, 9), 5], pool.map(ask_apart, [*range(1, 9), 5]), strict=True))
    assert texts(replies[5]) == alone
    # Fewer tokens are the beginning of more.
    short = ask(request_of(models, n=3, max_tokens=4))
    long = ask(request_of(models, n=3))
    for few, many in zip(short.results, long.results, strict=True):
        assert [s.token_ids for s in few.samples] == [s.token_ids[:4] for s in many.samples]


def test_without_a_seed_texts_differ(ask: Any, models: TinyModels) -> None:
    first, second = (texts(ask(request_of(models, seed=None))) for _ in range(2))
    assert first != second


def test_text_ends_before_a_stop_string(ask: Any, models: TinyModels) -> None:
    whole = ask(request_of(models, max_tokens=24)).results[0].samples[0]
    stop = whole.text[6:9]
    cut = ask(request_of(models, max_tokens=24, stop=["never there", stop], logprobs=0)).results[0].samples[0]
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert len(cut.token_ids) < len(whole.token_ids)
    assert len(cut.tokens) == len(cut.token_logprobs) <= len(cut.token_ids)


def test_echo_scores_the_prompt_as_the_model_does(ask: Any, models: TinyModels) -> None:
    model, tokenizer = (kind.from_pretrained(models.plain) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    request = request_of(models, prompts=ids, echo=True, max_tokens=1, logprobs=1, temperature=0.0)
    for prompt, prompt_ids, result in zip(PROMPTS, ids, ask(request).results, strict=True):
        sample = result.samples[0]
        assert sample.text.startswith(prompt)
        assert len(sample.tokens) == len(prompt_ids) + 1
        assert sample.token_logprobs[0] is None
        assert sample.top_logprobs[0] is None
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids])).logits[0, :-1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(prompt_ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.token_logprobs[1:-1]), expected)
        places = zip(sample.tokens, sample.token_logprobs, sample.top_logprobs, strict=True)
        for token, logprob, top in list(places)[1:]:
            assert top[token] == logprob <= max(top.values())
        # Drawn as the likeliest: so it is its place's maximum, to the bit.
        assert sample.token_logprobs[-1] == max(sample.top_logprobs[-1].values())


def test_echo_of_nothing_new_returns_the_prompt(ask: Any, models: TinyModels) -> None:
    sample = ask(request_of(models, echo=True, max_tokens=0, logprobs=2)).results[1].samples[0]
    assert (sample.text, sample.token_ids, sample.finish_reason) == ("blue", [], "length")
    assert "".join(sample.tokens[1:]) == "blue"
    assert sample.text_offset[:2] == [0, 0]


def test_messages_go_through_the_chat_template(ask: Any, models: TinyModels) -> None:
    chat = [Message(role="user", content="red cat")]
    rendered = ask(request_of(models, model=files_of(models.chatty), prompts=[chat]))
    as_ids = AutoTokenizer.from_pretrained(models.chatty)(
        "<s>user: red cat\nassistant: ", add_special_tokens=False
    )
    same = ask(request_of(models, model=files_of(models.chatty), prompts=[as_ids["input_ids"]]))
    assert rendered == same


def test_rewards_are_those_of_the_library(ask: Any, models: TinyModels) -> None:
    items = [
        ScoreItem(prompt="red: ", response=r, terminated=t)
        for r in ("cat", "dog runs")
        for t in (True, False)
    ]
    rewards = ask(ScoreRequest(model=files_of(models.scorer), items=items)).rewards
    tokenizer, model = AutoTokenizer.from_pretrained(models.scorer), load_reward_model(models.scorer)
    prompts = [encode_prompt(str(i.prompt), tokenizer, None) for i in items]
    responses = [encode_response(str(i.response), tokenizer, None, i.terminated) for i in items]
    assert rewards == pytest.approx(score_responses(model, prompts, responses).tolist(), abs=1e-5)
    assert len({round(reward, 4) for reward in rewards}) == 4


def test_tokens_and_texts_are_inverse(ask: Any, models: TinyModels) -> None:
    files = files_of(models.plain)
    tokenized = ask(TokenizeRequest(model=files, text="red ünï 猫"))
    assert tokenized.tokens[0] == "<s>"
    assert ask(DetokenizeRequest(model=files, token_ids=tokenized.token_ids)).text == "red ünï 猫"
    bare = ask(TokenizeRequest(model=files, text="red", add_special_tokens=False))
    assert "<s>" not in bare.tokens


@pytest.mark.parametrize(
    ("changes", "code", "status"),
    [
        ({"prompts": ["red " * 500]}, "context_length_exceeded", 400),
        ({"prompts": [[Message(role="user", content="hi")]]}, "no_chat_template", 422),
        ({"prompts": [[1, 9_999]]}, "invalid_token_id", 422),
        ({"prompts": [[-1]]}, "invalid_token_id", 422),
        (
            {"model": ModelFiles(name="gone", location="file:///nowhere/gone", sha256="0")},
            "model_files_gone",
            404,
        ),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_sampler_lives(
    ask: Any, models: TinyModels, changes: dict[str, Any], code: str, status: int
) -> None:
    with pytest.raises(SamplerRefused) as refused:
        ask(request_of(models, **changes))
    assert (refused.value.code, refused.value.status) == (code, status)
    assert ask(request_of(models)).results


def test_models_of_the_wrong_kind_are_refused(ask: Any, models: TinyModels) -> None:
    wrong = [
        request_of(models, model=files_of(models.scorer)),
        ScoreRequest(model=files_of(models.plain), items=[ScoreItem(prompt="a", response="b")]),
    ]
    for request in wrong:
        with pytest.raises(SamplerRefused) as refused:
            ask(request)
        assert (refused.value.code, refused.value.status) == ("wrong_model_kind", 422)


def test_an_empty_prompt_begins_at_the_beginning(ask: Any, models: TinyModels) -> None:
    empty = ask(request_of(models, prompts=[""]))
    assert ask(request_of(models, prompts=[[1]])) == empty


def test_max_tokens_is_bounded_by_the_context(ask: Any, models: TinyModels) -> None:
    for max_tokens in (None, 5_000):
        result = ask(request_of(models, max_tokens=max_tokens, prompts=["red"])).results[0]
        sample = result.samples[0]
        assert sample.finish_reason == "stop" or result.prompt_tokens + len(sample.token_ids) == 64


def test_answered_requests_leave_the_queue(ask: Any, models: TinyModels) -> None:
    ask(request_of(models))
    with connect() as redis:
        assert redis.xlen(REQUESTS) == 0


def test_what_is_no_request_is_dropped(ask: Any, models: TinyModels) -> None:
    with connect() as redis:
        redis.xadd(REQUESTS, {"body": "{not json"})
        redis.xadd(REQUESTS, {"other": "field"})
        assert ask(request_of(models)).results
        assert redis.xlen(REQUESTS) == 0


def test_the_sampler_outlasts_redis_losing_its_data(ask: Any, models: TinyModels) -> None:
    with connect() as redis:
        redis.flushall()
        redis.set("mpo:sampler:alive", "test", ex=60)
    assert ask(request_of(models)).results


def test_the_cache_keeps_what_fits_and_drops_what_was_used_longest_ago(
    sampler: None, models: TinyModels, tmp_path: Path
) -> None:
    from core.storage import Storage
    from workers.sampling.model_cache import ModelCache

    size = sum(f.stat().st_size for f in models.plain.glob("*.safetensors"))
    cache = ModelCache(Storage(f"file://{tmp_path}"), int(2.5 * size), tmp_path)
    plain, chatty = files_of(models.plain), files_of(models.chatty)
    first = loaded(cache, plain, "policy")
    loaded(cache, chatty, "policy")
    assert cache.model(plain, "policy") is first
    loaded(cache, files_of(models.scorer), "reward_model")
    assert cache.held == [("policy", plain.sha256), ("reward_model", files_of(models.scorer).sha256)]


def test_greedy_texts_of_a_mixed_batch_are_those_of_generate(ask: Any, models: TinyModels) -> None:
    """64 requests at once, of other lengths, limits, stops and temperatures, the greedy ones compared."""
    model, tokenizer = (kind.from_pretrained(models.plain) for kind in (AutoModelForCausalLM, AutoTokenizer))
    asked = [
        request_of(
            models,
            prompts=[
                " ".join(["red cat", "blue", "green bird sleeps"][(i + j) % 3] for j in range(1 + i % 7))
            ],
            max_tokens=1 + (5 * i) % 31,
            temperature=0.0 if i % 4 else 1.0,
            stop=["zzz"] if i % 5 == 0 else [],
            seed=i,
        )
        for i in range(64)
    ]

    def ask_apart(request: SampleRequest) -> SampleReply:
        with connect() as redis:
            return SamplerClient(redis).ask(request)

    with ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(ask_apart, asked))
    for request, reply in zip(asked, replies, strict=True):
        sample = reply.results[0].samples[0]
        assert 1 <= len(sample.token_ids) <= (request.max_tokens or 0)
        if request.temperature == 0:
            ids = tokenizer(request.prompts[0], return_tensors="pt")
            whole = model.generate(**ids, max_new_tokens=request.max_tokens, do_sample=False)[0]
            assert sample.token_ids == whole[ids["input_ids"].shape[1] :].tolist()


def test_a_request_that_is_taken_back_leaves_the_batch(ask: Any, models: TinyModels) -> None:
    endless = request_of(models, max_tokens=None, prompts=["red "] * 8, n=16, stop=["\0"])
    with connect() as redis:
        asked = envelope(endless, "nobody")
        entry_id = redis.xadd(REQUESTS, {"body": asked.model_dump_json()})
        redis.xdel(REQUESTS, entry_id)
        # What is asked after it is answered, and nothing is said of what was taken back.
        assert ask(request_of(models)).results
        assert redis.xlen(asked.reply_to) == 0


def test_parts_come_before_the_reply_and_add_up_to_it(ask: Any, models: TinyModels) -> None:
    with connect() as redis:
        asked = envelope(request_of(models, max_tokens=40, n=24, stream=True, logprobs=1), "a-reader")
        redis.xadd(REQUESTS, {"body": asked.model_dump_json()})
        read: list[Any] = []
        after: Any = "0"
        while not read or isinstance(read[-1], SampleParts):
            for _, entries in redis.xread({asked.reply_to: after}, block=10_000):
                after = entries[-1][0]
                read += [REPLIES.validate_json(fields[b"body"]) for _, fields in entries]
    told: dict[int, str] = {}
    for parts in read[:-1]:
        for part in parts.parts:
            assert part.offset == len(told.get(part.index, ""))
            told[part.index] = told.get(part.index, "") + part.text
            assert len(part.tokens or []) == len(part.token_logprobs or [])
    whole = [sample for result in read[-1].results for sample in result.samples]
    assert len(read) > 2
    assert set(told) >= {index for index, sample in enumerate(whole) if len(sample.token_ids) > 20}
    assert all(whole[index].text.startswith(text) for index, text in told.items())


def test_a_model_that_is_too_large_is_refused_and_one_in_use_is_waited_for(
    sampler: None, models: TinyModels, tmp_path: Path
) -> None:
    from core.storage import Storage
    from workers.sampling.model_cache import ModelCache, NoRoom
    from workers.sampling.refusals import Refused

    size = sum(f.stat().st_size for f in models.plain.glob("*.safetensors"))
    plain, chatty = files_of(models.plain), files_of(models.chatty)
    small = ModelCache(Storage(f"file://{tmp_path}"), size // 2, tmp_path)
    with pytest.raises(Refused, match="MPO_SAMPLER_MEMORY_BYTES"):
        small.model(plain, "policy")
    cache = ModelCache(Storage(f"file://{tmp_path}"), int(1.5 * size), tmp_path, pinned=["chatty"])
    loaded(cache, plain, "policy")
    with pytest.raises(NoRoom):
        cache.model(chatty, "policy", in_use={plain.sha256})
    loaded(cache, chatty, "policy")
    assert cache.held == [("policy", chatty.sha256)]
    with pytest.raises(NoRoom):  # pinned
        cache.model(plain, "policy")
    assert cache.bytes <= 1.5 * size


def loaded(cache: Any, files: ModelFiles, kind: str) -> Any:
    """The model, once it is there."""
    from workers.sampling.model_cache import Loading

    deadline = time.monotonic() + 60
    while True:
        try:
            return cache.model(files, kind)
        except Loading:
            assert time.monotonic() < deadline
