"""Lengths of a dataset's rows in a model's tokens, on a sample: counted once for a dataset and a model."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from core.storage import storage
from core.tables import BaseModelRow, Dataset

if TYPE_CHECKING:
    from mpo.token_counts import Integers, SampledRows


def sampled_rows(dataset: Dataset) -> "SampledRows":
    """Evenly spaced rows of a dataset that is ready."""
    assert dataset.rows_location is not None, "a dataset that is ready has rows"
    return _sampled(dataset.rows_location)


def token_lengths(dataset: Dataset, base: BaseModelRow) -> "Mapping[str, Integers]":
    """Tokens of each of the `sampled_rows` by column, before anything is cut, in a base model's tokens.

    Raises UnusableModel, NoChatTemplate, ChatTemplateRefused.
    """
    assert dataset.rows_location is not None, "a dataset that is ready has rows"
    return _lengths(dataset.rows_location, base.path, base.sha256)


# A location's content never changes. Imported late: the server starts without pyarrow and tokenizers.
@lru_cache(maxsize=16)
def _sampled(location: str) -> "SampledRows":
    from mpo.token_counts import sample_rows

    with storage().open_read(location) as file:
        return sample_rows(file)


@lru_cache(maxsize=256)
def _lengths(location: str, folder: str, _sha256: str) -> "Mapping[str, Integers]":
    from mpo.token_counts import count_tokens

    return count_tokens(_sampled(location), Path(folder))
