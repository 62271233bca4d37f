"""Completions, rewards and tokens over HTTP, with the real sampler's loop behind them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from core.bootstrap import register_model
from core.database import open_transaction
from core.sampling import MAX_PENDING_REQUESTS, REQUESTS
from tests.sampler import connect, running_sampler, write_models

AS_JSON = {"Content-Type": "application/json"}
HALF = {"role": "user", "content": "\ud800"}
"""Half of a surrogate pair, which JSON can hold and UTF-8 cannot."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def registered(client: TestClient, folders: Any) -> TestClient:
    """The models are known; nobody samples."""
    with open_transaction() as tx:
        for name in ("plain", "chatty", "scorer"):
            register_model(tx, getattr(folders, name), name=name)
    return client


@pytest.fixture
def sampling(registered: TestClient) -> Iterator[TestClient]:
    with running_sampler():
        yield registered


def test_completions_have_openai_s_shape(sampling: TestClient) -> None:
    body = {"model": "plain", "prompt": ["red ", "blue"], "n": 2, "seed": 3, "user": "ignored", "stop": None}
    response = sampling.post("/v1/completions", json=body)
    assert response.status_code == 200
    found = response.json()
    assert found["object"] == "text_completion"
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert all(choice["finish_reason"] in ("stop", "length") for choice in found["choices"])
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] <= 4 * 16
    again = sampling.post("/v1/completions", json=body).json()
    assert [c["text"] for c in again["choices"]] == [c["text"] for c in found["choices"]]

    prompt_ids = sampling.post("/v1/tokenize", json={"model": "plain", "text": "red "}).json()["token_ids"]
    scored = {"model": "plain", "prompt": prompt_ids, "echo": True, "max_tokens": 1, "logprobs": 1}
    response = sampling.post("/v1/completions", json=scored)
    assert response.status_code == 200, response.text
    logprobs = response.json()["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == len(prompt_ids) + 1
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    places = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    assert all(top[token] == logprob for token, logprob, top in list(places)[1:])


def test_chat_completions_have_openai_s_shape(sampling: TestClient) -> None:
    content = [{"type": "text", "text": "red "}, {"type": "text", "text": "cat"}]
    body = {
        "model": "chatty",
        "messages": [{"role": "user", "content": content, "name": "ignored"}],
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 1,
    }
    found = sampling.post("/v1/chat/completions", json=body).json()
    choice = found["choices"][0]
    assert found["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["logprobs"]["content"]) == found["usage"]["completion_tokens"] <= 5
    assert all(len(place["top_logprobs"]) == 2 for place in choice["logprobs"]["content"])
    joined = body | {"messages": [{"role": "user", "content": "red cat"}]}
    same = sampling.post("/v1/chat/completions", json=joined).json()
    assert [c["message"] for c in same["choices"]] == [c["message"] for c in found["choices"]]


def test_rewards_and_texts(sampling: TestClient) -> None:
    items = [
        {"prompt": "red: ", "response": "cat"},
        {"prompt": "red: ", "response": "cat", "terminated": False},
    ]
    found = sampling.post("/v1/rewards", json={"model": "scorer", "items": items}).json()
    assert [reward["index"] for reward in found["data"]] == [0, 1]
    assert found["data"][0]["reward"] != found["data"][1]["reward"]
    tokens = sampling.post("/v1/tokenize", json={"model": "plain", "text": "red ünï"}).json()
    assert tokens["count"] == len(tokens["token_ids"]) == len(tokens["tokens"])
    body = {"model": "plain", "token_ids": tokens["token_ids"]}
    assert sampling.post("/v1/detokenize", json=body).json()["text"] == "red ünï"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("completions", {"model": "none", "prompt": "a"}, 404, "model_not_found", "model"),
        ("completions", {"model": "scorer", "prompt": "a"}, 422, "wrong_model_kind", "model"),
        ("completions", {"model": "plain", "prompt": "a " * 99}, 400, "context_length_exceeded", "prompt"),
        ("completions", {"model": "plain", "prompt": "a", "temperature": 3}, 422, None, "temperature"),
        ("completions", {"model": "plain", "prompt": ["a"] * 99, "n": 99}, 422, None, "prompt"),
        ("completions", {"model": "pl\0in", "prompt": "a"}, 422, None, "model"),
        ("completions", {"model": "plain", "prompt": "\ud800"}, 422, None, "prompt"),
        ("chat/completions", {"model": "chatty", "messages": [HALF]}, 422, None, "messages[0].content"),
        ("tokenize", {"model": "plain", "text": "\ud800"}, 422, None, "text"),
        ("tokenize", {"model": "chatty", "text": [HALF]}, 422, None, "text"),
        (
            "rewards",
            {"model": "scorer", "items": [{"prompt": "\ud800", "response": "b"}]},
            422,
            None,
            "items[0].prompt",
        ),
        (
            "chat/completions",
            {"model": "plain", "messages": [{"role": "user", "content": "a"}]},
            422,
            "no_chat_template",
            "model",
        ),
        ("rewards", {"model": "plain", "items": [{"prompt": "a", "response": "b"}]}, 422, None, "model"),
        ("detokenize", {"model": "plain", "token_ids": [99_999]}, 422, "invalid_token_id", "token_ids"),
    ],
)
def test_what_cannot_be_served_is_a_problem_that_names_the_field(
    sampling: TestClient, path: str, body: dict[str, Any], status: int, code: str | None, param: str
) -> None:
    response = sampling.post(f"/v1/{path}", content=json.dumps(body), headers=AS_JSON)
    assert response.status_code == status, response.text
    problem = response.json()
    assert problem["error"]["param"] == param
    assert problem["error"]["code"] == problem["code"]
    assert code in (None, problem["code"])


def test_without_a_sampler_the_client_may_try_again(registered: TestClient) -> None:
    response = registered.post("/v1/completions", json={"model": "plain", "prompt": "a"})
    assert (response.status_code, response.json()["code"]) == (503, "no_sampler")
    assert int(response.headers["Retry-After"]) <= 120


def test_a_full_queue_is_too_many_requests(registered: TestClient) -> None:
    with connect() as redis:
        redis.set("mpo:sampler:alive", "test", ex=60)
        pipe = redis.pipeline()
        for _ in range(MAX_PENDING_REQUESTS):
            pipe.xadd(REQUESTS, {"body": ""})
        pipe.execute()
    response = registered.post("/v1/completions", json={"model": "plain", "prompt": "a"})
    assert (response.status_code, response.json()["code"]) == (429, "sampler_busy")
    assert int(response.headers["Retry-After"]) >= 1


def test_a_sampler_that_goes_away_leaves_nobody_waiting(registered: TestClient) -> None:
    with connect() as redis:
        redis.set("mpo:sampler:alive", "test", px=500)
        response = registered.post("/v1/completions", json={"model": "plain", "prompt": "a"})
        assert (response.status_code, response.json()["code"]) == (503, "no_sampler")
        assert redis.xlen(REQUESTS) == 0


def test_another_owner_s_model_and_no_key_are_refused(sampling: TestClient, tmp_path: Path) -> None:
    body = {"model": "job_01:ppo", "prompt": "a"}
    assert sampling.post("/v1/completions", json=body).status_code == 404
    assert sampling.post("/v1/completions", json=body, headers={"Authorization": ""}).status_code == 401


def test_a_trainer_asks_for_rewards_in_its_own_words(sampling: TestClient) -> None:
    """As OpenRLHF does: no header of its own, the key in the address."""
    key = sampling.headers["Authorization"].removeprefix("Bearer ")
    texts = ["red cat", "red dog runs"]
    native = {
        "model": "scorer",
        "items": [{"prompt": "red ", "response": "cat"}, {"prompt": "red ", "response": "dog runs"}],
    }
    rewards = [entry["reward"] for entry in sampling.post("/v1/rewards", json=native).json()["data"]]

    def ask(body: dict[str, Any], **how: Any) -> Any:
        return sampling.post("/get_reward", params={"model": "scorer"}, json=body, **how)

    body = {"query": [texts[0], f"{texts[1]}</s>"], "prompts": ["red ", "red "], "labels": ["", ""]}
    del sampling.headers["Authorization"]
    answer = ask(body, auth=("key", key))
    assert answer.status_code == 200, answer.text
    assert answer.json()["rewards"] == pytest.approx(rewards, abs=1e-5)
    assert answer.json()["scores"] == answer.json()["rewards"]
    assert ask(body, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert len(ask({"query": "red cat"}, auth=(key, "")).json()["rewards"]) == 1
    assert ask({"query": texts, "prompts": ["red "]}, auth=("key", key)).status_code == 422
    for wrong in ({}, {"auth": ("key", "mpo_sk_wrong")}, {"headers": {"Authorization": "Basic ###"}}):
        assert ask(body, **wrong).status_code == 401
