import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import mpo.stage_tokens
from mpo.config import DPOStage, RewardModelStage, ScoreStage, SFTStage, Stage
from mpo.dpo.train import train_dpo
from mpo.errors import NoChatTemplate
from mpo.policies import load_policy, load_reward_model
from mpo.ragged_pairs import RaggedPairs
from mpo.ranks import OneRank
from mpo.records import Message, PreferencePair, read_pairs, write_rows
from mpo.reward_model.score import score_pairs
from mpo.reward_model.train import train_reward_model
from mpo.sft.train import train_sft
from mpo.stage_tokens import Recipe, encoded_pairs, stage_tokens, tokenizer_facts
from mpo.token_cache import TokenCache
from mpo.tokenization import Encoding, encode_pairs, load_tokenizer, stream_encodings
from tests.mpo.test_tokenization import CHATML, byte_tokenizer
from tests.mpo.tiny import RecordingReporter, task_of, word_pairs, write_policy

LIMITS: dict[str, Any] = {"max_prompt_tokens": 12, "max_response_tokens": 6}
TRAINED = LIMITS | {"batch_pairs": 8, "max_steps": 2}
LARGE = 1 << 30


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_policy(folder / "model")
    pairs = [replace(pair, group=row // 4, gap=float(row)) for row, pair in enumerate(word_pairs(40))]
    write_rows(folder / "pairs.parquet", pairs)
    return folder


@pytest.fixture
def encoded_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each stage has tokenized that tokenized at all."""
    counted: list[int] = []

    def count(*given: Any, **options: Any) -> Iterator[Encoding]:
        counted.append(0)
        for each in stream_encodings(*given, **options):
            counted[-1] += 1
            yield each

    monkeypatch.setattr(mpo.stage_tokens, "stream_encodings", count)
    return counted


def recipe(base: Path) -> Recipe:
    return Recipe(base / "pairs.parquet", load_tokenizer(base / "model"), **LIMITS)


def expected(base: Path) -> list[Any]:
    tokenizer = load_tokenizer(base / "model")
    return encode_pairs(read_pairs(base / "pairs.parquet"), tokenizer, **LIMITS)[0]


def cache_in(folder: Path) -> TokenCache:
    return TokenCache(folder / "tokens", LARGE)


def files(cache: TokenCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def stages(base: Path, out: Path, cache: TokenCache | None) -> None:
    """SFT, both folds' reward models, the full one, scores, and DPO, on the same file."""
    data, model = base / "pairs.parquet", base / "model"

    def task(name: str, config: Stage, **inputs: Path | list[Path]) -> Any:
        return replace(task_of(config, out / name, inputs | {"data": data}), tokens=cache)

    for fold in (1, 2, None):
        config = RewardModelStage(fold=fold, folds=fold and 2, **TRAINED)
        train_reward_model(task(f"fold_{fold}", config, backbone=model, eval=data), RecordingReporter())
    models = [out / f"fold_{fold}" / "model" for fold in (1, 2)]
    score_pairs(task("score", ScoreStage(folds=2, **LIMITS), reward_models=models), RecordingReporter())
    train_sft(task("sft", SFTStage(**TRAINED), policy=model), RecordingReporter())
    dpo = DPOStage(curriculum=(20.0,), **TRAINED)
    train_dpo(task("dpo", dpo, policy=model, reference=model), RecordingReporter())


def test_stages_on_one_file_tokenize_once_and_come_to_the_same(
    base: Path, tmp_path: Path, encoded_rows: list[int]
) -> None:
    cache = cache_in(tmp_path)
    stages(base, tmp_path / "shared", cache)
    assert encoded_rows == [40]
    assert len(files(cache)) == 1
    stages(base, tmp_path / "alone", None)
    assert encoded_rows == [40] * (1 + 3 * 2 + 3)
    for name in ("fold_1", "fold_2", "fold_None", "score", "sft", "dpo"):
        ours, theirs = tmp_path / "shared" / name, tmp_path / "alone" / name
        assert (ours / "summary.json").read_bytes() == (theirs / "summary.json").read_bytes()
        assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
        if name != "score":
            load = load_policy if name in {"sft", "dpo"} else load_reward_model
            states = [load(folder / "model").state_dict() for folder in (ours, theirs)]
            assert all(torch.equal(weight, states[1][key]) for key, weight in states[0].items())
    scores = [pq.read_table(tmp_path / side / "score" / "scores.parquet") for side in ("shared", "alone")]
    assert scores[0].equals(scores[1])


def test_other_limits_other_rows_or_another_tokenizer_have_a_key_of_their_own(
    base: Path, tmp_path: Path
) -> None:
    first = recipe(base)
    write_rows(tmp_path / "other.parquet", word_pairs(39))
    recipes = [
        first,
        replace(first, max_prompt_tokens=11),
        replace(first, max_response_tokens=None),
        replace(first, data=tmp_path / "other.parquet"),
        replace(first, tokenizer=byte_tokenizer()),
        replace(first, tokenizer=byte_tokenizer("<s> $A </s>")),
        replace(first, tokenizer=byte_tokenizer(eos_token="<|end|>")),
        replace(first, tokenizer=byte_tokenizer(chat_template=CHATML)),
        replace(first, tokenizer=byte_tokenizer(chat_template=CHATML, bos_token="<|end|>")),
        replace(first, tokenizer=byte_tokenizer(split_special_tokens=True)),
    ]
    assert len({each.key() for each in recipes}) == len(recipes)
    assert recipe(base).key() == first.key()


def test_padding_is_no_part_of_a_key_and_neither_is_an_earlier_call() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    padded = byte_tokenizer(chat_template=CHATML, pad_token="<unk>")
    padded(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_facts(padded) == tokenizer_facts(tokenizer)


def test_a_template_that_tells_the_date_has_a_key_a_day() -> None:
    assert (tokenizer_facts(byte_tokenizer(chat_template=CHATML)) or {})["today"] is None
    dated = byte_tokenizer(chat_template=CHATML + "{% if false %}{{ strftime_now('%d') }}{% endif %}")
    assert (tokenizer_facts(dated) or {})["today"] is not None


def test_a_tokenizer_in_python_shares_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedTokenizerBase, "is_fast", False, raising=False)
    monkeypatch.setattr(type(recipe(base).tokenizer), "is_fast", False)
    found = encoded_pairs(recipe(base), cache_in(tmp_path), tmp_path)
    assert list(found) == expected(base)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_file_that_does_not_read_is_made_anew(
    damage: str, base: Path, tmp_path: Path, encoded_rows: list[int]
) -> None:
    cache = cache_in(tmp_path)
    encoded_pairs(recipe(base), cache, tmp_path)
    (file,) = files(cache)
    whole = file.read_bytes()
    other = replace(recipe(base), max_prompt_tokens=1)
    encoded_pairs(other, cache, tmp_path)
    (of_other,) = set(files(cache)) - {file}
    file.write_bytes({"cut": whole[:-9], "empty": b"", "other": of_other.read_bytes()}[damage])
    assert list(encoded_pairs(recipe(base), cache, tmp_path)) == expected(base)
    assert file.read_bytes() == whole
    assert encoded_rows == [40, 40, 40]


def test_two_writers_at_once_both_have_their_pairs(base: Path, tmp_path: Path) -> None:
    cache, met = cache_in(tmp_path), list[RaggedPairs]()

    class Slow(Recipe):
        def encodings(self) -> Iterator[Encoding]:
            found = super().encodings()
            yield next(found)
            met.append(encoded_pairs(recipe(base), cache, tmp_path))
            yield from found

    ours = recipe(base)
    first = encoded_pairs(Slow(ours.data, ours.tokenizer, **LIMITS), cache, tmp_path)
    assert list(first) == list(met[0]) == expected(base)
    assert len(files(cache)) == 1


def test_of_several_ranks_the_first_encodes_and_the_others_wait_for_it(
    base: Path, tmp_path: Path, encoded_rows: list[int]
) -> None:
    shared = task_of(RewardModelStage(**LIMITS), tmp_path / "out", {"data": base / "pairs.parquet"})
    shared, tokenizer = replace(shared, tokens=cache_in(tmp_path)), load_tokenizer(base / "model")
    first = list[RaggedPairs]()

    class Second(OneRank):
        def gather_objects(self, thing: Any) -> list[Any]:
            """Once the first rank has come to where it waits."""
            first.append(stage_tokens(shared, "data", tokenizer))
            return [None, thing]

    second = stage_tokens(shared, "data", tokenizer, Second(number=1, count=2))
    assert list(first[0]) == list(second) == expected(base)
    assert encoded_rows == [40]


def test_what_is_removed_while_it_is_read_stays_readable(base: Path, tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    first = encoded_pairs(recipe(base), cache, tmp_path)
    assert cache.drop_unused(-60) == 1
    assert list(first) == expected(base)


def test_a_folder_that_takes_no_file_costs_nothing_but_the_sharing(
    base: Path, tmp_path: Path, encoded_rows: list[int]
) -> None:
    (tmp_path / "file").touch()
    own = tmp_path / "own"
    cache = TokenCache(tmp_path / "file" / "tokens", LARGE)
    for _ in range(2):
        assert list(encoded_pairs(recipe(base), cache, own)) == expected(base)
    assert encoded_rows == [40, 40]
    assert list(own.iterdir()) == []


def test_a_full_disk_leaves_the_ids_in_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    cache, own = cache_in(tmp_path), tmp_path / "own"
    assert list(encoded_pairs(recipe(base), cache, own)) == expected(base)
    assert [files(cache), list(own.iterdir())] == [[], []]


def test_a_file_that_cannot_be_kept_is_encoded_once_all_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded_rows: list[int]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(TokenCache, "keep", refuse)
    assert list(encoded_pairs(recipe(base), cache_in(tmp_path), tmp_path)) == expected(base)
    assert encoded_rows == [40]
    assert files(cache_in(tmp_path)) == []


def test_a_cache_without_room_keeps_nothing(base: Path, tmp_path: Path) -> None:
    cache = TokenCache(tmp_path / "tokens", 0)
    assert list(encoded_pairs(recipe(base), cache, tmp_path)) == expected(base)
    assert files(cache) == []


def test_what_encoding_refuses_is_raised_and_leaves_no_file(base: Path, tmp_path: Path) -> None:
    said = [Message(role="user", content="a")], [Message(role="assistant", content="b")]
    write_rows(tmp_path / "chat.parquet", [PreferencePair("x", said[0], said[1], said[1])])
    chat = replace(recipe(base), data=tmp_path / "chat.parquet")
    with pytest.raises(NoChatTemplate):
        encoded_pairs(chat, cache_in(tmp_path), tmp_path)
    assert files(cache_in(tmp_path)) == []
