import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql
from pydantic import ValidationError
from sqlalchemy import make_url, select
from structlog.testing import capture_logs

from app.errors import AnchorUnreadableError, InconsistentLogError
from app.evidence import repository, service
from app.evidence.keys import keyring
from app.evidence.keys.rotation import Custodian
from app.evidence.keys.trust import TrustedKeys
from app.evidence.log import append
from app.evidence.models import AuditAnchor, AuditCheckpoint, AuditEntry
from app.evidence.transparency import _anchor_targets, anchors
from app.evidence.transparency._anchor_targets import TimestampAuthority, UndeliveredError
from app.evidence.transparency.anchors import Anchoring
from app.evidence.transparency.merkle import Frontier, leaf_hash
from app.evidence.transparency.notes import Checkpoint, open_note, sign_note
from app.evidence.verification import verify_bundle
from app.services import Services
from tests.reference.timestamping import (
    Authority,
    ForgetfulAuthority,
    InattentiveAuthority,
    RefusingAuthority,
)

ORIGIN = "tests.lethe/audit"
FOLDER = "tests.lethe-audit"
SIGNED = Checkpoint(ORIGIN, 3, bytes(32))


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def start(make_settings, fresh_database_url, kept):
    """Starts a process's services on the test's own database, and ends them with the test."""
    started = []

    def start(**changes):
        values = {
            "database_url": fresh_database_url,
            "log_origin": ORIGIN,
            "anchor_url": kept.as_uri(),
            "checkpoint_seconds": 1e-6,  # every turn is due
        }
        started.append(Services.from_settings(make_settings(**values | changes)))
        return started[-1]

    yield start
    for services in started:
        services.close()


@pytest.fixture
def services(start):
    return start()


@contextmanager
def serving(*statuses, headers=()):
    """A webhook's server: answers with the statuses, one after the other, the last for ever."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, dict(self.headers), body.decode(errors="replace")))
            self.send_response(statuses[min(len(received), len(statuses)) - 1])
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments):
            """Say nothing: the test does."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def silence():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def grow(services, count=1):
    with services.sessions.begin() as session:
        for number in range(count):
            append(session, "test.happened", subject={"number": number}, payload={})


def anchoring_of(services):
    return Anchoring(
        services.settings, services.sessions, services.notary, services.checkpoint_signer
    )


def anchor(services, anchoring=None):
    """Take a turn and wait until it is over."""
    anchoring = anchoring or anchoring_of(services)
    anchoring.turn()
    anchoring.wait(30)
    return anchoring


def rows(services, model=AuditAnchor):
    with services.sessions() as session:
        return session.scalars(select(model)).all()


def files(kept):
    return sorted(path for path in kept.rglob("*") if path.is_file())


# Signing and sending


def test_a_log_that_has_grown_is_signed_and_its_checkpoint_sent_everywhere(start, kept):
    with Authority() as authority, serving(204) as (url, received):
        services = start(anchor_webhook_url=f"{url}/notes", timestamp_url=authority.url)
        grow(services, 3)
        anchor(services)
    (checkpoint,) = rows(services, AuditCheckpoint)
    (path,) = files(kept)
    assert path.relative_to(kept) == Path(FOLDER, f"{checkpoint.size:020d}.checkpoint")
    assert path.read_text() == checkpoint.note
    ((where, headers, body),) = received
    assert (where, body) == ("/notes", checkpoint.note)
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    found = {row.kind: row for row in rows(services)}
    assert set(found) == {"folder", "webhook", "timestamp"}
    assert {(row.log_id, row.size) for row in found.values()} == {(1, checkpoint.size)}
    assert found["folder"].content is found["webhook"].content is None
    key = services.checkpoint_signer.note_key(ORIGIN)
    assert Checkpoint.parse(open_note(path.read_text(), [key])[0]).size == checkpoint.size >= 3


def test_a_checkpoint_is_sent_once(start, kept):
    with Authority() as authority, serving(200) as (url, received):
        services = start(anchor_webhook_url=url, timestamp_url=authority.url)
        grow(services)
        anchoring = anchor(services)
        anchor(services, anchoring)
        anchor(services)  # nor by another process
        assert len(received) == authority.answers == len(files(kept)) == 1
        grow(services)
        anchor(services, anchoring)
        assert len(received) == authority.answers == len(files(kept)) == 2
    assert len(rows(services)) == 6


def test_between_its_turns_nothing_is_signed_or_sent(start, kept):
    services = start(checkpoint_seconds=3600.0)
    grow(services)
    anchoring = anchor(services)
    grow(services)
    anchor(services, anchoring)
    anchor(services)  # another process's turn comes sooner, but the log was signed just now
    assert len(files(kept)) == len(rows(services, AuditCheckpoint)) == 1


def test_without_targets_the_log_is_signed_all_the_same(start, kept):
    services = start(anchor_url=None)
    grow(services)
    anchor(services)
    assert len(rows(services, AuditCheckpoint)) == 1
    assert rows(services) == files(kept) == []


def test_a_target_that_fails_keeps_no_other_back_and_is_tried_again(start):
    with serving(503, 200) as (url, received):
        services = start(anchor_webhook_url=url)
        grow(services)
        with capture_logs() as logs:
            anchoring = anchor(services)
        assert [row.kind for row in rows(services)] == ["folder"]
        (warning,) = (entry for entry in logs if entry["event"] == "anchor.not_delivered")
        assert (warning["log_level"], warning["kind"]) == ("warning", "webhook")
        assert "503" in warning["error"]
        anchor(services, anchoring)
        assert len(received) == 2
    assert sorted(row.kind for row in rows(services)) == ["folder", "webhook"]


def test_a_target_that_hangs_keeps_neither_the_sweep_nor_the_others_waiting(start, monkeypatch):
    monkeypatch.setattr(_anchor_targets, "TIMEOUT_SECONDS", 2.0)
    with silence() as hangs, Authority() as authority:
        services = start(anchor_webhook_url=hangs, timestamp_url=authority.url)
        grow(services)
        anchoring = anchoring_of(services)
        anchoring.turn()
        for kind in ("folder", "timestamp"):
            anchoring._under_way[kind].join(30)
        assert sorted(row.kind for row in rows(services)) == ["folder", "timestamp"]
        stuck = anchoring._under_way["webhook"]
        anchoring.turn()
        assert anchoring._under_way["webhook"] is stuck  # no second one beside it
        assert stuck.is_alive()
        with capture_logs() as logs:
            anchoring.wait(30)
    assert [entry["event"] for entry in logs] == ["anchor.not_delivered"]


def test_a_redirect_is_not_followed(start):
    with serving(200) as (elsewhere, received):
        with serving(307, headers=[("Location", elsewhere)]) as (url, _):
            services = start(anchor_webhook_url=url)
            grow(services)
            anchor(services)
        assert received == []
    assert [row.kind for row in rows(services)] == ["folder"]


def test_what_is_stored_and_logged_of_a_target_holds_no_credentials(start):
    with serving(500, 200) as (url, received):
        secret = url.replace("//", "//user:hunter2@") + "/in?token=hunter2#hunter2"
        services = start(anchor_webhook_url=secret)
        grow(services)
        with capture_logs() as logs:
            anchor(services, anchor(services))
    assert received[1][0] == "/in?token=hunter2"
    assert received[1][1]["Authorization"].startswith("Basic ")
    assert {row.target for row in rows(services) if row.kind == "webhook"} == {f"{url}/in"}
    assert "hunter2" not in repr(logs) + repr(services.settings)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:se@cret@bucket/lethe?region=x", "s3://bucket/lethe"),
        ("https://host/a@b", "https://host/a@b"),
        ("simplecache::s3://bucket/x#y", "simplecache::s3://bucket/x"),
        ("/var/lib/anchors", "/var/lib/anchors"),
    ],
)
def test_a_location_is_shown_without_what_opens_it(url, shown):
    assert _anchor_targets.without_credentials(url) == shown


# The folder


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_that_says_something_else_is_an_alarm_and_stays(start, kept, remote):
    place = f"memory://{uuid.uuid4()}" if remote else kept.as_uri()
    store, root = fsspec.core.url_to_fs(place)
    services = start(anchor_url=place)
    grow(services)
    anchoring = anchor(services)
    (first,) = store.find(root)
    assert store.cat_file(first).decode() == rows(services, AuditCheckpoint)[0].note
    grow(services)
    following = f"{root}/{FOLDER}/{_size(services):020d}.checkpoint"
    store.pipe_file(following, b"another history\n")
    with capture_logs() as logs:
        anchor(services, anchoring)
    (alarm,) = (entry for entry in logs if entry["event"] == "anchor.contradiction")
    assert alarm["log_level"] == "error"
    assert store.cat_file(following) == b"another history\n"
    assert len(rows(services)) == 1


def _size(services):
    with services.sessions() as session:
        return repository.open_log(session).size


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_that_is_there_already_is_as_good_as_written(start, kept, remote):
    services = start(anchor_url=f"memory://{uuid.uuid4()}" if remote else kept.as_uri())
    target = _anchor_targets.Folder(services.settings.anchor_url)
    grow(services)
    checkpoint = services.notary.sign()
    target.send(Checkpoint(ORIGIN, checkpoint.size, checkpoint.root), checkpoint.note)
    anchor(services)
    assert [row.kind for row in rows(services)] == ["folder"]


def test_nothing_half_written_is_left_and_others_may_read(services, kept):
    grow(services)
    anchor(services)
    (path,) = files(kept)
    assert path.stat().st_mode & 0o777 == 0o644


# What is not sent


def test_a_checkpoint_in_the_database_that_no_key_of_ours_signed_is_not_sent(services, kept):
    grow(services)
    anchor(services)
    grow(services, 2)
    with services.sessions.begin() as session:
        log = repository.open_log(session)
        root = Frontier.from_bytes(log.size, log.frontier).root()
        text = Checkpoint(ORIGIN, log.size, root).text()
        note = sign_note(text, [(ORIGIN, Ed25519PrivateKey.generate())])
        repository.add_checkpoint(session, log_id=log.id, size=log.size, root=root, note=note)
    with capture_logs() as logs:
        anchor(services)
    assert "anchor.checkpoint_not_ours" in [entry["event"] for entry in logs]
    assert len(files(kept)) == 1


# Timestamps


def test_a_timestamp_is_of_the_note(start):
    with Authority() as authority:
        services = start(timestamp_url=authority.url)
        grow(services)
        anchor(services)
        (checkpoint,) = rows(services, AuditCheckpoint)
        stamp = {row.kind: row for row in rows(services)}["timestamp"]
        assert authority.verifies(stamp.content, checkpoint.note.encode())
        assert not authority.verifies(stamp.content, checkpoint.note.encode() + b"\n")


def _ask(authority, note="the note\n", **options):
    return TimestampAuthority(authority.url, **options).send(SIGNED, note)


def test_a_refusal_is_no_timestamp():
    with RefusingAuthority() as authority, pytest.raises(UndeliveredError, match="status 2"):
        _ask(authority)


def test_the_answer_to_another_question_is_no_timestamp():
    with ForgetfulAuthority() as authority:
        _ask(authority)
        with pytest.raises(UndeliveredError, match="another question"):
            _ask(authority)
        with pytest.raises(UndeliveredError, match="another text"):
            _ask(authority, "another note\n")
    with (
        InattentiveAuthority(b"the note\n") as authority,
        pytest.raises(UndeliveredError, match="another question"),
    ):
        _ask(authority)


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"<html>", "no timestamp"),
        (bytes.fromhex("30053003020100"), "no timestamp"),  # granted, and nothing with it
        (bytes(_anchor_targets.LONGEST_ANSWER + 1), "longer than"),
    ],
)
def test_an_answer_that_is_no_timestamp_is_not_stored(content, finding):
    class Broken(Authority):
        def answer(self, _query):
            return content

    with Broken() as authority, pytest.raises(UndeliveredError, match=finding):
        _ask(authority)


def test_with_roots_an_authority_that_does_not_lead_to_them_is_not_believed(tmp_path):
    roots = tmp_path / "roots.pem"
    with Authority() as authority, Authority() as other:
        roots.write_bytes(authority.root)
        assert _ask(authority, roots_file=roots)
        with pytest.raises(UndeliveredError, match="TIMESTAMP_ROOTS_FILE"):
            _ask(other, roots_file=roots)
        roots.write_bytes(other.root + authority.root)
        assert _ask(other, roots_file=roots)


def test_an_authority_that_answers_an_error_is_not_believed():
    with serving(500) as (url, _), pytest.raises(UndeliveredError, match="500"):
        TimestampAuthority(url).send(SIGNED, "the note\n")


# A database that was restored or rewritten


def _as_superuser(services):
    address = make_url(services.settings.database_url).set(drivername="postgresql")
    return psycopg.connect(address.render_as_string(hide_password=False))


def rewrite_history(services, *, keep=None):
    """Rewrite the log without a trace in the database: entries, tree, checkpoints, anchors."""
    with _as_superuser(services) as database:
        tables = ("audit_anchor", "audit_checkpoint", "audit_entry", "audit_log")
        for table in tables:
            database.execute(
                sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(sql.Identifier(table))
            )
        database.execute("DELETE FROM audit_anchor")
        database.execute("DELETE FROM audit_checkpoint")
        bodies = database.execute('SELECT body FROM audit_entry ORDER BY "index"').fetchall()
        database.execute("DELETE FROM audit_entry")
        frontier = Frontier.from_bytes(0, b"")
        for index, (body,) in enumerate(bodies[:keep]):
            changed = body.replace(b"test.happened", b"test.imagined") if keep is None else body
            frontier, subtrees = frontier.append(leaf_hash(changed))
            database.execute(
                'INSERT INTO audit_entry (log_id, "index", body, subtrees) VALUES (1, %s, %s, %s)',
                (index, changed, b"".join(subtrees)),
            )
        database.execute(
            "UPDATE audit_log SET size = %s, frontier = %s", (frontier.size, frontier.to_bytes())
        )
        for table in tables:
            database.execute(
                sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(sql.Identifier(table))
            )


def test_a_rewritten_log_is_not_signed_by_a_process_that_never_saw_the_old_one(start):
    services = start()
    grow(services, 5)
    anchor(services)
    rewrite_history(services)
    with pytest.raises(InconsistentLogError, match="does not continue"):
        start().notary.sign()
    grow(services, 3)
    with pytest.raises(InconsistentLogError, match="does not continue"):
        start().notary.sign()
    # Without what was kept outside, the same database passes for sound.
    assert start(anchor_url=None).notary.sign().size == _size(services)


def test_a_log_that_was_cut_off_is_not_signed(start):
    services = start()
    grow(services, 5)
    anchor(services)
    rewrite_history(services, keep=3)
    with pytest.raises(InconsistentLogError, match="it has 3 entries, and had"):
        start().notary.sign()


def test_a_database_restored_from_a_backup_is_not_signed(start, session):
    services = start()
    grow(services, 2)
    anchor(services)
    services.engine.dispose()
    name, backup = make_url(services.settings.database_url).database, f"lethe_{uuid.uuid4().hex}"
    server = session.connection().engine.url.set(drivername="postgresql")
    with psycopg.connect(
        server.render_as_string(hide_password=False), autocommit=True
    ) as administrator:
        administrator.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(backup), sql.Identifier(name)
            )
        )
        grow(services, 2)
        anchor(services)
        url = make_url(services.settings.database_url).set(database=backup)
        restored = start(database_url=url.render_as_string(hide_password=False))
        with pytest.raises(InconsistentLogError, match="entries, and had"):
            restored.notary.sign()
        restored.engine.dispose()
        administrator.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(backup)))


def test_a_real_new_process_refuses_too(start):
    services = start()
    grow(services, 5)
    anchor(services)
    sound = _sign_in_a_process(services)
    assert sound.returncode == 0, sound.stderr
    rewrite_history(services)
    refused = _sign_in_a_process(services)
    assert refused.returncode == 1
    assert "InconsistentLogError" in refused.stderr


def _sign_in_a_process(services):
    settings = services.settings
    environment = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "ARTIFACTS_URL": settings.artifacts_url,
        "MASTER_KEY_FILE": str(settings.master_key_file),
        "SIGNING_KEY_FILE": str(settings.signing_key_file),
        "LOG_KEY_FILE": str(settings.log_key_file),
        "LOG_ORIGIN": settings.log_origin,
        "ANCHOR_URL": settings.anchor_url,
    }
    program = (
        "from app.services import Services; from app.settings import Settings;"
        " Services.from_settings(Settings()).notary.sign()"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"]} | environment,
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_scheduled_turn_says_so_and_sends_nothing(start, kept):
    services = start()
    grow(services, 5)
    anchor(services)
    rewrite_history(services)
    with capture_logs() as logs:
        anchor(start())
    (entry,) = (entry for entry in logs if entry["event"] == "anchor.nothing_signed")
    assert entry["log_level"] == "error"
    assert "lethe audit verify" in entry["remedy"]
    assert len(files(kept)) == 1


def test_after_a_restore_a_new_log_goes_on(start, kept):
    services = start()
    grow(services, 5)
    anchor(services)
    rewrite_history(services, keep=3)
    custodian = Custodian(services.sessions, services.settings, kept)
    key_id = services.checkpoint_signer.key_id
    with pytest.raises(InconsistentLogError, match="its end is not signed") as caught:
        custodian.revoke_compromised(key_id, "restored from a backup")
    assert "The new log and its keys are in place." in caught.value.remedy
    going_on = start()
    grow(going_on)
    anchor(going_on)
    assert [path.parent.name for path in files(kept)] == [FOLDER, f"{FOLDER}-2"]
    anchor(start())  # which reads both back
    assert going_on.notary.sign().log_id == 2


def test_a_sound_log_is_signed_on(start, kept):
    for count in (1, 2, 3):
        services = start()
        grow(services, count)
        anchor(services)
    assert len(files(kept)) == 3


def test_files_that_no_known_key_signed_are_passed_over_with_a_warning(start, kept):
    services = start()
    grow(services, 2)
    anchor(services)
    folder = kept / FOLDER
    stranger = Ed25519PrivateKey.generate()
    for size, content in {
        90: b"junk",
        91: b"\xff\xfe",
        92: b"x" * (_anchor_targets.LONGEST_NOTE + 2),
        93: sign_note(Checkpoint(ORIGIN, 93, bytes(32)).text(), [(ORIGIN, stranger)]).encode(),
        # Under another size than it is of, a true one would pass for the newest.
        94: files(kept)[0].read_bytes(),
    }.items():
        (folder / f"{size:020d}.checkpoint").write_bytes(content)
    (folder / "README").write_text("not ours")
    with capture_logs() as logs:
        assert start().notary.sign().size == _size(services)
    (warning,) = (entry for entry in logs if entry["event"] == "anchor.not_of_this_log")
    assert warning["files"] == 5
    rewrite_history(services)
    with pytest.raises(InconsistentLogError):
        start().notary.sign()


def test_a_checkpoint_of_a_key_that_was_registered_is_known(kept, services):
    grow(services, 2)
    anchor(services)
    with services.sessions() as session:
        note = files(kept)[0].read_text()
        stranger = type(services.checkpoint_signer)(Ed25519PrivateKey.generate())
        assert anchors._open(session, note, stranger).size == _size(services)


def test_while_what_was_kept_cannot_be_read_nothing_is_signed(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    services = start(anchor_url=f"ftp://user:hunter2@127.0.0.1:{port}/kept")
    grow(services)
    with pytest.raises(AnchorUnreadableError) as caught:
        services.notary.sign()
    assert "hunter2" not in caught.value.detail
    assert rows(services, AuditCheckpoint) == []


# Bundles


def test_an_entry_is_delivered_with_the_earliest_timestamp_that_covers_it(start):
    with Authority() as authority:
        services = start(timestamp_url=authority.url)
        grow(services)
        services.notary.sign()  # signed and not stamped: of no use to whoever asks when
        grow(services)
        anchor(services)
        grow(services)
        anchor(services)
    stamped = sorted(row.size for row in rows(services) if row.kind == "timestamp")
    with services.sessions() as session:
        first = session.get(AuditEntry, (1, 0))
        found = repository.covering_checkpoint(session, 1, first.index)
        assert found.size == stamped[0]
        stamp = repository.find_timestamp(session, 1, found.size)
    assert hashlib.sha256(found.note.encode()).digest() in stamp


@pytest.fixture
def bundled(start, new_record):
    """A record's bundle with a timestamp, its keys, the authority that stamped it and another."""
    with Authority() as authority, Authority() as other:
        services = start(timestamp_url=authority.url)
        with services.sessions.begin() as session:
            record = new_record(session, services.signer, "certificate")
        anchor(services)
        with services.sessions.begin() as session:
            bundle = service.bundle(session, record, services.notary)
            keys = keyring.key_list(session)
        grow(services)
        yield bundle, keys, authority, other, services.notary.sign().note


def _timestamp_of(bundle, keys, roots):
    checks = verify_bundle(bundle, TrustedKeys.of(keys), tsa_roots=roots)
    (found,) = (check for check in checks if check.name == "timestamp")
    assert all(check.ok for check in checks if check is not found)
    return found


def test_a_bundle_carries_the_timestamp_and_a_verifier_believes_the_root_that_it_was_given(bundled):
    bundle, keys, authority, other, _ = bundled
    assert "existed at" in _timestamp_of(bundle, keys, authority.root).sentence
    assert _timestamp_of(bundle, keys, authority.root).ok
    assert _timestamp_of(bundle, keys, other.root + authority.root).ok
    assert not _timestamp_of(bundle, keys, other.root).ok


def test_the_timestamp_of_another_note_or_a_broken_one_is_refused(bundled):
    bundle, keys, authority, _, another_note = bundled

    def refused(stamp):
        changed = bundle | {"timestamp": base64.b64encode(stamp).decode()}
        return not _timestamp_of(changed, keys, authority.root).ok

    stamp = base64.b64decode(bundle["timestamp"])
    assert not refused(stamp)
    assert refused(authority.stamp_text(another_note.encode()))
    # The signature is at the end; the time, and what was stamped, before it.
    info = stamp.index(hashlib.sha256(_note_of(bundle).encode()).digest())
    for place in (len(stamp) - 1, info, info + 50):
        assert refused(stamp[:place] + bytes([stamp[place] ^ 1]) + stamp[place + 1 :])
    for broken in (stamp[:-1], stamp + b"\0", b"junk"):
        assert refused(broken)


def _note_of(bundle):
    return bundle["proof"].partition("\n\n")[2]


def test_the_command_line_takes_the_authority_s_root(bundled, tmp_path):
    bundle, keys, authority, other, _ = bundled
    (tmp_path / "record.json").write_text(json.dumps(bundle))
    (tmp_path / "keys.json").write_text(keys.model_dump_json())
    for root, status in ((authority.root, 0), (other.root, 1)):
        (tmp_path / "root.pem").write_bytes(root)
        command = [
            "verify",
            "record.json",
            "--key",
            "keys.json",
            "--tsa-root",
            "root.pem",
            "--json",
        ]
        done = subprocess.run(
            [Path(sys.executable).with_name("lethe"), *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        checks = {check["name"]: check["ok"] for check in json.loads(done.stdout)["checks"]}
        assert checks["timestamp"] == (status == 0)


# Settings


@pytest.mark.parametrize(
    "changes",
    [
        {"anchor_webhook_url": "http://example.org/notes"},
        {"anchor_webhook_url": "http://127.0.0.1.example.org/notes"},
        {"anchor_webhook_url": "ftp://example.org/notes"},
        {"anchor_webhook_url": "https:///notes"},
        {"timestamp_url": "file:///etc/passwd"},
        {"checkpoint_seconds": 0},
    ],
)
def test_an_address_that_gives_notes_away_or_is_none_is_refused(make_settings, changes):
    with pytest.raises(ValidationError):
        make_settings(database_url="postgresql://x/y", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"anchor_webhook_url": "https://example.org/notes"},
        {"anchor_webhook_url": "http://localhost:8080/notes"},
        {"anchor_webhook_url": "http://[::1]/notes"},
        {"timestamp_url": "http://tsa.example.org"},  # answers are signed
        {"anchor_url": "", "anchor_webhook_url": "", "timestamp_url": ""},
    ],
)
def test_other_addresses_are_taken(make_settings, changes):
    settings = make_settings(database_url="postgresql://x/y", **changes)
    for name, value in changes.items():
        assert getattr(settings, name) == (value or None)
