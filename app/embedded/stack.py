"""The whole service on one machine: servers, migrations, API and worker, started and kept up.

The state folder survives restarts; the processes do not survive this one. With DATABASE_URL or
REDIS_URL set, those servers are used instead of private ones.
"""

import dataclasses
import fcntl
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

import httpx
from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import SecretStr
from sqlalchemy.orm import Session

import migrations
from app import auth
from app.artifacts.keyfiles import write_secret_file
from app.artifacts.keys import MasterKey
from app.db import make_engine, make_sessions
from app.embedded.keys import KeyFiles, ensure_key_files
from app.embedded.launcher import (
    Command,
    LauncherError,
    PostgresServer,
    Process,
    ValkeyServer,
    private_folder,
    wait_until_ready,
)
from app.errors import AuthenticationError
from app.evidence.keys.keysources import chosen_passphrase, derived_passphrase
from app.jobs import QUEUE, broker_url
from app.settings import KeySettings, PassphraseSettings

logger = logging.getLogger(__name__)

DATABASE = "lethe"
POLL_SECONDS = 0.1
OWNER_BYTES = 2048
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
STABLE_SECONDS = 30.0  # a process that lived so long is restarted without a pause
WORKER_STOP_SECONDS = 15.0  # a longer job is taken up again after the next start


class Elsewhere(PassphraseSettings):
    """What an operator chose in the environment or `.env` instead of the state folder's parts."""

    database_url: str | None = None
    redis_url: str | None = None
    artifacts_url: str | None = None
    master_key_file: Path | None = None
    signing_key: SecretStr | None = None
    signing_key_file: Path | None = None
    log_key: SecretStr | None = None
    log_key_file: Path | None = None
    log_origin: str | None = None
    environment: str | None = None


def key_environment(chosen: Elsewhere, keys: KeyFiles) -> dict[str, str]:
    """Return the settings of a stack's secrets: its own files, but for what is chosen otherwise."""
    environment = {"MASTER_KEY_FILE": str(chosen.master_key_file or keys.master_key)}
    if chosen.signing_key is None:
        environment["SIGNING_KEY_FILE"] = str(chosen.signing_key_file or keys.signing_key)
    if chosen.log_key is None:
        environment["LOG_KEY_FILE"] = str(chosen.log_key_file or keys.log_key)
    return environment


def key_settings(state_dir: Path) -> KeySettings:
    """Return where the secrets are: what is chosen in the environment, else the state folder's."""
    chosen = Elsewhere()
    files = key_environment(chosen, KeyFiles.inside(state_dir.absolute() / "keys"))
    values = chosen.model_dump(exclude_none=True) | {
        name.lower(): value for name, value in files.items()
    }
    return KeySettings.model_validate(values)


class StackRunningError(LauncherError):
    """Another stack uses the state folder."""


@dataclass(slots=True)
class Part:
    """One process of the stack, and when to start it again."""

    name: str
    start: Callable[[], Process]
    process: Process
    stop_seconds: float
    started_at: float = field(default_factory=time.monotonic)
    retry_at: float | None = None
    pause: float = FIRST_PAUSE_SECONDS

    def keep_up(self) -> None:
        """Start it again if it has died, with growing pauses while it keeps dying."""
        now = time.monotonic()
        if self.process.alive:
            return
        if self.retry_at is None:
            if now - self.started_at > STABLE_SECONDS:
                self.pause = FIRST_PAUSE_SECONDS
            logger.warning(
                "%s ended with status %s; starting it again in %.1f s (its log: %s)",
                self.name,
                self.process.exit_status,
                self.pause,
                self.process.command.log,
            )
            self._postpone(now)
        elif now >= self.retry_at:
            try:
                self.process = self.start()
            except Exception:
                # No memory, no disk: that passes, and a supervisor that has died helps nobody.
                logger.exception("%s could not be started again", self.name)
                self._postpone(time.monotonic())
            else:
                self.started_at, self.retry_at = time.monotonic(), None

    def _postpone(self, now: float) -> None:
        self.retry_at = now + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE_SECONDS)


class Stack:
    """PostgreSQL, Valkey, API and worker, with their state in one folder.

    Example:
        with Stack(Path(".lethe")) as stack:
            httpx.get(f"{stack.url}/readyz")

    Attributes:
        url: Where the API answers.
        admin_key: An API key with every right.
        environment: The settings that API and worker run with.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int | None = None,
        *,
        host: str = "127.0.0.1",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a stack; nothing is started before it is entered.

        Args:
            state_dir: Where keys, data and logs live.
            port: Port of the API; any free one if None.
            host: Address that the API listens on.
            environment: Settings by their names in the environment; they win over it.
        """
        self.state_dir = state_dir.absolute()
        self._address = (host, port or 0)
        self._overrides = dict(environment or {})
        self.environment: dict[str, str] = {}
        self.url = ""
        self.admin_key = ""
        self.parts: dict[str, Part] = {}
        self._resources = ExitStack()
        self._stopping = threading.Event()
        # Restarts happen in one thread that lives as long as the stack: the kernel ties
        # processes to the *thread* that started them.
        self._supervisor = threading.Thread(target=self._supervise, name="lethe-supervisor")

    @property
    def admin_key_file(self) -> Path:
        """Where the admin key is kept."""
        return self.state_dir / "keys" / "admin.key"

    @property
    def log_dir(self) -> Path:
        """Where the API's and the worker's logs are."""
        return self.state_dir / "logs"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    def wait(self) -> None:
        """Block until Ctrl-C, SIGTERM or a closed terminal; call it from the main thread."""
        received: list[int] = []

        def note(signum: int, _frame: FrameType | None) -> None:
            received.append(signum)

        with _on_stop_signals(note):
            while not received:
                time.sleep(POLL_SECONDS)

    def _start(self) -> None:
        _require_worker_libraries()
        private_folder(self.state_dir)
        lock = self._resources.enter_context(_lock(self.state_dir))
        listener = self._resources.enter_context(closing(_listen(self._address)))
        host, port = listener.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self._resources.callback(self._stop)
        self.environment = self._prepare_environment()
        database_url = self.environment["DATABASE_URL"]
        _introduce(lock, RunningStack(os.getpid(), self.url, database_url))
        migrations.upgrade(database_url)
        self.admin_key = self._ensure_admin_key()
        self._start_processes(listener)
        self._supervisor.start()

    def _prepare_environment(self) -> dict[str, str]:
        """Start the servers that nobody else provides; return the settings of API and worker."""
        overrides = {name.lower(): value for name, value in self._overrides.items()}
        chosen = Elsewhere.model_validate(Elsewhere().model_dump() | overrides)
        keys = self._key_files(chosen)
        artifacts = private_folder(self.state_dir / "artifacts")
        return self._overrides | {
            "DATABASE_URL": chosen.database_url or self._start_postgres(),
            "REDIS_URL": chosen.redis_url or self._start_valkey(),
            "ARTIFACTS_URL": chosen.artifacts_url or artifacts.as_uri(),
            "ENVIRONMENT": chosen.environment or "development",
            **key_environment(chosen, keys),
        }

    def _key_files(self, chosen: Elsewhere) -> KeyFiles:
        passphrase = None
        if (found := chosen_passphrase(chosen)) is not None:
            passphrase, _ = found
        elif chosen.master_key_file is not None:
            passphrase = derived_passphrase(MasterKey.load(chosen.master_key_file))
        try:
            return ensure_key_files(self.state_dir / "keys", passphrase)
        except FileNotFoundError as error:
            raise LauncherError(str(error)) from error

    def _start_postgres(self) -> str:
        server = PostgresServer(self.state_dir / "postgres")
        self._add("PostgreSQL", server.launch)
        server.create_database(DATABASE)
        return server.url(DATABASE)

    def _start_valkey(self) -> str:
        server = ValkeyServer(self.state_dir / "valkey")
        self._add("Valkey", server.launch)
        return server.url

    def _start_processes(self, listener: socket.socket) -> None:
        """Start API and worker side by side, then wait for both."""
        name = f"lethe-{os.getpid()}@{socket.gethostname()}"
        descriptor = listener.fileno()
        api = self._add("API", self._api_command(descriptor).start)
        worker = self._add("worker", self._worker_command(name).start, WORKER_STOP_SECONDS)
        wait_until_ready(api.process, api.name, self._api_answers)
        broker = broker_url(self.environment["REDIS_URL"])
        with Celery(broker=broker, set_as_current=False) as client:
            wait_until_ready(worker.process, worker.name, lambda: _worker_answers(client, name))

    def _api_command(self, descriptor: int) -> Command:
        return Command(
            (sys.executable, "-m", "app.embedded.serve", str(descriptor)),
            log=self.log_dir / "api.log",
            environment=tuple(self.environment.items()),
            file_descriptors=(descriptor,),
        )

    def _worker_command(self, name: str) -> Command:
        options = ("--queues", QUEUE, "--concurrency", "1", "--hostname", name)
        return Command(
            (sys.executable, "-m", "celery", "--app", "worker.celery", "worker", *options),
            log=self.log_dir / "worker.log",
            environment=tuple(self.environment.items()),
        )

    def _add(self, name: str, start: Callable[[], Process], stop_seconds: float = 30.0) -> Part:
        part = Part(name, start, start(), stop_seconds)
        self.parts[name] = part
        return part

    def _api_answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/livez", timeout=1.0).is_success
        except httpx.TransportError:
            return False

    def _ensure_admin_key(self) -> str:
        """Return the admin key of earlier starts if this database knows it, else a new one."""
        with self._database() as session:
            if self.admin_key_file.is_file():
                token = self.admin_key_file.read_text().strip()
                try:
                    auth.authenticate(session, token)
                except AuthenticationError:
                    logger.warning("%s is not valid any more; made a new one", self.admin_key_file)
                else:
                    return token
            _, token = auth.create_key(session, name="admin", scopes=[auth.Scope.ADMIN])
        self.admin_key_file.unlink(missing_ok=True)
        write_secret_file(self.admin_key_file, f"{token}\n".encode())
        return token

    @contextmanager
    def _database(self) -> Iterator[Session]:
        engine = make_engine(self.environment["DATABASE_URL"])
        try:
            with make_sessions(engine).begin() as session:
                yield session
        finally:
            engine.dispose()

    def _supervise(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            for part in self.parts.values():
                part.keep_up()
        # In this thread, not after it: what it started again would be orphaned by its end.
        self._stop_parts()

    def _stop(self) -> None:
        self._stopping.set()
        if self._supervisor.ident is None:  # the start failed half-way
            self._stop_parts()
        else:
            self._supervisor.join()

    def _stop_parts(self) -> None:
        """Stop in the opposite order of the start: nobody loses a server that it still needs."""
        for name in ("API", "worker"):  # neither needs the other
            if name in self.parts:
                self.parts[name].process.ask_to_stop()
        for part in reversed(self.parts.values()):
            part.process.stop(part.stop_seconds)


@contextmanager
def unwinding_on_stop_signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal raise KeyboardInterrupt too: a start is then undone.

    Left alone they would end this process where it stands, and the others without their turn.
    """

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _on_stop_signals(interrupt):
        yield


@contextmanager
def _on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` asked for that
        signals.append(signal.SIGHUP)
    previous = [signal.signal(signum, handler) for signum in signals]
    try:
        yield
    finally:
        for signum, former in zip(signals, previous, strict=True):
            signal.signal(signum, former)


@dataclass(frozen=True, slots=True)
class RunningStack:
    """What a stack tells about itself in its lock file, as far as its start has come."""

    pid: int
    url: str | None = None
    database_url: str | None = None


def running_stack(state_dir: Path) -> RunningStack | None:
    """Return the stack that uses a state folder; None if there is none."""
    path = state_dir / "lock"
    if not path.exists():
        return None
    with path.open() as lock:
        while _is_locked(lock):
            if text := lock.read():
                return RunningStack(**json.loads(text))
            # The very first stack of this folder has the lock and is about to write.
            time.sleep(POLL_SECONDS)
    return None


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(lock, fcntl.LOCK_UN)
    return False


def stop_running_stack(state_dir: Path, timeout: float = 60.0) -> bool:
    """Stop the stack that uses a state folder; return whether there was one.

    Raises:
        LauncherError: It did not end in time.
    """
    owner = running_stack(state_dir)
    if owner is None:
        return False
    os.kill(owner.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while running_stack(state_dir) is not None:
        if time.monotonic() > deadline:
            raise LauncherError(f"process {owner.pid} did not stop in {timeout:.0f} s: kill it")
        time.sleep(POLL_SECONDS)
    return True


@contextmanager
def _lock(state_dir: Path) -> Iterator[IO[str]]:
    """Hold a state folder's lock. The kernel lets go of it whatever this process dies of."""
    path = state_dir / "lock"
    path.touch(mode=0o600)
    with path.open("r+") as lock:
        while not _take(lock):
            if (owner := running_stack(state_dir)) is not None:
                raise StackRunningError(
                    f"a service already runs on {state_dir} (process {owner.pid},"
                    f" {owner.url or 'starting'}): use that one, stop it with `lethe down`, or"
                    " choose another folder with --state-dir"
                )
            # Somebody only looked whether one runs, and has the lock for that moment.
            time.sleep(POLL_SECONDS)
        _introduce(lock, RunningStack(os.getpid()))
        yield lock


def _introduce(lock: IO[str], stack: RunningStack) -> None:
    # One write of always the same length: readers see the old text or the new one.
    text = json.dumps(dataclasses.asdict(stack)).ljust(OWNER_BYTES)
    os.pwrite(lock.fileno(), text.encode(), 0)


def _worker_answers(client: Celery, name: str) -> bool:
    try:
        return bool(client.control.ping([name], timeout=0.5))
    except OperationalError:
        return False


def _listen(address: tuple[str, int]) -> socket.socket:
    """Bind the API's socket.

    Raises:
        LauncherError: The port is taken, or the address is not this machine's.
    """
    try:
        return socket.create_server(address)
    except OSError as error:
        host, port = address
        raise LauncherError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port"
        ) from error


def _require_worker_libraries() -> None:
    """Notice missing extras before anything is started."""
    missing = [name for name in ("torch", "cvxpy") if importlib.util.find_spec(name) is None]
    if missing:
        raise LauncherError(
            f"the worker needs {' and '.join(missing)}: install it with"
            " `pip install 'lethe[worker,embedded]'`"
        )
