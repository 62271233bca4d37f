"""Rows as an Arrow table or a pandas frame, where pyarrow or pandas is installed; neither is needed."""

import importlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from mpo_client.errors import Missing

if TYPE_CHECKING:
    import pandas
    import pyarrow

Rows = list[dict[str, JsonValue]]


def as_arrow(rows: Rows, columns: Sequence[str]) -> "pyarrow.Table":
    """A table of these columns, also where there is no row. Raises Missing."""
    pa = _imported("pyarrow", "an Arrow table")
    return pa.table({name: [row.get(name) for row in rows] for name in columns})


def as_pandas(rows: Rows, columns: Sequence[str]) -> "pandas.DataFrame":
    """A frame of these columns, also where there is no row. Raises Missing."""
    pd = _imported("pandas", "a pandas frame")
    return pd.DataFrame(rows, columns=list(columns))


def as_text(content: JsonValue) -> JsonValue:
    """A column has one type: of prompts and responses, conversations become JSON text."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _imported(package: str, what: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise Missing(package, what) from error
