"""What commands share: where they print, how errors are told, which database is meant."""
# ruff: noqa: PLC0415 - imports when a command runs: `lethe --help` stays quick

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from app.errors import AppError

if TYPE_CHECKING:
    from app.settings import Settings

EXIT_FAILED = 1  # what was asked for did not come about, or a record does not verify
EXIT_INTERRUPTED = 130  # as shells say it of Ctrl-C

# Paths and keys have to stay copyable: no colours inside them, no line breaks by the console.
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

StateDir = Annotated[
    Path, typer.Option(help="Folder of the service's keys, data and logs; survives restarts.")
]


def database_url(state_dir: Path) -> str:
    """Return DATABASE_URL, or the address of the database of the stack that runs here.

    Raises:
        LauncherError: There is neither.
    """
    from app.embedded.launcher import LauncherError
    from app.embedded.stack import Elsewhere, running_stack

    if (chosen := Elsewhere().database_url) is not None:
        return chosen
    if (stack := running_stack(state_dir)) is not None and stack.database_url is not None:
        return stack.database_url
    raise LauncherError(
        f"no database: DATABASE_URL is not set and no service runs on {state_dir};"
        " set it, or start one with `lethe up`"
    )


def service_settings(state_dir: Path) -> "Settings":
    """Return the settings of a service's processes: the environment's, or those of the stack here.

    Raises:
        LauncherError: No database is named and no service runs here.
        pydantic.ValidationError: A setting is missing or malformed.
    """
    from app.embedded.keys import KeyFiles
    from app.embedded.launcher import ValkeyServer
    from app.embedded.stack import Elsewhere, key_environment
    from app.settings import Settings

    chosen = Elsewhere()
    if chosen.database_url is not None:
        return Settings()
    folder = state_dir.absolute()
    own = {
        "database_url": database_url(state_dir),
        "redis_url": chosen.redis_url or ValkeyServer(folder / "valkey").url,
        "artifacts_url": chosen.artifacts_url or (folder / "artifacts").as_uri(),
    }
    keys = key_environment(chosen, KeyFiles.inside(folder / "keys"))
    return Settings.model_validate(own | {name.lower(): value for name, value in keys.items()})


@contextmanager
def explained_errors() -> Iterator[None]:
    """Turn errors that a user can do something about into sentences instead of tracebacks."""
    from pydantic import ValidationError

    from app.artifacts.keys import MasterKeyError
    from app.embedded.launcher import LauncherError
    from app.evidence.keys.signing import SigningKeyError

    try:
        yield
    except AppError as error:
        errors.print("[bold red]error:[/] ", end="")
        errors.print(f"{error.detail} {error.remedy}", markup=False)
        raise typer.Exit(EXIT_FAILED) from error
    except (LauncherError, FileExistsError, MasterKeyError, SigningKeyError) as error:
        errors.print("[bold red]error:[/] ", end="")
        errors.print(str(error), markup=False)
        raise typer.Exit(EXIT_FAILED) from error
    except ValidationError as error:
        # Without the values: settings hold passwords and keys.
        for problem in error.errors(include_url=False, include_input=False, include_context=False):
            errors.print("[bold red]error:[/] ", end="")
            place = ".".join(str(part) for part in problem["loc"])
            errors.print(f"{place}: {problem['msg']}" if place else problem["msg"], markup=False)
        raise typer.Exit(EXIT_FAILED) from error
