import base64
import datetime
import itertools
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import select, text

from app.artifacts.keys import MasterKey
from app.db import make_sessions
from app.errors import InconsistentLogError, KeyNotInForceError
from app.evidence import repository, service
from app.evidence.keys import keyring
from app.evidence.keys.keysources import SigningKeyError, derived_passphrase, key_source
from app.evidence.keys.rotation import Custodian
from app.evidence.keys.signing import CheckpointSigner, Signer
from app.evidence.keys.trust import TrustedKeys
from app.evidence.models import AuditCheckpoint, AuditEntry, KeyRole, SigningKey
from app.evidence.transparency.checkpoints import Notary
from app.evidence.transparency.notes import open_note
from app.evidence.verification import verify_bundle

WEEK = datetime.timedelta(days=7)


@pytest.fixture
def sessions(fresh_engine):
    return make_sessions(fresh_engine)


class Desk:
    """A deployment's keys, as a service holds them, and as an operator changes them."""

    def __init__(self, sessions, settings, directory):
        self.sessions, self.settings, self.directory = sessions, settings, directory
        self.master = MasterKey.load(settings.master_key_file)
        self.signer = Signer.from_source(key_source(settings, KeyRole.RECORDS, self.master))
        self.checkpoint_signer = CheckpointSigner.from_source(
            key_source(settings, KeyRole.CHECKPOINTS, self.master)
        )
        self.notary = Notary(sessions, self.checkpoint_signer, settings.log_origin)

    @property
    def custodian(self):
        return Custodian(self.sessions, self.settings, self.directory)

    def holder(self, role):
        return self.signer if role == KeyRole.RECORDS else self.checkpoint_signer

    def file(self, role):
        records = role == KeyRole.RECORDS
        return self.settings.signing_key_file if records else self.settings.log_key_file

    def key_list(self):
        with self.sessions() as session:
            return keyring.key_list(session)

    def trusted(self):
        return TrustedKeys.of(self.key_list())

    def registered(self):
        with self.sessions() as session:
            return set(session.scalars(select(SigningKey.id)))

    def issue(self, new_record):
        """Sign and log a record, as the worker does; return its id."""
        with self.sessions.begin() as session:
            return new_record(session, self.signer, "certificate").request_id

    def bundle(self, request_id):
        with self.sessions() as session:
            record = service.find_record(session, request_id)
            return json.dumps(service.bundle(session, record, self.notary)).encode()

    def events(self):
        """Return log, event and payload of all entries."""
        with self.sessions() as session:
            rows = session.execute(
                select(AuditEntry.log_id, AuditEntry.body).order_by(
                    AuditEntry.log_id, AuditEntry.index
                )
            ).all()
        bodies = [(log_id, json.loads(body)) for log_id, body in rows]
        return [(log_id, body["event"], body["payload"]) for log_id, body in bodies]


@pytest.fixture
def desk(sessions, fresh_settings, tmp_path):
    return Desk(sessions, fresh_settings, tmp_path)


def problems(bundle, trusted, **options):
    return [check for check in verify_bundle(bundle, trusted, **options) if not check.ok]


@contextmanager
def running_out_of_luck(desk, moment):
    """Run a command of `Custodian` in a process that is gone at a moment, without a clean-up."""
    code = f"""
import datetime, os, pathlib, sys
from app.db import make_engine, make_sessions
from app.evidence.keys import keyring
from app.evidence.keys import rotation
from app.evidence.models import KeyRole
from app.settings import KeySettings

def die(*_arguments, **_options):
    os._exit(9)

{moment}
settings = KeySettings.model_validate({{
    "master_key_file": {str(desk.settings.master_key_file)!r},
    "signing_key_file": {str(desk.settings.signing_key_file)!r},
    "log_key_file": {str(desk.settings.log_key_file)!r},
}})
sessions = make_sessions(make_engine(os.environ["DATABASE_URL"]))
custodian = rotation.Custodian(sessions, settings, pathlib.Path())
"""

    def run(command):
        environment = os.environ | {"DATABASE_URL": desk.settings.database_url}
        done = subprocess.run(
            [sys.executable, "-c", code + command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 9, done.stderr

    yield run


BEFORE_COMMIT = "keyring.rotate = keyring.start_over = die"
BEFORE_RENAME = "pathlib.Path.rename = die"
BEFORE_KEEPING = "rotation.kept_path = die"


@pytest.mark.parametrize("role", KeyRole)
def test_a_new_key_takes_the_place_of_the_old_one_which_is_kept(desk, role):
    holder, path = desk.holder(role), desk.file(role)
    old = holder.pinned()
    change = desk.custodian.rotate(role, WEEK)
    assert (change.installed, change.resumed, change.path) == (True, False, path)
    assert holder.key_id == change.key_id != old.key_id
    assert change.kept == path.with_name(f"{path.stem}.{old.key_id[:8]}.pem")
    passphrase = derived_passphrase(desk.master)
    assert type(holder).load(change.kept, passphrase).key_id == old.key_id
    for file in (path, change.kept):
        assert file.stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED" in file.read_bytes()
    assert not list(path.parent.glob("*.next.pem"))
    assert {key.id for key in desk.key_list().keys} == {old.key_id, change.key_id}


@pytest.mark.parametrize("role", KeyRole)
@pytest.mark.parametrize("moment", [BEFORE_RENAME, BEFORE_KEEPING])
def test_a_rotation_that_broke_off_after_the_commit_is_ended_by_the_next_one(desk, role, moment):
    holder = desk.holder(role)
    old = holder.key_id
    with running_out_of_luck(desk, moment) as run:
        run(f"custodian.rotate(KeyRole({str(role)!r}), datetime.timedelta(days=7))")
    assert len(desk.registered()) == 2
    # Services go on with the old key, which still counts.
    with desk.sessions.begin() as session:
        log = repository.open_log(session)
        assert keyring.require_active(session, role, holder, log).key_id == old
    change = desk.custodian.rotate(role, WEEK)
    assert change.resumed
    assert holder.key_id == change.key_id != old
    assert desk.registered() == {old, change.key_id}
    assert change.kept is not None
    # And the one after it is a rotation again.
    assert not desk.custodian.rotate(role, WEEK).resumed
    assert len(desk.registered()) == 3


def test_a_rotation_that_broke_off_before_the_commit_has_not_happened(desk):
    old = desk.signer.key_id
    with running_out_of_luck(desk, BEFORE_COMMIT) as run:
        run("custodian.rotate(KeyRole.RECORDS, datetime.timedelta(days=7))")
    assert desk.registered() == set()
    assert desk.signer.key_id == old
    (aside,) = desk.file(KeyRole.RECORDS).parent.glob("signing.next.pem")
    made = Signer.load(aside, derived_passphrase(desk.master)).key_id
    change = desk.custodian.rotate(KeyRole.RECORDS, WEEK)
    assert (change.key_id, change.resumed) == (made, False)
    assert desk.registered() == {old, made}


def test_two_operators_at_the_same_time_rotate_one_after_the_other(desk):
    first = desk.signer.key_id
    with ThreadPoolExecutor(4) as pool:
        changes = list(pool.map(lambda _: desk.custodian.rotate(KeyRole.RECORDS, WEEK), range(4)))
    assert len({change.key_id for change in changes}) == 4
    assert desk.registered() == {first} | {change.key_id for change in changes}
    assert [event for _, event, _ in desk.events()].count("signing-key.rotated") == 4
    with desk.sessions() as session:
        active = keyring.active_key(session, KeyRole.RECORDS, repository.open_log(session))
    assert active.id == desk.signer.key_id


def test_every_record_verifies_that_is_signed_while_keys_are_rotated(desk, new_record):
    before = [desk.issue(new_record) for _ in range(2)]
    early = [desk.bundle(request_id) for request_id in before]
    old_list = desk.trusted()
    stop = threading.Event()

    def work():
        done = []
        while not stop.is_set():
            done.append(desk.issue(new_record))
            desk.notary.sign()
        return done

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(work) for _ in range(3)]
        for _, role in itertools.product(range(3), KeyRole):
            desk.custodian.rotate(role, WEEK)
        stop.set()
        during = [request_id for work in working for request_id in work.result()]
    new_list = desk.trusted()
    assert len(desk.registered()) == 8
    for request_id in before + during:
        assert problems(desk.bundle(request_id), new_list) == []
    for bundle in early:
        assert problems(bundle, old_list) == []
        assert problems(bundle, new_list) == []


def test_checkpoints_of_the_overlap_verify_with_the_old_key_list(desk):
    first = desk.notary.sign()
    old = set(desk.trusted().of_log(desk.settings.log_origin))
    desk.custodian.rotate(KeyRole.CHECKPOINTS, WEEK)
    second = desk.notary.sign()
    assert second.size > first.size  # the rotation is in the log
    new = set(desk.trusted().of_log(desk.settings.log_origin))
    assert set(open_note(second.note, old)[1]) == old
    assert set(open_note(second.note, new)[1]) == new
    desk.custodian.rotate(KeyRole.CHECKPOINTS, datetime.timedelta(0))
    third = desk.notary.sign()
    ids = {key.id: key for key in desk.key_list().keys}
    signers = open_note(third.note, set(desk.trusted().of_log(desk.settings.log_origin)))[1]
    # The first still counts, the second ended at once, the third signs.
    assert len(signers) == 2
    assert desk.checkpoint_signer.note_key(desk.settings.log_origin) in signers
    assert len(ids) == 3


def in_environment(desk, **names):
    """Return the deployment with keys in the environment instead of their files."""
    values = {}
    for role, name in ((KeyRole.RECORDS, "signing_key"), (KeyRole.CHECKPOINTS, "log_key")):
        if name in names:
            values |= {name: names[name], f"{name}_file": None}
        else:
            values[f"{name}_file"] = desk.file(role)
    master = {"master_key_file": desk.settings.master_key_file}
    settings = type(desk.settings).model_validate(desk.settings.model_dump() | master | values)
    return Desk(desk.sessions, settings, desk.directory)


def test_a_key_of_the_environment_is_written_out_for_its_operator(desk):
    pem = desk.file(KeyRole.RECORDS).read_text()
    there = in_environment(desk, signing_key=pem)
    old = there.signer.key_id
    change = there.custodian.rotate(KeyRole.RECORDS, WEEK)
    assert (change.installed, change.resumed) == (False, False)
    assert change.path == desk.directory / "signing.next.pem"
    # Asked again before anything was done about it, it says the same.
    again = there.custodian.rotate(KeyRole.RECORDS, WEEK)
    assert (again.key_id, again.resumed) == (change.key_id, True)
    assert there.registered() == {old, change.key_id}
    installed = in_environment(desk, signing_key=change.path.read_text())
    assert installed.signer.key_id == change.key_id
    following = installed.custodian.rotate(KeyRole.RECORDS, WEEK)
    assert not following.resumed
    assert installed.registered() == {old, change.key_id, following.key_id}


def test_a_key_that_cannot_be_read_is_not_rotated(desk):
    desk.file(KeyRole.RECORDS).write_bytes(b"no key")
    with pytest.raises(SigningKeyError, match="not a PEM private key"):
        desk.custodian.rotate(KeyRole.RECORDS, WEEK)
    desk.file(KeyRole.RECORDS).unlink()
    with pytest.raises(SigningKeyError, match="does not exist"):
        desk.custodian.rotate(KeyRole.RECORDS, WEEK)
    assert desk.registered() == set()


def test_a_folder_that_is_not_there_is_named(desk, tmp_path):
    settings = desk.settings.model_copy(
        update={"signing_key_file": tmp_path / "gone" / "signing.pem"}
    )
    with pytest.raises(SigningKeyError, match=r"gone: there is no such folder"):
        Custodian(desk.sessions, settings, tmp_path).rotate(KeyRole.RECORDS, WEEK)


def test_a_file_that_cannot_be_written_is_told_with_its_remedy(desk):
    # No permission stops root, but the new file's name is too long to be one.
    path = desk.file(KeyRole.RECORDS)
    longer = path.rename(path.with_name(f"{'x' * 248}.pem"))
    settings = desk.settings.model_copy(update={"signing_key_file": longer})
    with pytest.raises(SigningKeyError, match=r"File name too long; keys are replaced by a user"):
        Custodian(desk.sessions, settings, desk.directory).rotate(KeyRole.RECORDS, WEEK)
    assert desk.registered() == set()


def test_keys_that_an_older_key_file_replaced_do_not_come_back(desk):
    path = desk.file(KeyRole.RECORDS)
    backup = path.read_bytes()
    desk.custodian.rotate(KeyRole.RECORDS, datetime.timedelta(0))
    path.write_bytes(backup)
    with desk.sessions.begin() as session:
        log = repository.open_log(session)
        with pytest.raises(KeyNotInForceError, match="has ended at"):
            keyring.require_active(session, KeyRole.RECORDS, desk.signer, log)
    with pytest.raises(KeyNotInForceError, match="has ended at"):
        desk.custodian.rotate(KeyRole.RECORDS, WEEK)


@pytest.mark.parametrize("role", KeyRole)
def test_after_a_compromise_records_of_the_closed_log_stay_deliverable(desk, new_record, role):
    covered, uncovered = desk.issue(new_record), None
    kept = desk.notary.sign()
    early = desk.bundle(covered)
    uncovered = desk.issue(new_record)  # no checkpoint covers it when the log is closed
    lost = desk.holder(role).key_id
    other = desk.holder(next(one for one in KeyRole if one != role)).key_id
    done = desk.custodian.revoke_compromised(lost[:8], "stolen laptop")
    assert done.new_origin == f"{desk.settings.log_origin}/2"
    assert done.unsigned == ()
    assert KeyRole.CHECKPOINTS in {change.role for change in done.changes}
    assert (other == desk.signer.key_id) == (role == KeyRole.CHECKPOINTS)
    with desk.sessions() as session:
        closed = repository.find_log(session, 1)
        assert repository.newest_checkpoint(session, 1).size == closed.size
    # The compromised key alone convinces nobody; a checkpoint that was kept does.
    trusted = desk.trusted()
    for bundle in (early, desk.bundle(covered)):
        assert problems(bundle, trusted) != []
    with desk.sessions() as session:
        record = service.find_record(session, covered)
        again = service.bundle(session, record, desk.notary, since=kept.size)
    assert problems(json.dumps(again).encode(), trusted, since=kept.note) == []
    found = problems(desk.bundle(uncovered), trusted)
    assert any("compromised" in check.sentence for check in found)
    # And the service goes on.
    later = desk.bundle(desk.issue(new_record))
    assert problems(later, desk.trusted()) == []


@pytest.mark.parametrize("moment", [BEFORE_COMMIT, BEFORE_RENAME])
def test_a_revocation_that_broke_off_is_ended_by_the_next_one(desk, new_record, moment):
    request_id = desk.issue(new_record)
    desk.notary.sign()
    desk.issue(new_record)
    lost = desk.signer.key_id
    with running_out_of_luck(desk, moment) as run:
        run(f"custodian.revoke_compromised({lost!r}, 'stolen')")
    with desk.sessions() as session:
        closed = [log.id for log in repository.logs(session) if log.closed_at is not None]
    assert closed == ([] if moment == BEFORE_COMMIT else [1])
    done = desk.custodian.revoke_compromised(lost, "stolen")
    assert {change.role for change in done.changes} == set(KeyRole)
    assert all(change.resumed == (moment == BEFORE_RENAME) for change in done.changes)
    assert desk.signer.key_id != lost
    assert len(desk.registered()) == 4
    with desk.sessions() as session:
        assert [log.origin for log in repository.logs(session)] == [
            desk.settings.log_origin,
            f"{desk.settings.log_origin}/2",
        ]
        closed_log = repository.find_log(session, 1)
        assert repository.newest_checkpoint(session, 1).size == closed_log.size
    assert desk.bundle(request_id)
    assert problems(desk.bundle(desk.issue(new_record)), desk.trusted()) == []
    with pytest.raises(SigningKeyError, match="already; the open log is"):
        desk.custodian.revoke_compromised(lost, "stolen")


def test_a_lost_key_for_checkpoints_is_replaced_with_a_new_log(desk, new_record):
    desk.issue(new_record)
    desk.notary.sign()
    desk.issue(new_record)
    lost = desk.checkpoint_signer.pinned().key_id
    path = desk.file(KeyRole.CHECKPOINTS)
    path.write_bytes(b"scrambled by a broken disk")
    done = desk.custodian.revoke_compromised(lost, "lost")
    assert done.unsigned == (desk.settings.log_origin,)
    (scrambled,) = path.parent.glob("log.unreadable-*.pem")
    assert scrambled.read_bytes() == b"scrambled by a broken disk"
    assert desk.checkpoint_signer.key_id != lost
    assert problems(desk.bundle(desk.issue(new_record)), desk.trusted()) == []


def test_the_last_checkpoint_is_made_up_for_when_the_key_is_found_again(desk, new_record):
    request_id = desk.issue(new_record)
    desk.notary.sign()
    desk.issue(new_record)
    lost, path = desk.checkpoint_signer.key_id, desk.file(KeyRole.CHECKPOINTS)
    content = path.read_bytes()
    path.unlink()
    assert desk.custodian.revoke_compromised(lost, "lost").unsigned
    path.with_name(f"log.{lost[:8]}.pem").write_bytes(content)
    done = desk.custodian.revoke_compromised(lost, "lost")
    assert (done.changes, done.new_origin, done.unsigned) == ((), None, ())
    with desk.sessions() as session:
        closed = repository.find_log(session, 1)
        assert repository.newest_checkpoint(session, 1).size == closed.size
    assert desk.bundle(request_id)


def test_the_end_of_a_log_that_was_tampered_with_is_not_signed_but_the_service_goes_on(
    desk, new_record
):
    desk.issue(new_record)
    desk.notary.sign()
    lost = desk.checkpoint_signer.pinned().key_id
    with desk.sessions.begin() as session:
        for statement in (
            "ALTER TABLE audit_entry DISABLE TRIGGER ALL",
            "UPDATE audit_entry SET subtrees = decode(repeat('00', octet_length(subtrees)), 'hex')",
            "ALTER TABLE audit_entry ENABLE TRIGGER ALL",
        ):
            session.execute(text(statement))
    with pytest.raises(InconsistentLogError, match="its end is not signed"):
        desk.custodian.revoke_compromised(lost, "stolen, and used")
    assert desk.checkpoint_signer.key_id != lost
    assert desk.notary.sign().note.startswith(f"{desk.settings.log_origin}/2\n")
    with desk.sessions() as session:
        closed = repository.find_log(session, 1)
        assert repository.newest_checkpoint(session, 1).size < closed.size


def test_a_service_that_has_signed_nothing_yet_can_start_over(desk):
    with desk.sessions.begin() as session:
        log = repository.open_log(session)
        log.origin = desk.settings.log_origin
        keyring.require_active(session, KeyRole.CHECKPOINTS, desk.checkpoint_signer, log)
    done = desk.custodian.revoke_compromised(desk.checkpoint_signer.key_id, "stolen")
    assert [change.role for change in done.changes] == [KeyRole.CHECKPOINTS]
    (opened,) = [payload for _, event, payload in desk.events() if event == "log.opened"]
    assert [key["role"] for key in opened["keys"]] == ["checkpoints"]


def test_a_key_of_a_closed_log_is_published_as_compromised_without_closing_another(desk):
    desk.notary.sign()
    first = desk.checkpoint_signer.key_id
    with desk.sessions.begin() as session:
        log = repository.open_log(session)
        keyring.require_active(session, KeyRole.RECORDS, desk.signer, log)
    desk.custodian.revoke_compromised(desk.signer.key_id, "stolen")
    done = desk.custodian.revoke_compromised(first, "stolen, too")
    assert (done.changes, done.new_origin) == ((), None)
    assert {key.id: key.compromised for key in desk.key_list().keys}[first]
    with desk.sessions() as session:
        assert len(repository.logs(session)) == 2


def test_plain_key_files_are_encrypted_in_place(desk):
    path = desk.file(KeyRole.RECORDS)
    before = desk.signer.key_id
    path.unlink()
    plain = Signer.generate(path)
    assert b"ENCRYPTED" not in path.read_bytes()
    assert desk.custodian.encrypt() == [path]
    assert b"ENCRYPTED" in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert desk.signer.key_id == plain.key_id != before
    assert desk.custodian.encrypt() == []
    # There is nothing to encrypt of what is in the environment.
    there = in_environment(desk, signing_key=path.read_text())
    assert there.custodian.encrypt() == []


def test_no_file_beside_the_database_holds_a_private_key_in_clear(desk, new_record):
    desk.issue(new_record)
    keys = [desk.signer.pinned(), desk.checkpoint_signer.pinned()]
    for role in KeyRole:
        desk.custodian.rotate(role, WEEK)
    desk.custodian.revoke_compromised(desk.signer.key_id, "stolen")
    keys += [desk.signer.pinned(), desk.checkpoint_signer.pinned()]
    raws = [key._held.private_key.private_bytes_raw() for key in keys]
    forms = [form for raw in raws for form in (raw, raw.hex().encode(), base64.b64encode(raw)[:42])]
    files = [path for path in desk.directory.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".pem"]) == 6
    for path in files:
        content = path.read_bytes()
        assert not any(form in content for form in forms), path
        # The tail of plain PKCS #8 in base64, where 16 bytes of a header come before.
        assert b"BEGIN PRIVATE KEY" not in content
    with desk.sessions() as session:
        notes = session.scalars(select(AuditCheckpoint.note)).all()
    assert not any("PRIVATE" in note for note in notes)
