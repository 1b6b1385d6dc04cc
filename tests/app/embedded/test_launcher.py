import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
import redis

from app.embedded import launcher
from app.embedded.launcher import EPHEMERAL, LauncherError, PostgresServer, ValkeyServer

REPOSITORY = Path(launcher.__file__).parents[2]


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="lethe-launcher-"))
    yield path
    shutil.rmtree(path)


def query(server, statement):
    url = f"postgresql://postgres@/postgres?host={server.sockets}"
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


def test_postgres_keeps_its_data_over_a_restart(folder):
    with PostgresServer(folder, EPHEMERAL) as server:
        query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    with PostgresServer(folder, EPHEMERAL) as server:
        assert query(server, "SELECT answer FROM kept") == [(42,)]


def test_a_stopped_server_leaves_no_process(folder):
    server = PostgresServer(folder, EPHEMERAL).start()
    pid = server.process.pid
    server.stop()
    assert not Path(f"/proc/{pid}").exists()


def test_databases_are_created_once_copied_and_dropped(folder):
    with PostgresServer(folder, EPHEMERAL) as server:
        server.create_database("original")
        server.create_database("original")
        server.create_database("copy", template="original")
        server.drop_database("original")
        names = {name for (name,) in query(server, "SELECT datname FROM pg_database")}
        assert "copy" in names
        assert "original" not in names


def test_only_the_owner_reaches_the_servers(folder):
    with PostgresServer(folder / "p", EPHEMERAL) as postgres, ValkeyServer(folder / "v") as valkey:
        for server in (postgres, valkey):
            assert server.sockets.stat().st_mode & 0o077 == 0
        assert query(postgres, "SHOW listen_addresses") == [("",)]
        with redis.Redis.from_url(valkey.url) as client:
            assert client.config_get("port") == {"port": "0"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_a_folder_too_deep_for_a_socket_still_works(folder):
    deep = folder.joinpath(*["a-rather-long-name"] * 6)
    with PostgresServer(deep / "p", EPHEMERAL) as postgres, ValkeyServer(deep / "v") as valkey:
        assert query(postgres, "SELECT 1") == [(1,)]
        with redis.Redis.from_url(valkey.url) as client:
            assert client.ping()
    for server in (postgres, valkey):
        assert server.sockets.parent == Path(tempfile.gettempdir())
        shutil.rmtree(server.sockets)


def test_postgres_starts_again_after_it_was_killed(folder):
    server = PostgresServer(folder, EPHEMERAL).start()
    os.kill(server.process.pid, signal.SIGKILL)
    server.stop()
    assert (folder / "data" / "postmaster.pid").exists()
    with server:
        assert query(server, "SELECT 1") == [(1,)]


def test_a_stale_lock_that_names_a_living_stranger_is_no_obstacle(folder):
    with PostgresServer(folder, EPHEMERAL) as server:
        lock = (folder / "data" / "postmaster.pid").read_text()
    stranger = os.getpid()
    lines = [str(stranger), *lock.splitlines()[1:]]
    (folder / "data" / "postmaster.pid").write_text("\n".join(lines) + "\n")
    with server:
        assert query(server, "SELECT 1") == [(1,)]


def test_an_interrupted_initdb_is_made_up_for(folder):
    half_made = folder / "data.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18")
    with PostgresServer(folder, EPHEMERAL) as server:
        assert query(server, "SELECT 1") == [(1,)]


def test_a_server_that_does_not_start_says_why(folder):
    with PostgresServer(folder, EPHEMERAL):
        pass
    with (folder / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(LauncherError, match="no_such_setting"):
        PostgresServer(folder, EPHEMERAL).start()


def test_without_the_wheels_the_systems_servers_are_used(folder, monkeypatch):
    wheel = launcher.find_postgres().parent
    valkey = launcher.find_valkey()
    (folder / "postgresql").mkdir()
    (folder / "postgresql" / "9.6").mkdir()
    (folder / "postgresql" / "18").symlink_to(wheel)
    (folder / "path").mkdir()
    (folder / "path" / "redis-server").symlink_to(valkey)
    monkeypatch.setattr(launcher, "_package_folder", lambda _name: None)
    monkeypatch.setattr(launcher, "SYSTEM_POSTGRES", folder / "postgresql")
    monkeypatch.setenv("PATH", str(folder / "path"))
    assert launcher.find_postgres() == folder / "postgresql" / "18" / "bin"
    assert launcher.find_valkey() == folder / "path" / "redis-server"
    with PostgresServer(folder / "p", EPHEMERAL) as server, ValkeyServer(folder / "v"):
        assert query(server, "SELECT 1") == [(1,)]


def test_without_any_server_the_message_names_both_remedies(folder, monkeypatch):
    monkeypatch.setattr(launcher, "_package_folder", lambda _name: None)
    monkeypatch.setattr(launcher, "SYSTEM_POSTGRES", folder)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(LauncherError, match=r"DATABASE_URL.*lethe\[embedded\]"):
        launcher.find_postgres()
    with pytest.raises(LauncherError, match=r"REDIS_URL.*lethe\[embedded\]"):
        launcher.find_valkey()


def test_a_folder_of_somebody_else_is_refused(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(LauncherError, match="belongs to another user"):
        launcher.private_folder(folder)


def _everyone_may_enter(path):
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as an ordinary user already")
@pytest.mark.skipif(
    not all(
        map(_everyone_may_enter, (Path(sys.executable), Path(psycopg.__file__), REPOSITORY / "app"))
    ),
    reason="the interpreter, its packages or the checkout are not readable for other users",
)
def test_an_ordinary_user_starts_the_servers_too(folder):
    nobody = 65534
    os.chown(folder, nobody, nobody)
    code = f"""
from pathlib import Path
from app.embedded.launcher import EPHEMERAL, PostgresServer, ValkeyServer
with PostgresServer(Path("{folder}/p"), EPHEMERAL) as postgres, ValkeyServer(Path("{folder}/v")):
    postgres.create_database("mine")
    print("both answer")
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        user=nobody,
        group=nobody,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "both answer\n", done.stderr


def test_children_die_with_a_killed_parent(folder):
    code = f"""
import time
from pathlib import Path
from app.embedded.launcher import Command
print(Command(("sleep", "600"), Path("{folder}/log")).start().pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline, f"process {child} outlived its parent"
        time.sleep(0.02)


def _runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_command_whose_parent_is_gone_already_does_not_start(folder):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    tether = Path(launcher.tether.__file__)
    started = subprocess.run(
        [sys.executable, tether, "SIGKILL", gone.stdout.strip(), "self", "touch", folder / "ran"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 1
    assert "is gone" in started.stderr
    assert not (folder / "ran").exists()


def test_whoever_is_interrupted_while_waiting_leaves_no_process(folder):
    def interrupt():
        raise KeyboardInterrupt

    process = launcher.Command(("sleep", "60"), folder / "log").start()
    with pytest.raises(KeyboardInterrupt):
        launcher.wait_until_ready(process, "sleep", interrupt)
    assert not process.alive


def test_a_process_that_ignores_its_stop_signal_is_killed(folder):
    code = "trap '' TERM; echo deaf; while true; do sleep 0.1; done"
    command = launcher.Command(("sh", "-c", code), folder / "log")
    process = command.start()
    launcher.wait_until_ready(process, "deaf", lambda: "deaf" in command.tail())
    process.stop(timeout=0.2)
    assert process.exit_status == -signal.SIGKILL
