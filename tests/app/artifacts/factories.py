"""A job whose pairs are scored, by artifacts that are published as a worker publishes them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.storage import storage
from core.work_items import ClaimedRun
from mpo.config import SplitStage
from mpo.records import GROUP_FIELD, PAIR_SCHEMA
from mpo.reporter import SilentReporter, StageInput, StageTask
from mpo.split import split_by_gap
from tests.app.jobs.factories import pairs, publish, publish_folder, work_until

SCORES = {"weak": False, "scored_by": "cross_fit"}


def parquet(table: pa.Table) -> bytes:
    """A table as a file's bytes."""
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def train_file(count: int) -> bytes:
    """What hold_out leaves for training."""
    rows = [{**vars_of(pair), "form": "text", "group": place} for place, pair in enumerate(pairs(count))]
    return parquet(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA.append(GROUP_FIELD)))


def vars_of(pair: Any) -> dict[str, Any]:
    return {name: getattr(pair, name) for name in pair.__slots__}


def scores_file(gaps: list[float]) -> bytes:
    """What score leaves: the rejected response's reward is 0.25."""
    columns = {
        "id": [str(place) for place in range(len(gaps))],
        "reward_chosen": np.asarray(gaps) + 0.25,
        "reward_rejected": np.full(len(gaps), 0.25),
        "gap": gaps,
        "fold": [place % 3 + 1 for place in range(len(gaps))],
        "tokens": [10 + place for place in range(len(gaps))],
    }
    return parquet(pa.table(columns))


def score(gaps: list[float]) -> None:
    """Work until the pairs are scored with these gaps; the split is left queued."""
    hold_out = work_until("hold_out")
    assert hold_out is not None
    publish(hold_out, {"train": train_file(len(gaps))}, {"pairs": len(gaps)})
    scored = work_until("score")
    assert scored is not None
    publish(scored, {"scores": scores_file(gaps)}, SCORES)


def split(folder: Path) -> ClaimedRun:
    """Run the real split, and publish what it leaves."""
    claimed = work_until("split")
    assert claimed is not None
    output = folder / claimed.id
    output.mkdir()
    inputs = {}
    for role, sources in claimed.inputs.items():
        path = storage().local_path(sources[0]["location"])
        assert path is not None
        inputs[role] = (StageInput(sources[0]["name"], path),)
    task = StageTask(SplitStage.model_validate(claimed.config), inputs, output, claimed.seed)
    split_by_gap(task, SilentReporter())
    publish_folder(claimed, output)
    return claimed
