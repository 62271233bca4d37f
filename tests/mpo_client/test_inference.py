"""Asking and comparing models, with the real sampler's loop behind the service."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.bootstrap import register_model
from core.database import open_transaction
from mpo_client import errors
from mpo_client.client import Client
from tests.app.comparisons.test_routes import perform
from tests.mpo_client.conftest import Mpo
from tests.sampler import running_sampler, write_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def sampling(sdk: Client, folders: Any) -> Iterator[Client]:
    with open_transaction() as tx:
        for name in ("plain", "chatty", "scorer"):
            register_model(tx, getattr(folders, name), name=name)
    with running_sampler():
        yield sdk


def test_models_are_asked(sampling: Client) -> None:
    asked = {"model": "plain", "prompt": ["red ", "blue"], "n": 2, "seed": 3, "max_tokens": 5}
    found = sampling.inference.complete(**asked)  # type: ignore[arg-type]
    assert len(found.choices) == 4
    again = sampling.inference.complete(**asked)  # type: ignore[arg-type]
    assert [choice.text for choice in again.choices] == [choice.text for choice in found.choices]
    turns = [{"role": "user", "content": "red"}]
    assert sampling.inference.chat(model="chatty", messages=turns, max_tokens=3).choices[0].message.content
    items = [{"prompt": "red ", "response": "cat"}, {"prompt": "red ", "response": "bird"}]
    assert len(sampling.inference.rewards(model="scorer", items=items)) == 2  # type: ignore[arg-type]
    tokens = sampling.inference.tokenize(model="plain", text="red cat")
    assert sampling.inference.detokenize(model="plain", token_ids=tokens.token_ids) == "red cat"
    with pytest.raises(errors.NotFound):
        sampling.inference.complete(model="none", prompt="x")


def test_the_command_samples_and_compares(sampling: Client, at_service: Mpo, elsewhere: Path) -> None:
    said = at_service("sample", "plain", "red ", "--seed", "1", "--max-tokens", "4")
    assert said.exit_code == 0, said.output
    assert said.stdout.strip()
    (elsewhere / "prompts.jsonl").write_text('{"prompt": "red "}\n\nblue cat \n')

    def work() -> None:
        while not (found := list(sampling.comparisons.list())):
            time.sleep(0.05)
        perform(str(found[0].model_dump()["run_id"]))

    worker = threading.Thread(target=work)
    worker.start()
    shown = at_service(
        *("compare", "plain", "chatty", "--prompts", "prompts.jsonl", "--scorer", "scorer"),
        *("--max-tokens", "4", "--save", "rows.csv"),
    )
    worker.join()
    assert shown.exit_code == 0, shown.output
    assert "won/lost/tied" in shown.stdout
    assert (elsewhere / "rows.csv").read_text().startswith("index,prompt,model")
    (made,) = sampling.comparisons.list()
    assert [row.prompt for row in sampling.comparisons.rows(made.id)] == ["red ", "blue cat "]
    assert sampling.comparisons.wait(made.id, deadline_seconds=5).status == "succeeded"


def test_people_vote_blind_and_their_votes_become_a_dataset(sampling: Client, tmp_path: Path) -> None:
    made = sampling.comparisons.create(
        models=["plain", "chatty"], prompts=["red ", "blue cat "], max_tokens=6, seed=1, blind=True
    )
    perform(str(made.model_dump()["run_id"]))
    assert {r.model for row in sampling.comparisons.get(made.id).rows for r in row.responses} == {None}
    shown = sampling.comparisons.vote(made.id, row=1, preferred="B", annotator="ann")
    assert {r.model for r in shown.responses} == {"plain", "chatty"}
    assert [(vote.annotator, vote.preferred) for vote in shown.votes] == [("ann", "B")]
    dataset = sampling.comparisons.to_dataset(made.id)
    assert dataset.kind == "preference"
    sampling.comparisons.save_html(made.id, tmp_path / "page.html")
    assert "<h2>Side by side</h2>" in (tmp_path / "page.html").read_text()
    sampling.comparisons.save_json_lines(made.id, tmp_path / "rows.jsonl")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
