"""`lethe tenants`: who shares this service: make, list."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

from pathlib import Path
from typing import Annotated

import typer

from app.commands._shared import StateDir, console, explained_errors
from app.commands.keys import sessions_of

tenants = typer.Typer(
    help="Who shares this service without knowing of each other.", no_args_is_help=True
)


@tenants.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="What operators call it: a-z, 0-9 and '-'.")],
    *,
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Add a tenant. Upgrade every process of the service before there is a second one."""
    from app.auth import COMMAND_LINE
    from app.tenants import service

    with explained_errors(), sessions_of(state_dir) as sessions, sessions.begin() as session:
        tenant = service.create(session, name, actor=COMMAND_LINE)
    console.print(f"Tenant {tenant.name} is {tenant.id}.", markup=False)
    console.print(
        f"Make it a key: `lethe api-keys create NAME --tenant {tenant.name} --scope admin`.",
        markup=False,
    )


@tenants.command("list")
def list_tenants(*, state_dir: StateDir = Path(".lethe")) -> None:
    """Show the tenants, the first made first."""
    from app.tenants import service

    with explained_errors(), sessions_of(state_dir) as sessions, sessions() as session:
        found = service.all_tenants(session)
    for tenant in found:
        console.print(
            f"{tenant.id}  since {tenant.created_at:%Y-%m-%d %H:%M}  {tenant.name}", markup=False
        )
