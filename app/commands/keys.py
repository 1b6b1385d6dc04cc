"""`lethe keys`: secrets of a deployment, the keys that sign, and API keys."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

import datetime
import enum
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands._shared import StateDir, console, database_url, errors, explained_errors

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from app.evidence.keys.rotation import Change, Custodian
    from app.evidence.keys.trust import PublishedKey

keys = typer.Typer(
    help="Secrets of a deployment, the keys that sign, and API keys.", no_args_is_help=True
)


class Role(enum.StrEnum):
    """What a signing key signs; as `KeyRole`, which would import the database for `--help`."""

    RECORDS = "records"
    CHECKPOINTS = "checkpoints"


NewKeyDir = Annotated[
    Path,
    typer.Option(
        "--directory", help="Where a new key is written if the old one is in the environment."
    ),
]


@keys.command("init")
def init_keys(
    *, directory: Annotated[Path, typer.Option(help="Where to write them.")] = Path("secrets")
) -> None:
    """Write a deployment's master key and its two signing keys. No file is ever replaced.

    The signing keys are encrypted, with KEY_PASSPHRASE_FILE or KEY_PASSPHRASE where one is set,
    else with a passphrase that is derived from the master key.
    """
    from app.embedded.keys import create_key_files
    from app.evidence.keys.keysources import chosen_passphrase
    from app.settings import PassphraseSettings

    with explained_errors():
        passphrase = chosen_passphrase(PassphraseSettings())
        files = create_key_files(directory, None if passphrase is None else passphrase[0])
    console.print(f"master key           {files.master_key}   (MASTER_KEY_FILE)")
    console.print(f"key for records      {files.signing_key}   (SIGNING_KEY_FILE)")
    console.print(f"key for checkpoints  {files.log_key}   (LOG_KEY_FILE)")
    console.print("Back them up, apart from the database: without the first, no artifact opens.")
    opened_with = "the master key" if passphrase is None else passphrase[1]
    console.print(f"The signing keys are encrypted and open with {opened_with} only.")


@keys.command("encrypt")
def encrypt_keys(*, state_dir: StateDir = Path(".lethe")) -> None:
    """Encrypt signing keys of earlier versions, which lie on the disk as they are."""
    with explained_errors(), _custodian(state_dir) as custodian:
        done = custodian.encrypt()
    for path in done:
        console.print(f"encrypted  {path}")
    if done:
        console.print("Backups of the files as they were are still worth protecting, or replacing:")
        console.print("`lethe keys rotate` makes a new key.")
    else:
        console.print("All key files are encrypted already.")


@keys.command("list")
def list_keys(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="As a file for `lethe verify --key`.")
    ] = False,
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Show the keys that sign records and checkpoints, and those that once did."""
    from app.evidence.keys import keyring

    with explained_errors(), sessions_of(state_dir) as sessions, sessions() as session:
        found = keyring.key_list(session)
    if as_json:
        print(found.model_dump_json(indent=2))  # noqa: T201 - a file, not for people
        return
    if not found.keys:
        errors.print("No key has signed anything yet: each introduces itself when it first signs.")
    for key in found.keys:
        console.print(_line(key), markup=False)


@keys.command("rotate")
def rotate_key(
    *,
    role: Annotated[Role, typer.Option(help="Which of the two keys to replace.")],
    overlap_days: Annotated[
        float, typer.Option(min=0, max=3650, help="Days for which the old key counts beside it.")
    ] = 7.0,
    directory: NewKeyDir = Path(),
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Replace a signing key. Services take up the new one without a restart.

    The old key endorses the new one, and the log says so. If this is interrupted, run it again: a
    new key that is published already is put in its place, and nothing else is done.
    """
    from app.evidence.models import KeyRole

    with explained_errors(), _custodian(state_dir, directory) as custodian:
        change = custodian.rotate(KeyRole(role), datetime.timedelta(days=overlap_days))
    _tell_of(change)
    console.print(
        "Give auditors the new key list: GET /v1/audit/keys, or `lethe keys list --json`."
    )


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Its id, or the first 8 digits or more.")],
    *,
    reason: Annotated[str, typer.Option(help="Why; the log says so in public.")] = "not stated",
    compromised: Annotated[
        bool,
        typer.Option(
            "--compromised",
            help="Others may have it, or it is lost: closes the log and opens another, with new"
            " keys.",
        ),
    ] = False,
    directory: NewKeyDir = Path(),
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """End a signing key: one that was replaced, or with --compromised any."""
    from app.evidence.keys import keyring

    if not compromised:
        with explained_errors(), sessions_of(state_dir) as sessions, sessions.begin() as session:
            key = keyring.revoke(session, keyring.find_key(session, key_id).id, reason)
        console.print(f"Key {key.id} is revoked; what it signed before stays verifiable.")
        return
    with explained_errors(), _custodian(state_dir, directory) as custodian:
        revocation = custodian.revoke_compromised(key_id, reason)
    console.print(f"Key {revocation.key_id} is published as compromised.")
    if revocation.new_origin is not None:
        console.print(
            f"The log was closed. The new one is {revocation.new_origin}; LOG_ORIGIN stays as it"
            " is.",
            markup=False,
        )
    for change in revocation.changes:
        _tell_of(change)
    for origin in revocation.unsigned:
        errors.print(
            f"No key of the closed log {origin} is at hand: records that no checkpoint covers yet"
            " cannot be delivered. Put the key back beside the others and run this again.",
            markup=False,
        )
    console.print(
        "Tell auditors by another way than this service, and give them the new key list"
        " (`lethe keys list --json`)."
    )


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    *,
    scope: Annotated[list[str], typer.Option(help="What it may do; may be given repeatedly.")],
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose models it opens.")] = "default",
    whole_log: Annotated[
        bool,
        typer.Option(
            "--whole-log", help="For auditors of the service: reads every tenant's log entries."
        ),
    ] = False,
    state_dir: StateDir = Path(".lethe"),
) -> None:
    """Make an API key and print it, once: only its hash is stored."""
    from app import auth
    from app.tenants import service as tenants

    with explained_errors():
        try:
            scopes = [auth.Scope(word) for word in scope]
        except ValueError as error:
            raise typer.BadParameter(
                f"{error}: choose from {', '.join(auth.Scope)}", param_hint="--scope"
            ) from error
        now = datetime.datetime.now(datetime.UTC)
        expires_at = None if days is None else now + datetime.timedelta(days=days)
        with sessions_of(state_dir) as sessions, sessions.begin() as session:
            _, token = auth.create_key(
                session,
                name=name,
                scopes=scopes,
                expires_at=expires_at,
                tenant_id=tenants.find(session, tenant).id,
                whole_log=whole_log,
            )
    # The key alone on standard output, so that a script can keep it.
    print(token)  # noqa: T201
    errors.print("Keep it: it is not shown again.")


@contextmanager
def sessions_of(state_dir: Path) -> Iterator["sessionmaker[Session]"]:
    """Give a command sessions of the database that is meant."""
    from app.db import make_engine, make_sessions

    engine = make_engine(database_url(state_dir))
    try:
        yield make_sessions(engine)
    finally:
        engine.dispose()


@contextmanager
def _custodian(state_dir: Path, directory: Path = Path()) -> Iterator["Custodian"]:
    """Give a command what changes the keys of the environment, or of the stack's folder."""
    from app.embedded.stack import key_settings
    from app.evidence.keys.rotation import Custodian

    settings = key_settings(state_dir)
    with sessions_of(state_dir) as sessions:
        yield Custodian(sessions, settings, directory)


def _tell_of(change: "Change") -> None:
    """Say where a new key is, and what is left to do."""
    from app.evidence.keys.keysources import SETTINGS

    setting = SETTINGS[change.role].value
    how = "an interrupted run had made it" if change.resumed else "new"
    console.print(f"key for {change.role}  {change.key_id}  ({how})")
    if change.installed:
        console.print(f"  in {change.path}; services take it up by themselves", markup=False)
        if change.kept is not None:
            console.print(
                f"  its predecessor is kept in {change.kept}; delete it when it has ended",
                markup=False,
            )
    else:
        console.print(f"  in {change.path}, encrypted as the old one", markup=False)
        console.print(
            f"  The old key is in the environment, which only you can change: set {setting} to the"
            " content of that file, restart API and workers, then store the file away safely.",
            markup=False,
        )


def _line(key: "PublishedKey") -> str:
    now = datetime.datetime.now(datetime.UTC)
    if key.compromised:
        state = "compromised"
    elif key.revoked_at is not None:
        state = f"revoked at {key.revoked_at:%Y-%m-%d %H:%M}"
    elif key.valid_until is None:
        state = "signs"
    elif key.valid_until > now:
        state = f"counts until {key.valid_until:%Y-%m-%d %H:%M}"
    else:
        state = f"ended at {key.valid_until:%Y-%m-%d %H:%M}"
    name = "" if key.origin is None else f"  {key.origin}"
    return f"{key.id[:16]}  {key.role:<11}  since {key.valid_from:%Y-%m-%d %H:%M}  {state}{name}"
