"""`mpo keys`: create, delete."""

import time
from enum import StrEnum
from typing import Annotated

import typer

from mpo_client.cli.session import Session, connected
from mpo_client.operations import Scope

group = typer.Typer(help="Make and delete API keys (admin).", no_args_is_help=True)


class ScopeName(StrEnum):
    """What a key may do."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


SCOPES: dict[ScopeName, Scope] = {
    ScopeName.READ: "read",
    ScopeName.WRITE: "write",
    ScopeName.ADMIN: "admin",
}
_DAY_SECONDS = 86_400


@group.command()
@connected
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="For people.")] = "",
    scope: Annotated[
        list[ScopeName] | None, typer.Option(help="Repeatable; read and write where not given.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Whose objects it opens; yours where not given.")] = None,
    days: Annotated[float | None, typer.Option(min=0.001, help="It opens nothing after so many.")] = None,
) -> None:
    """Make an API key. It is printed once, and known nowhere else."""
    expires_at = None if days is None else int(time.time() + days * _DAY_SECONDS)
    scopes = [SCOPES[each] for each in scope] if scope else None
    made = session.client.keys.create(name=name, scopes=scopes, owner=owner, expires_at=expires_at)
    if session.screen.as_json:
        return session.screen.document(made)
    session.screen.show(made.key or "")
    return session.screen.note(
        f"{made.id} of {made.owner}: {', '.join(made.scopes)}; keep it, it is not shown again"
    )


@group.command()
@connected
def delete(session: Session, key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="key_…")]) -> None:
    """Make an API key useless."""
    gone = session.client.keys.delete(key_id)
    if session.screen.as_json:
        session.screen.document(gone)
    else:
        session.screen.note(f"deleted {gone.id}")
