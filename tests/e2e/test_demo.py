"""`lethe demo` as a newcomer runs it: its own servers, its own processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LETHE = Path(sys.prefix) / "bin" / "lethe"


def test_the_demo_keeps_its_promises_and_leaves_records_that_verify(tmp_path):
    report = tmp_path / "report.json"
    state = tmp_path / "state"
    run = subprocess.run(
        [LETHE, "demo", "--json", report, "--state-dir", state],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(report.read_text())
    requests = {request["name"]: request for request in found["requests"]}
    assert found["ok"] is True
    assert requests["one-record-exact"]["tier"] == "exact"
    assert requests["one-record-exact"]["rho_w"] <= 1e-8
    assert requests["ten-percent-estimated"]["tier"] == "estimated"
    assert requests["ten-percent-estimated"]["rho_w"] < 1
    assert requests["one-record-refused"]["state"] == "refused"
    assert requests["one-record-refused"]["refusal"]["remedy"]
    assert requests["ten-percent-paper-sdp"]["state"] == "completed"
    assert requests["one-record-certified"]["tier"] == "certified"
    assert requests["one-record-certified"]["rho_w"] < 0.05
    for request in requests.values():
        record = Path(request["record"])
        key = record.parent / "lethe-keys.json"
        subprocess.run([LETHE, "verify", record, "--key", key], check=True, timeout=60)


def test_missing_data_are_named_with_their_remedy(tmp_path):
    run = subprocess.run(
        [LETHE, "demo", "--dataset", "fashion-mnist", "--data-dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    assert "dataset-fashion-mnist" in run.stdout
