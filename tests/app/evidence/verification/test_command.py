"""`lethe verify`, as an auditor runs it: files, and no service."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference.bundles import (
    AFTER,
    KEYS,
    LOG_KEY,
    RECORD_KEY,
    Log,
    limited,
    pem_of,
    vkey_of,
)
from tests.reference.timestamps import BEGIN, Stamper

OLD = Path(__file__).parents[1] / "old_bundles"


@pytest.fixture
def verify(tmp_path):
    """A function that writes files and runs the command on them; the record comes first."""

    def run(arguments, **files):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return subprocess.run(
            [Path(sys.executable).parent / "lethe", "verify", *arguments.split()],
            cwd=tmp_path,
            # No service, no database and no settings are needed.
            env={"PATH": os.environ["PATH"], "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def log(statement_of):
    log = Log().fill(3)
    log.add_record(statement_of("certificate"))
    return log.fill(7)


def test_a_record_with_everything_that_belongs_to_it_verifies(log, verify):
    stamper = Stamper()
    stamp = stamper.stamp(hashlib.sha256(log.note().encode()).digest(), BEGIN)
    bundle = log.bundle(3, since=5, timestamp=base64.b64encode(stamp).decode())
    done = verify(
        "record --key keys --weights weights --since kept --tsa-root root",
        record=json.dumps(bundle).encode(),
        keys=KEYS,
        weights=b"the new weights",
        kept=log.note(5).encode(),
        root=stamper.root_pem,
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split(":")[0].removeprefix("✓ ") for line in done.stdout.splitlines()]
    assert names == [
        *("file", "signature", "statement", "entry", "inclusion", "checkpoint"),
        *("consistency", "weights", "timestamp"),
    ]


def test_machines_read_the_same_as_json(log, verify):
    record = json.dumps(log.bundle(3)).encode()
    keys = {"pem": pem_of(RECORD_KEY), "line": vkey_of(LOG_KEY).encode()}
    arguments = "record --key pem --key line --weights new --weights old --json"
    done = verify(arguments, record=record, new=b"the new weights", old=b"the old weights", **keys)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["file"]) == (1, False, "record")
    checks = {check["name"]: check for check in found["checks"]}
    assert [check["ok"] for check in found["checks"]] == [True] * 7 + [False]
    assert "from before the unlearning" in checks["weights"]["sentence"]
    assert "does not verify" in done.stderr


def test_a_compromised_key_asks_for_a_kept_checkpoint(log, verify):
    files = {"record": json.dumps(log.bundle(3, since=5)).encode()}
    files |= {"keys": limited(revoked_at=AFTER, compromised=True), "kept": log.note(5).encode()}
    done = verify("record --key keys", **files)
    assert done.returncode == 1
    assert "give with --since" in done.stdout
    assert verify("record --key keys --since kept", **files).returncode == 0


def test_a_record_of_an_earlier_release_verifies_with_its_pem_file(verify):
    files = {"record": (OLD / "v2-certified.json").read_bytes()}
    done = verify("record --key key", key=(OLD / "signing-key.pem").read_bytes(), **files)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"keys": b"\xff"}, "a key file is none of those that are read"),
        ({"keys": b"{}"}, "key list: format: Field required"),
        ({"keys": KEYS, "root": b"none"}, "expected PEM certificates"),
    ],
)
def test_what_is_given_wrongly_is_told_in_a_sentence(log, verify, files, words):
    files = {"root": Stamper().root_pem} | files
    record = json.dumps(log.bundle(3)).encode()
    done = verify("record --key keys --tsa-root root", record=record, **files)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_kept_checkpoint_that_is_no_text_is_a_finding(log, verify):
    record = json.dumps(log.bundle(3)).encode()
    done = verify("record --key keys --since kept", record=record, keys=KEYS, kept=b"\xff\xfe")
    assert done.returncode == 1
    assert "✗ consistency" in done.stdout
    assert "Traceback" not in done.stderr
