"""`lethe api-keys`: what callers of the API hold: list, make, rotate, revoke."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

import datetime
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands._shared import StateDir, console, errors, explained_errors
from app.commands.keys import create_key, sessions_of

if TYPE_CHECKING:
    from app.api_keys.schemas import ApiKeyOut

api_keys = typer.Typer(help="Keys of the API's callers.", no_args_is_help=True)
api_keys.command("create")(create_key)

KeyId = Annotated[uuid.UUID, typer.Argument(help="The key's id, as `lethe api-keys list` shows.")]


@api_keys.command("list")
def list_api_keys(*, state_dir: StateDir = Path(".lethe")) -> None:
    """Show every API key, newest first: what it may do, when it ends, when it was last used."""
    from sqlalchemy import select

    from app.api_keys.schemas import ApiKeyOut
    from app.auth import ApiKey
    from app.evidence.repository import database_time
    from app.tenants.models import Tenant

    with explained_errors(), sessions_of(state_dir) as sessions, sessions() as session:
        now = database_time(session)
        owned = select(ApiKey, Tenant.name).join(Tenant, Tenant.id == ApiKey.tenant_id)
        found = [
            (ApiKeyOut.of(key, now), tenant)
            for key, tenant in session.execute(owned.order_by(ApiKey.id.desc()))
        ]
    for key, tenant in found:
        console.print(_line(key, tenant), markup=False)
    for key, _ in found:
        if key.expires_soon:
            errors.print(
                f"{key.id} ({key.name}) ends soon: `lethe api-keys rotate {key.id}`.", markup=False
            )


@api_keys.command("rotate")
def rotate_api_key(
    key_id: KeyId,
    *,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=2160, help="How long the old key works beside the new one.")
    ] = 24.0,
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Replace an API key and print its successor, once; both work until the overlap is over."""
    from app import auth

    overlap = datetime.timedelta(hours=overlap_hours)
    with explained_errors(), sessions_of(state_dir) as sessions, sessions.begin() as session:
        new, token = auth.rotate_key(session, key_id, overlap=overlap)
        old = auth.find_key(session, key_id)
    print(token)  # noqa: T201 - the key alone on standard output, so that a script can keep it
    errors.print(f"Keep it: it is not shown again. Its id is {new.id}.")
    errors.print(f"The old key ends at {old.expires_at:%Y-%m-%d %H:%M} UTC.")


@api_keys.command("revoke")
def revoke_api_key(key_id: KeyId, *, state_dir: StateDir = Path(".lethe")) -> None:
    """End an API key at once."""
    from app import auth

    with explained_errors(), sessions_of(state_dir) as sessions, sessions.begin() as session:
        key = auth.revoke_key(session, key_id)
    console.print(f"API key {key.id} ({key.name}) is revoked.", markup=False)


def _line(key: "ApiKeyOut", tenant: str) -> str:
    used = "never used" if key.last_used_at is None else f"used {key.last_used_at:%Y-%m-%d %H:%M}"
    ends = "no end" if key.expires_at is None else f"ends {key.expires_at:%Y-%m-%d %H:%M}"
    may = f"{','.join(key.scopes)}{'  whole log' if key.whole_log else ''}"
    return f"{key.id}  {key.state:<7}  {ends}  {used}  {tenant}  {may}  {key.name}"
