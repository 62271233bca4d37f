"""`python -m core.bootstrap`: make the settings' admin key and base models known to the database."""

import argparse
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert as upsert

from core import queue
from core.api_keys import ALL_SCOPES, digest, visible_prefix
from core.database import Transaction, open_transaction
from core.errors import Unprocessable
from core.ids import new_id
from core.settings import settings
from core.states import RunState
from core.stored_files import folder_digest
from core.tables import ApiKey, BaseModelRow, Run

ADMIN = "admin"
DEFAULT_CONTEXT_TOKENS = 1024


def ensure_admin_key(tx: Transaction, secret: str) -> None:
    """Store the hash of the admin key, once."""
    row = {
        "id": new_id("api_key"),
        "owner": ADMIN,
        "name": "admin",
        "prefix": visible_prefix(secret),
        "secret_sha256": digest(secret),
        "scopes": list(ALL_SCOPES),
    }
    tx.session.execute(upsert(ApiKey).values(row).on_conflict_do_nothing())


def register_model(tx: Transaction, folder: Path, *, name: str, owner: str = ADMIN) -> BaseModelRow:
    """Make a folder in Hugging Face format a base model; raises Unprocessable where it is none."""
    config_file = folder / "config.json"
    if not config_file.is_file() or not list(folder.glob("*.safetensors")):
        raise Unprocessable(
            f"The folder of {name} needs config.json and safetensors weights", loc=("body", "path")
        )
    try:
        values = _described(folder, json.loads(config_file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Unprocessable(
            f"The configuration of {name} cannot be read: {type(error).__name__}", loc=("body", "path")
        ) from error
    values |= {"name": name, "owner": owner, "deleted_at": None}
    statement = upsert(BaseModelRow).values(values)
    tx.session.execute(statement.on_conflict_do_update(index_elements=[BaseModelRow.name], set_=values))
    return tx.session.get_one(BaseModelRow, name, populate_existing=True)


def _described(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    scores = any("SequenceClassification" in a for a in config.get("architectures") or [])
    return {
        "kind": "reward_model" if scores else "policy",
        "path": str(folder.resolve()),
        "sha256": folder_digest(folder),
        "context_tokens": int(config.get("max_position_embeddings") or DEFAULT_CONTEXT_TOKENS),
        "has_chat_template": _has_chat_template(folder),
    }


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    tokenizer = folder / "tokenizer_config.json"
    return tokenizer.is_file() and bool(json.loads(tokenizer.read_text()).get("chat_template"))


def end_leases(tx: Transaction) -> list[str]:
    """Queue again what is running, of a deployment of which no worker lives; returns the runs' ids.

    Said wrongly, it costs a repetition and no more: a worker that lives after all is shut out by its fence.
    """
    past = func.clock_timestamp() - timedelta(seconds=1)
    held = Run.state == RunState.RUNNING, Run.lease_until >= past
    tx.session.execute(update(Run).where(*held).values(lease_until=past))
    return queue.expire_leases(tx)


def main() -> int:
    """Register what the settings name; a folder that is no model is said and passed over."""
    parser = argparse.ArgumentParser(prog="python -m core.bootstrap", description=__doc__)
    parser.add_argument(
        "--nobody-works", action="store_true", help="no worker lives: what was running waits for no lease"
    )
    arguments = parser.parse_args()
    with open_transaction() as tx:
        if arguments.nobody_works:
            end_leases(tx)
        if (key := settings().admin_key) is not None:
            ensure_admin_key(tx, key.get_secret_value())
        for folder in settings().model_folders:
            try:
                register_model(tx, folder, name=folder.name)
            except Unprocessable as error:
                print(f"MPO_MODELS: {folder}: {error.detail}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
