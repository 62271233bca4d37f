"""Both sides of the sampling benchmark: transformers' `generate`, and this project's service over HTTP."""

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
import uvloop
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.http_load import Answer, run_load
from bench.load_stack import Stack

TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Work:
    """Prompts, and how many tokens each answer may have."""

    prompts: list[str]
    limits: list[int]

    def __len__(self) -> int:
        return len(self.prompts)

    def fresh(self, number: int) -> tuple[str, int]:
        """A prompt that has not come before, and its limit: what was read once helps nobody."""
        return f"{number}: {self.prompts[number % len(self)]}", self.limits[number % len(self)]


class Generate:
    """transformers' own way."""

    def __init__(self, folder: Path) -> None:
        self._numbers = itertools.count()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ends = self._model.generation_config.eos_token_id
        self._stops = {ends} if isinstance(ends, int) else set(ends or [])

    def text(self, prompt: str, limit: int) -> str:
        """One greedy answer."""
        return str(self._tokenizer.decode(self._answers([prompt], limit)[0], skip_special_tokens=True))

    def tokens_a_second(self, work: Work, at_once: int, seconds: float) -> float:
        """One batch after another; of each answer only the tokens that it may have count."""
        began, tokens = time.perf_counter(), 0
        while True:
            asked = [work.fresh(next(self._numbers)) for _ in range(at_once)]
            found = self._answers([prompt for prompt, _ in asked], max(limit for _, limit in asked))
            tokens += sum(min(len(ids), limit) for ids, (_, limit) in zip(found, asked, strict=True))
            if time.perf_counter() - began >= seconds:
                break
        return tokens / (time.perf_counter() - began)

    def _answers(self, prompts: Sequence[str], limit: int) -> list[list[int]]:
        batch = self._tokenizer(list(prompts), return_tensors="pt", padding=True)
        found = self._model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        return [self._until_its_end(row) for row in found[:, batch["input_ids"].shape[1] :].tolist()]

    def _until_its_end(self, ids: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(ids) if token in self._stops), len(ids) - 1)
        return ids[: end + 1]


class Service:
    """This project's, over HTTP."""

    def __init__(self, stack: Stack, model: str) -> None:
        self._stack, self._model = stack, model
        self._numbers = itertools.count()
        self._headers = {"Authorization": f"Bearer {stack.key}"}
        self._http = httpx.Client(headers=self._headers, timeout=TIMEOUT_SECONDS)

    def text(self, prompt: str, limit: int) -> str:
        """One greedy answer."""
        url, body = f"{self._stack.url}/v1/completions", self._body(prompt, limit)
        give_up = time.monotonic() + TIMEOUT_SECONDS
        while True:
            answer = self._http.post(url, json=body)
            # At first the sampler still starts, or loads the model.
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > give_up:
                return str(answer.raise_for_status().json()["choices"][0]["text"])
            time.sleep(float(answer.headers["Retry-After"]) / 4)

    def tokens_a_second(self, work: Work, at_once: int, seconds: float) -> float:
        """Closed loop: whoever has an answer asks for the next."""
        requests = (
            self._stack.request("POST", "/v1/completions", self._body(*work.fresh(number)))
            for number in self._numbers
        )
        tokens = 0

        def count(answer: Answer) -> None:
            nonlocal tokens
            assert answer.status == 200, answer.body
            tokens += int(json.loads(answer.body)["usage"]["completion_tokens"])

        url = urlsplit(self._stack.url)
        load = run_load(
            url.hostname or "", url.port or 0, requests, count, connections=at_once, seconds=seconds
        )
        measured = uvloop.run(load)
        return tokens / measured.wall_seconds

    def first_token_seconds(self, work: Work, at_once: int, requests: int) -> list[float]:
        """Of streams, from the request to the first words."""

        async def all_of_them() -> list[float]:
            places = iter(range(requests))
            async with httpx.AsyncClient(headers=self._headers, timeout=TIMEOUT_SECONDS) as client:

                async def reader() -> list[float]:
                    return [await self._first_token(client, work, place % len(work)) for place in places]

                found = await asyncio.gather(*(reader() for _ in range(at_once)))
            return [seconds for of_reader in found for seconds in of_reader]

        return uvloop.run(all_of_them())

    async def _first_token(self, client: httpx.AsyncClient, work: Work, place: int) -> float:
        body = self._body(work.prompts[place], work.limits[place], stream=True)
        began, first = time.perf_counter(), None
        async with client.stream("POST", f"{self._stack.url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if first is None and line.startswith("data: "):
                    first = time.perf_counter() - began
        assert first is not None
        return first

    def _body(self, prompt: str, limit: int, **more: object) -> dict[str, Any]:
        return {"model": self._model, "prompt": prompt, "max_tokens": limit, "temperature": 0, **more}
