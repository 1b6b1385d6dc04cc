import fcntl
import shutil
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from app.embedded import stack as stack_module
from app.embedded.launcher import Command, LauncherError, ValkeyServer
from app.embedded.stack import Part, Stack, running_stack, stop_running_stack


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="lethe-stack-"))
    yield path
    shutil.rmtree(path)


def who_answers(stack, key):
    return httpx.get(f"{stack.url}/v1/models", headers={"Authorization": f"Bearer {key}"})


@pytest.mark.slow
def test_servers_that_are_named_are_used_instead_of_own_ones(
    folder, fresh_database_url, empty_database_url
):
    with ValkeyServer(folder / "broker") as broker:
        elsewhere = {"DATABASE_URL": fresh_database_url, "REDIS_URL": broker.url}
        with Stack(folder / "state", environment=elsewhere) as stack:
            assert set(stack.parts) == {"API", "worker"}
            assert running_stack(folder / "state").url == stack.url
            first = stack.admin_key
            assert who_answers(stack, first).status_code == 200
        assert not (folder / "state" / "postgres").exists()
        # The same folder with another database, which has never heard of that key.
        elsewhere["DATABASE_URL"] = empty_database_url
        with Stack(folder / "state", environment=elsewhere) as stack:
            assert stack.admin_key != first
            assert who_answers(stack, stack.admin_key).status_code == 200
            assert who_answers(stack, first).status_code == 401
            assert stack.admin_key_file.read_text().strip() == stack.admin_key
    assert running_stack(folder / "state") is None


def test_a_start_that_fails_half_way_leaves_nothing_behind(folder, monkeypatch):
    def fail(_url):
        raise LauncherError("no migrations today")

    monkeypatch.setattr(stack_module.migrations, "upgrade", fail)
    stack = Stack(folder / "state")
    with pytest.raises(LauncherError, match="no migrations today"), stack:
        pass
    assert set(stack.parts) == {"PostgreSQL", "Valkey"}
    assert not any(part.process.alive for part in stack.parts.values())
    assert running_stack(folder / "state") is None


def test_missing_worker_libraries_are_noticed_before_anything_starts(folder, monkeypatch):
    monkeypatch.setattr(stack_module.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(LauncherError, match=r"torch and cvxpy.*lethe\[worker,embedded\]"):
        Stack(folder / "state").__enter__()
    assert not (folder / "state").exists()


def test_a_lost_master_key_is_told_with_its_remedy(folder):
    state = folder / "state"
    (state / "keys").mkdir(parents=True)
    with pytest.raises(LauncherError, match=r"master.key is missing: restore it"):
        Stack(state).__enter__()


def test_nothing_to_stop_is_no_error(folder):
    assert stop_running_stack(folder / "never-used") is False


def test_who_only_looks_whether_a_stack_runs_is_not_taken_for_one(folder, monkeypatch):
    looks = []

    def look(_state_dir):
        looks.append(1)
        fcntl.flock(looker, fcntl.LOCK_UN)

    (folder / "lock").touch()
    with (folder / "lock").open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        monkeypatch.setattr(stack_module, "running_stack", look)
        with stack_module._lock(folder):
            assert looks == [1]


def test_what_keeps_dying_is_started_again_with_growing_pauses(folder, monkeypatch):
    monkeypatch.setattr(stack_module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(stack_module, "LONGEST_PAUSE_SECONDS", 0.04)
    command = Command(("false",), folder / "log")
    starts, pauses = [], []

    def start():
        starts.append(time.monotonic())
        return command.start()

    part = Part("short-lived", start, start(), stop_seconds=1.0, pause=0.01)
    deadline = time.monotonic() + 30
    while len(starts) < 6:
        assert time.monotonic() < deadline
        part.keep_up()
        pauses.append(part.pause)
    part.process.stop()
    assert sorted(set(pauses)) == [0.01, 0.02, 0.04]


def test_what_lived_long_is_started_again_after_the_shortest_pause(folder):
    command = Command(("false",), folder / "log")
    part = Part("long-lived", command.start, command.start(), stop_seconds=1.0, pause=8.0)
    part.started_at -= stack_module.STABLE_SECONDS + 1
    part.process.stop()
    part.keep_up()
    assert part.retry_at - time.monotonic() <= stack_module.FIRST_PAUSE_SECONDS


@pytest.mark.parametrize("error", [LauncherError("no"), OSError("no memory")])
def test_a_start_that_fails_for_whatever_reason_is_tried_again(folder, error):
    command = Command(("sleep", "60"), folder / "log")
    starts = []

    def start():
        starts.append(1)
        if len(starts) == 1:
            raise error
        return command.start()

    part = Part("unlucky", start, command.start(), stop_seconds=1.0, pause=0.01)
    part.process.stop()
    deadline = time.monotonic() + 30
    while not part.process.alive:
        assert time.monotonic() < deadline
        part.keep_up()
    part.process.stop()
    assert len(starts) == 2
