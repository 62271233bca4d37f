"""The token ids of a stage's pairs: made once for all stages that encode the same file in the same way."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from mpo.config import ScoreStage
from mpo.ragged_pairs import RaggedPairs, read_encodings, write_encodings
from mpo.ranks import ALONE, Ranks
from mpo.records import stream_pairs
from mpo.reporter import StageTask
from mpo.run_folders import file_digest
from mpo.token_cache import TokenCache, partial_file
from mpo.tokenization import Encoding, stream_encodings, terminator_id
from mpo.training_config import TrainingConfig

FORMAT = 1
"""Of the files: to be raised with any change to `mpo/tokenization.py` or `mpo/ragged_pairs.py` that changes
what is in them."""

UNREADABLE = (OSError, ValueError, pa.ArrowException)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What token ids are made of: a canonical file of pairs, a tokenizer, and limits in tokens, None = no
    limit."""

    data: Path
    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int | None
    max_response_tokens: int | None

    def key(self) -> str | None:
        """SHA-256, in hex, of all that the ids depend on; None where that of a tokenizer cannot be told."""
        tokenizer = tokenizer_facts(self.tokenizer)
        if tokenizer is None:
            return None
        facts = {
            "format": FORMAT,
            "data": file_digest(self.data),
            "tokenizer": tokenizer,
            "limits": [self.max_prompt_tokens, self.max_response_tokens],
            "libraries": [version(name) for name in ("transformers", "tokenizers", "jinja2")],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def encodings(self) -> Iterator[Encoding]:
        """The pairs as ids, in the file's order."""
        return stream_encodings(
            stream_pairs(self.data),
            self.tokenizer,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
        )


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, object] | None:
    """All of a loaded tokenizer that token ids depend on; None where it computes them in Python.

    Not its files: a reward model's may name another padding, and how some are read depends on config.json.
    """
    if not tokenizer.is_fast:
        return None
    backend, template = tokenizer.backend_tokenizer, json.dumps(tokenizer.chat_template)
    # Each call of the tokenizer sets these anew; before the first one they are the file's.
    backend.no_truncation()
    backend.no_padding()
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name in template}
    today = date.today().isoformat() if "strftime_now" in template else None
    return {
        "class": type(tokenizer).__name__,
        "backend": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        "split_special_tokens": tokenizer.split_special_tokens,
        "eos": tokenizer.eos_token_id,
        "terminator": terminator_id(tokenizer),
        "template": template,
        "named_tokens": named,
        "today": today,
    }


def stage_tokens(
    task: StageTask, role: str, tokenizer: PreTrainedTokenizerBase, ranks: Ranks = ALONE
) -> RaggedPairs:
    """All pairs of a role's file as token ids, in order, to the lengths of the task's configuration.

    Taken from the task's cache where another stage has made them; made and kept there where not, by rank 0
    alone. Raises NoChatTemplate, ChatTemplateRefused, UnusableModel.
    """
    config = task.config
    assert isinstance(config, TrainingConfig | ScoreStage)
    data = task.one(role).path
    recipe = Recipe(data, tokenizer, config.max_prompt_tokens, config.max_response_tokens)
    if task.tokens is not None and ranks.number > 0:
        ranks.gather_objects(None)
    pairs = encoded_pairs(recipe, task.tokens, task.output)
    if task.tokens is not None and ranks.number == 0:
        ranks.gather_objects(None)
    return pairs


def encoded_pairs(recipe: Recipe, cache: TokenCache | None, own: Path) -> RaggedPairs:
    """The pairs of a recipe: from the cache, or else made, and kept there if that can be.

    own: a folder that holds them where the cache does not; the file has no name there once it is whole.
    Where no disk takes them they are in memory.
    """
    key = recipe.key() if cache is not None else None
    if cache is None or key is None:
        return _made(recipe, None, "", own)
    try:
        cache.mark_used(key)
        return _mapped(cache.path(key), key)
    except FileNotFoundError:
        pass
    except UNREADABLE as error:
        logger.warning("token ids are made anew: %s: %s", type(error).__name__, error)
    return _made(recipe, cache, key, own)


def _made(recipe: Recipe, cache: TokenCache | None, key: str, own: Path) -> RaggedPairs:
    for folder in (cache.folder, own) if cache else (own,):
        try:
            with partial_file(folder) as partial:
                pairs = _written(recipe, key, partial)
                if cache is not None and folder == cache.folder:
                    _keep(cache, partial, key)
                return pairs
        except OSError as error:
            logger.warning("token ids cannot be written to %s: %s", folder.name, error)
    with pa.BufferOutputStream() as sink:
        write_encodings(sink, recipe.encodings(), key)
        return read_encodings(pa.BufferReader(sink.getvalue()), key)


def _written(recipe: Recipe, key: str, file: Path) -> RaggedPairs:
    with file.open("wb") as opened, pa.PythonFile(opened) as sink:
        write_encodings(sink, recipe.encodings(), key)
        opened.flush()
        os.fsync(opened.fileno())
    return _mapped(file, key)


def _keep(cache: TokenCache, partial: Path, key: str) -> None:
    """Where it cannot be kept, this stage has it mapped all the same."""
    try:
        cache.keep(partial, key)
    except OSError as error:
        logger.warning("token ids are not kept for other stages: %s", error)


def _mapped(path: Path, key: str) -> RaggedPairs:
    return read_encodings(pa.memory_map(str(path)), key)
