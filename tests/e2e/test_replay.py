"""`lethe replay` beside a running stack: another process finds the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.embedded.stack import Stack
from tests.reference.needles import needles

pytestmark = pytest.mark.e2e

LETHE = Path(sys.executable).parent / "lethe"
ENVIRONMENT = {"LEASE_SECONDS": "5", "SWEEP_SECONDS": "0.5", "REPLAY_DAYS": "1"}


def test_deletions_of_a_running_service_are_replayed_from_what_it_kept(
    state_dir, connect, make_problem
):
    problem = make_problem(n=1500, d=5, seed=41)
    many = np.arange(10, 210)
    with Stack(state_dir, environment=ENVIRONMENT) as stack:
        service = connect(stack.url, stack.admin_key)

        told = []

        def replay(request, *arguments):
            done = subprocess.run(
                [LETHE, "replay", request, "--state-dir", state_dir, *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            told.extend((done.stdout, done.stderr))
            return done

        for statistics, rows, method in (
            (True, np.arange(3), "stored"),
            (False, many, "paper-sdp"),
        ):
            model = service.register(problem, method, statistics=statistics)
            request = service.forget(model, problem.samples_file(rows), method=method)
            assert service.finished(request)["state"] == "completed"
            done = replay(request)
            assert (done.returncode, done.stderr) == (0, ""), done
            assert f"identical  request {request}" in done.stdout
            assert "environment: as in the record." in done.stdout
            # Kept for this, and for nobody to download.
            old = service.http.get(f"/v1/models/{model}/revisions/0/weights")
            assert old.status_code == 410, old.text
        more = replay(request, "--threads", "7")
        assert more.returncode == 0, more
        assert "threads of the record" in more.stdout
        entries = service.get("/v1/audit/entries?limit=200")["items"]
        assert [entry["event"] for entry in entries].count("request.replayed") == 3
        told.append(json.dumps(entries))
        # What is kept is kept encrypted, and a replay says nothing of it.
        wanted = needles(problem.features[:3])
        for content in (*map(str.encode, told), *map(Path.read_bytes, files_in(state_dir))):
            assert not any(needle in content for needle in wanted)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]
