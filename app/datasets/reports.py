"""What a dataset's report says with regard to a model."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.service import not_validated
from app.models.queries import find_model_row
from app.models.token_lengths import sampled_rows, token_lengths
from core.errors import Unprocessable
from core.tables import BaseModelRow, Dataset
from mpo.errors import ChatTemplateRefused, NoChatTemplate, UnusableModel

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def base_of(session: Session, owner: str, name: str) -> BaseModelRow:
    """The base model that a model is or has come from, whose tokenizer it uses; raises Unprocessable."""
    found: str | None = name
    while found is not None:
        row = find_model_row(session, owner, found)
        if row is None:
            break
        if row.job is None:
            statement = select(BaseModelRow).where(
                BaseModelRow.name == row.id, BaseModelRow.deleted_at.is_(None)
            )
            return session.scalars(statement).one()
        found = row.base
    raise Unprocessable("There is no such model, or its base model is gone", loc=("query", "model"))


def in_tokens(dataset: Dataset, base: BaseModelRow) -> dict[str, object]:
    """The report's `tokens` and `sampled_rows`; raises NotValidated, Unprocessable."""
    import numpy as np

    if dataset.rows_location is None:
        raise not_validated(dataset)
    try:
        lengths = token_lengths(dataset, base)
    except (UnusableModel, NoChatTemplate, ChatTemplateRefused) as error:
        raise Unprocessable(error.detail, loc=("query", "model")) from error
    quantiles = {
        name: {
            f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(found, QUANTILES), strict=True)
        }
        for name, found in lengths.items()
    }
    return {"tokens": quantiles, "sampled_rows": sampled_rows(dataset).table.num_rows}
