"""Keys are replaced under a service that signs, and what it signed stays verifiable."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.embedded.keys import ensure_key_files
from app.embedded.stack import Stack

pytestmark = pytest.mark.e2e

LETHE = Path(sys.executable).parent / "lethe"
QUICK = {"LEASE_SECONDS": "5", "SWEEP_SECONDS": "0.5"}
ORIGIN = "lethe.local/audit"


class Deployment:
    """A service of one test alone, which loses its keys here, and `lethe` beside it."""

    def __init__(self, stack, client, folder):
        self.stack, self.client, self.folder = stack, client, folder

    def lethe(self, *arguments):
        inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        return subprocess.run(
            [LETHE, *arguments],
            cwd=self.folder,
            env=inherited | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    def keys(self, *arguments):
        done = self.lethe("keys", *arguments, "--state-dir", str(self.stack.state_dir))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def verify(self, record, key_list, since=None):
        """Return what `lethe verify` says of a record, and whether it accepts it."""
        (self.folder / "record.json").write_bytes(record)
        (self.folder / "keys.json").write_bytes(key_list)
        options = []
        if since is not None:
            (self.folder / "since.txt").write_text(since["note"])
            options = ["--since", "since.txt"]
        done = self.lethe("verify", "record.json", "--key", "keys.json", *options)
        assert done.returncode in {0, 1}, done.stderr
        return done.returncode == 0, done.stdout

    def record(self, request_id, since=None):
        parameters = {} if since is None else {"since": since["size"]}
        answer = self.client.http.get(
            f"/v1/unlearning-requests/{request_id}/record", params=parameters
        )
        assert answer.status_code == 200, answer.text
        return answer.content

    def checkpoint(self):
        return self.client.get("/v1/audit/checkpoint")

    def published(self):
        return self.client.get("/v1/audit/keys")["keys"]

    def is_ready(self):
        return self.client.http.get("/readyz").status_code == 200


@pytest.fixture
def deployment(state_dir, connect, tmp_path):
    with Stack(state_dir, environment=QUICK) as stack:
        yield Deployment(stack, connect(stack.url, stack.admin_key), tmp_path)


class Requests:
    """Deletions of one record after another, until it is told to stop."""

    def __init__(self, client, problem):
        self.client, self.problem = client, problem
        self.model = client.register(problem, "rotating", statistics=True)
        self.rows = iter(range(1000))
        self.ids = []
        self.stop = threading.Event()

    def forget(self):
        row = np.array([next(self.rows)])
        ended = self.client.finished(self.client.forget(self.model, self.problem.samples_file(row)))
        assert ended["state"] == "completed", ended
        self.ids.append(ended["id"])
        return ended["id"]

    def go_on(self):
        while not self.stop.is_set():
            self.forget()


@pytest.fixture
def requests(deployment, make_problem):
    return Requests(deployment.client, make_problem())


def test_both_keys_are_rotated_while_requests_run_and_every_certificate_verifies(
    deployment, requests
):
    first = requests.forget()
    early, old_list = deployment.record(first), deployment.client.keys()
    assert deployment.verify(early, old_list)[0]
    processes = {name: part.process.pid for name, part in deployment.stack.parts.items()}
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(requests.go_on)
        try:
            for role in ("records", "checkpoints"):
                count = len(requests.ids)
                told = deployment.keys("rotate", "--role", role, "--overlap-days", "1")
                assert "services take it up by themselves" in told
                while len(requests.ids) < count + 2 and not working.done():
                    time.sleep(0.1)
        finally:
            requests.stop.set()
        working.result()
    # Nothing was restarted.
    assert {name: part.process.pid for name, part in deployment.stack.parts.items()} == processes
    assert deployment.is_ready()

    new_list, published = deployment.client.keys(), deployment.published()
    assert [key["role"] for key in published].count("records") == 2
    assert [key["role"] for key in published].count("checkpoints") == 2
    signed_with = set()
    for request_id in requests.ids:
        record = deployment.record(request_id)
        accepted, told = deployment.verify(record, new_list)
        assert accepted, told
        signed_with.add(json.loads(record)["envelope"]["signatures"][0]["keyid"])
    assert signed_with == {key["id"] for key in published if key["role"] == "records"}
    # Who still has the old list reads what was signed before it, checkpoints of today included.
    assert deployment.verify(early, old_list)[0]
    today = deployment.checkpoint()
    accepted, told = deployment.verify(deployment.record(first, since=today), old_list, since=today)
    assert accepted, told


def test_a_compromised_key_ends_the_log_and_the_service_goes_on_in_another(deployment, requests):
    first = requests.forget()
    kept = deployment.checkpoint()
    second = requests.forget()
    (stolen,) = [key["id"] for key in deployment.published() if key["role"] == "checkpoints"]
    told = deployment.keys("revoke", stolen[:12], "--compromised", "--reason", "found on a share")
    assert f"The new one is {ORIGIN}/2" in told
    assert deployment.is_ready()
    assert deployment.checkpoint()["note"].startswith(f"{ORIGIN}/2\n")
    third = requests.forget()
    key_list = deployment.client.keys()
    accepted, told = deployment.verify(deployment.record(third), key_list)
    assert accepted, told
    # What the stolen key signed convinces only together with a checkpoint that was kept.
    for request_id in (first, second):
        accepted, told = deployment.verify(deployment.record(request_id), key_list)
        assert not accepted
        assert "compromised" in told
    backed = deployment.record(first, since=kept)
    accepted, told = deployment.verify(backed, key_list, since=kept)
    assert accepted, told
    assert "compromised" in told
    # The new log begins where the old one ended.
    opened = deployment.client.get("/v1/audit/entries?limit=1")["items"][0]
    assert opened["event"] == "log.opened"
    closed = deployment.client.get("/v1/audit/checkpoint?log=1")
    assert opened["payload"]["previous"]["size"] == closed["size"]


def test_a_lost_key_file_is_not_replaced_on_the_quiet(deployment):
    folder = deployment.stack.state_dir / "keys"
    deployment.checkpoint()
    known = deployment.published()
    for name in ("signing.pem", "log.pem"):
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in (folder / name).read_bytes()
    (folder / "log.pem").rename(folder / "backup.pem")
    ensure_key_files(folder)  # as the next start does
    ready = deployment.client.http.get("/readyz")
    assert ready.status_code == 503
    assert "Put back the one that is" in ready.json()["checks"]["log_key"]
    refused = deployment.lethe(
        "keys", "rotate", "--role", "checkpoints", "--state-dir", str(folder.parent)
    )
    assert refused.returncode == 1
    assert "is not known to the log" in refused.stderr
    assert deployment.published() == known
    # Put back, it is taken up without a restart.
    (folder / "backup.pem").rename(folder / "log.pem")
    assert deployment.is_ready()
    assert deployment.checkpoint()["note"]
