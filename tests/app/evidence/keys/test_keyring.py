import datetime
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from app.errors import KeyNotInForceError
from app.evidence import repository
from app.evidence.formats import SignedEnvelope
from app.evidence.keys import keyring
from app.evidence.keys.keyring import NewKeys, require_active, rotate
from app.evidence.keys.keysources import SigningKeyError
from app.evidence.keys.signing import CheckpointSigner, Signer, Verifier, key_id_of
from app.evidence.keys.trust import TrustedKeys, read_key_list
from app.evidence.log import append, lock_open_log
from app.evidence.models import AuditEntry, AuditLog, KeyRole, SigningKey
from app.evidence.transparency.merkle import root_at
from app.evidence.transparency.notes import NoteKey, open_note

ORIGIN = "tests.lethe/audit"
WEEK = datetime.timedelta(days=7)


def new_key():
    return Ed25519PrivateKey.generate()


@pytest.fixture
def log(session):
    found = lock_open_log(session)
    found.origin = ORIGIN
    session.flush()
    return found


@pytest.fixture
def records():
    return Signer(new_key())


@pytest.fixture
def checkpoints():
    return CheckpointSigner(new_key())


def events(session, log):
    """Return what the entries of a log say, without those of other tests' subjects."""
    bodies = session.scalars(
        select(AuditEntry.body).where(AuditEntry.log_id == log.id).order_by(AuditEntry.index)
    )
    return [json.loads(body) for body in bodies]


def test_the_first_key_of_a_role_introduces_itself_once(session, log, records, checkpoints):
    assert require_active(session, KeyRole.RECORDS, records, log).key_id == records.key_id
    assert require_active(session, KeyRole.CHECKPOINTS, checkpoints, log).key_id
    size = log.size
    require_active(session, KeyRole.RECORDS, records, log)
    require_active(session, KeyRole.CHECKPOINTS, checkpoints, log)
    assert log.size == size
    first, second = events(session, log)[-2:]
    assert first["event"] == second["event"] == "signing-key.introduced"
    assert first["subject"] == {"signing_key": records.key_id}
    assert first["payload"]["public_key"] == records.public_pem().decode()
    assert (second["payload"]["role"], second["payload"]["origin"]) == ("checkpoints", ORIGIN)


def test_a_first_key_counts_from_the_beginning_of_the_log(session, log, records):
    append(session, "tried", subject={}, payload={})
    first = repository.find_entry(session, log.id, 0)
    require_active(session, KeyRole.RECORDS, records, log)
    (key,) = keyring.key_list(session).keys
    assert key.valid_from <= first.created_at
    assert key.valid_until is None


def test_another_key_than_the_known_one_may_not_sign(session, log, records, checkpoints):
    require_active(session, KeyRole.RECORDS, records, log)
    require_active(session, KeyRole.CHECKPOINTS, checkpoints, log)
    size = log.size
    with pytest.raises(KeyNotInForceError) as caught:
        require_active(session, KeyRole.RECORDS, Signer(new_key()), log)
    assert f"Put back the one that is: key {records.key_id[:16]}" in caught.value.remedy
    stranger = CheckpointSigner(new_key())
    with pytest.raises(KeyNotInForceError, match=r"LOG_KEY: key .* is not known to the log tests"):
        require_active(session, KeyRole.CHECKPOINTS, stranger, log)
    with pytest.raises(KeyNotInForceError, match="is not known"):
        keyring.sign_checkpoint(session, stranger, log, f"{ORIGIN}\n")
    assert log.size == size


def test_a_log_without_a_name_is_not_signed(session, checkpoints):
    log = lock_open_log(session)
    require_active(session, KeyRole.CHECKPOINTS, checkpoints, log)
    with pytest.raises(ValueError, match="has none yet"):
        keyring.sign_checkpoint(session, checkpoints, log, "x\n")


def test_a_key_of_one_role_may_not_sign_for_the_other(session, log):
    key = new_key()
    require_active(session, KeyRole.RECORDS, Signer(key), log)
    # Not even as the first one.
    with pytest.raises(KeyNotInForceError, match="is the one for records"):
        require_active(session, KeyRole.CHECKPOINTS, CheckpointSigner(key), log)
    found = keyring.objection(session, KeyRole.CHECKPOINTS, key_id_of(key.public_key()))
    assert "is the one for records" in found.detail
    require_active(session, KeyRole.CHECKPOINTS, CheckpointSigner(new_key()), log)
    with pytest.raises(
        KeyNotInForceError, match="is the one for records and may not sign checkpoint"
    ):
        require_active(session, KeyRole.CHECKPOINTS, CheckpointSigner(key), log)


def test_processes_that_start_at_the_same_time_introduce_a_key_once(fresh_engine, records):
    from app.db import make_sessions  # noqa: PLC0415

    sessions = make_sessions(fresh_engine)

    def start(_number):
        with sessions.begin() as session:
            log = repository.open_log(session)
            return require_active(session, KeyRole.RECORDS, records, log).key_id

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(start, range(16))) == {records.key_id}
    with sessions() as session:
        log = repository.open_log(session)
        assert [entry["event"] for entry in events(session, log)] == ["signing-key.introduced"]


@pytest.mark.parametrize("role", KeyRole)
def test_a_successor_is_endorsed_and_its_predecessor_counts_for_a_while(session, log, role):
    old, new = new_key(), new_key()
    key = rotate(session, role, old, new.public_key(), overlap=WEEK, first_origin=ORIGIN)
    session.flush()
    holder = Signer if role == KeyRole.RECORDS else CheckpointSigner
    for one in (old, new):
        require_active(session, role, holder(one), log)
    introduced, rotated = events(session, log)[-2:]
    assert introduced["event"] == "signing-key.introduced"  # it had not signed anything yet
    assert rotated["event"] == "signing-key.rotated"
    envelope = SignedEnvelope.model_validate(rotated["payload"]["endorsement"])
    payload = Verifier(holder(old).public_pem()).open(envelope, keyring.ROTATION_TYPE)
    stated = json.loads(payload)
    assert stated == {
        "origin": ORIGIN,
        "role": role,
        "old_id": key_id_of(old.public_key()),
        "new_id": key.id,
        "new_public_key": holder(new).public_pem().decode(),
        "valid_from": rotated["payload"]["valid_from"],
    }
    before, after = keyring.key_list(session).keys
    assert (before.id, after.id) == (stated["old_id"], stated["new_id"])
    assert before.valid_until - after.valid_from == WEEK
    assert after.endorsement == envelope
    assert list(keyring.overlapping(session, role, log)) == [before.id]


def test_only_the_active_key_is_replaced(session):
    old, new = new_key(), new_key()
    rotate(session, KeyRole.RECORDS, old, new.public_key(), overlap=WEEK, first_origin=ORIGIN)
    with pytest.raises(KeyNotInForceError, match="has been replaced already"):
        rotate(
            session, KeyRole.RECORDS, old, new_key().public_key(), overlap=WEEK, first_origin=ORIGIN
        )
    with pytest.raises(KeyNotInForceError, match="is not known to the log"):
        rotate(
            session,
            KeyRole.RECORDS,
            new_key(),
            new_key().public_key(),
            overlap=WEEK,
            first_origin=ORIGIN,
        )


def test_a_key_that_has_ended_or_was_revoked_may_not_sign(session, log):
    first, second, third = new_key(), new_key(), new_key()
    for old, new, overlap in (
        (first, second, datetime.timedelta(0)),
        (second, third, WEEK),
    ):
        rotate(
            session,
            KeyRole.RECORDS,
            old,
            new.public_key(),
            overlap=overlap,
            first_origin=ORIGIN,
        )
    short = key_id_of(third.public_key())[:16]
    with pytest.raises(KeyNotInForceError, match="has ended at") as caught:
        require_active(session, KeyRole.RECORDS, Signer(first), log)
    assert f"the one that signs now: key {short}" in caught.value.remedy
    require_active(session, KeyRole.RECORDS, Signer(second), log)
    keyring.revoke(session, key_id_of(second.public_key()), "left the company")
    with pytest.raises(KeyNotInForceError, match="was revoked at"):
        require_active(session, KeyRole.RECORDS, Signer(second), log)
    entry = events(session, log)[-1]
    assert entry["event"] == "signing-key.revoked"
    assert entry["payload"]["reason"] == "left the company"
    with pytest.raises(SigningKeyError, match="was revoked already"):
        keyring.revoke(session, key_id_of(second.public_key()), "again")
    with pytest.raises(SigningKeyError, match="lethe keys rotate --role records"):
        keyring.revoke(session, key_id_of(third.public_key()), "too soon")
    with pytest.raises(SigningKeyError, match="lethe keys list"):
        keyring.revoke(session, "0" * 64, "unknown")


def test_checkpoints_are_signed_by_the_former_key_too_while_it_counts(session, log, tmp_path):
    former = CheckpointSigner.generate(tmp_path / "log.pem", b"a passphrase of some length")
    old_id, old_note_key = former.key_id, former.note_key(ORIGIN)
    require_active(session, KeyRole.CHECKPOINTS, former, log)
    new = CheckpointSigner.generate(tmp_path / "next.pem", b"a passphrase of some length")
    rotate(
        session,
        KeyRole.CHECKPOINTS,
        former.pinned()._held.private_key,
        new.public_key(),
        overlap=WEEK,
        first_origin=ORIGIN,
    )
    (tmp_path / "log.pem").rename(tmp_path / f"log.{old_id[:8]}.pem")
    (tmp_path / "next.pem").rename(tmp_path / "log.pem")
    note = keyring.sign_checkpoint(session, former, log, f"{ORIGIN}\n1\nAAAA\n")
    for known in (old_note_key, new.note_key(ORIGIN)):
        assert open_note(note, [known])[1] == (known,)
    keyring.revoke(session, old_id, "over")
    note = keyring.sign_checkpoint(session, former, log, f"{ORIGIN}\n1\nAAAA\n")
    assert open_note(note, [old_note_key, new.note_key(ORIGIN)])[1] == (new.note_key(ORIGIN),)


@pytest.fixture
def compromised(session, log, records, checkpoints):
    """A log that was closed as its key for checkpoints was compromised; its and the new one."""
    require_active(session, KeyRole.RECORDS, records, log)
    require_active(session, KeyRole.CHECKPOINTS, checkpoints, log)
    fresh = CheckpointSigner(new_key())
    opened = keyring.start_over(
        session,
        checkpoints.key_id,
        "stolen laptop",
        NewKeys(fresh.public_key(), None),
        first_origin=ORIGIN,
    )
    return log, opened, fresh


def test_a_compromised_key_ends_its_log_and_the_next_begins_with_that_end(
    session, compromised, records, checkpoints
):
    closed, opened, fresh = compromised
    assert closed.closed_at is not None
    assert opened.origin == f"{ORIGIN}/2"
    assert repository.open_log(session).id == opened.id
    last, first = events(session, closed)[-1], events(session, opened)[0]
    assert last["event"] == "log.closed"
    assert last["payload"] == {
        "compromised": {
            "id": checkpoints.key_id,
            "role": "checkpoints",
            "reason": "stolen laptop",
        },
        "next_origin": f"{ORIGIN}/2",
    }
    root = root_at(closed.size, repository.fetch_nodes(session, closed.id))
    assert first["event"] == "log.opened"
    assert first["payload"]["previous"] == {
        "origin": ORIGIN,
        "size": closed.size,
        "root": root.hex(),
    }
    published = {(key["role"], key["id"]) for key in first["payload"]["keys"]}
    assert published == {("records", records.key_id), ("checkpoints", fresh.key_id)}


def test_a_compromised_key_signs_neither_the_old_log_nor_the_new_one(
    session, compromised, records, checkpoints
):
    _closed, opened, fresh = compromised
    with pytest.raises(KeyNotInForceError, match="is that of a log that was closed"):
        require_active(session, KeyRole.CHECKPOINTS, checkpoints, opened)
    with pytest.raises(KeyNotInForceError, match="is that of a log that was closed"):
        keyring.sign_checkpoint(session, checkpoints, opened, f"{ORIGIN}/2\n")
    require_active(session, KeyRole.CHECKPOINTS, fresh, opened)
    require_active(session, KeyRole.RECORDS, records, opened)
    with pytest.raises(SigningKeyError, match="published as compromised already"):
        keyring.start_over(
            session,
            checkpoints.key_id,
            "again",
            NewKeys(new_key().public_key(), None),
            first_origin=ORIGIN,
        )


def test_the_key_list_tells_which_key_was_compromised_and_whose_log_it_signed(
    session, compromised, checkpoints
):
    _closed, _opened, fresh = compromised
    found = keyring.key_list(session)
    keys = {key.id: key for key in found.keys}
    assert keys[checkpoints.key_id].compromised
    assert keys[checkpoints.key_id].revoked_at is not None
    assert keys[checkpoints.key_id].origin == ORIGIN
    assert (keys[fresh.key_id].origin, keys[fresh.key_id].compromised) == (f"{ORIGIN}/2", False)
    # As a file, read as verifiers read it.
    assert read_key_list(found.model_dump_json().encode()) == found
    trusted = TrustedKeys.of(found)
    assert set(trusted.of_log(f"{ORIGIN}/2")) == {
        NoteKey.from_public(f"{ORIGIN}/2", fresh.public_key())
    }


def test_a_compromised_key_for_records_is_replaced_with_the_log(session, log, records, checkpoints):
    require_active(session, KeyRole.RECORDS, records, log)
    require_active(session, KeyRole.CHECKPOINTS, checkpoints, log)
    with pytest.raises(ValueError, match="needs a successor"):
        keyring.start_over(
            session,
            records.key_id,
            "x",
            NewKeys(new_key().public_key(), None),
            first_origin=ORIGIN,
        )
    successor = Signer(new_key())
    opened = keyring.start_over(
        session,
        records.key_id,
        "x",
        NewKeys(new_key().public_key(), successor.public_key()),
        first_origin=ORIGIN,
    )
    require_active(session, KeyRole.RECORDS, successor, opened)
    with pytest.raises(KeyNotInForceError, match="was revoked"):
        require_active(session, KeyRole.RECORDS, records, opened)
    # The old log's other key is not compromised: it has just ended.
    row = session.get(SigningKey, checkpoints.key_id)
    assert (row.compromised, row.revoked_at) == (False, None)
    assert row.valid_until is not None


def test_a_key_of_a_closed_log_can_be_published_as_compromised_later(
    session, log, records, checkpoints
):
    require_active(session, KeyRole.RECORDS, records, log)
    require_active(session, KeyRole.CHECKPOINTS, checkpoints, log)
    new = NewKeys(new_key().public_key(), new_key().public_key())
    opened = keyring.start_over(session, records.key_id, "x", new, first_origin=ORIGIN)
    keyring.mark_compromised(session, checkpoints.key_id, "found for sale")
    assert session.get(SigningKey, checkpoints.key_id).compromised
    assert events(session, opened)[-1]["payload"] == {
        "role": "checkpoints",
        "reason": "found for sale",
        "compromised": True,
    }
    with pytest.raises(SigningKeyError, match="already"):
        keyring.mark_compromised(session, checkpoints.key_id, "again")


def test_a_look_ahead_says_what_signing_would_and_writes_nothing(session, log, records):
    size = log.size
    assert keyring.objection(session, KeyRole.RECORDS, records.key_id) is None  # would introduce
    assert log.size == size
    require_active(session, KeyRole.RECORDS, records, log)
    assert keyring.objection(session, KeyRole.RECORDS, records.key_id) is None
    assert "is not known" in str(keyring.objection(session, KeyRole.RECORDS, "0" * 64))


def test_a_clock_that_was_set_back_is_named_instead_of_the_key(session, log, records):
    require_active(session, KeyRole.RECORDS, records, log)
    fresh = Signer(new_key())
    session.add(
        SigningKey(
            id=fresh.key_id,
            role="records",
            public_key=fresh.public_der(),
            valid_from=repository.database_time(session) + WEEK,
        )
    )
    session.flush()
    found = keyring.objection(session, KeyRole.RECORDS, fresh.key_id)
    assert "counts from" in found.detail
    assert "clock" in found.remedy


def test_names_of_logs_are_numbered_from_the_first(session, log, records, checkpoints):
    require_active(session, KeyRole.RECORDS, records, log)
    require_active(session, KeyRole.CHECKPOINTS, checkpoints, log)
    active = checkpoints.key_id
    for number in (2, 3):
        fresh = new_key().public_key()
        opened = keyring.start_over(
            session, active, "x", NewKeys(fresh, None), first_origin="other.example/audit"
        )
        active = key_id_of(fresh)
        assert opened.origin == f"{ORIGIN}/{number}"
        assert keyring.origin_finding(opened.origin, ORIGIN) is None
    assert keyring.origin_finding(None, ORIGIN) is None
    assert keyring.origin_finding(ORIGIN, ORIGIN) is None
    for stranger in ("other.example/audit", f"{ORIGIN}/x", f"{ORIGIN}2"):
        assert "LOG_ORIGIN" in keyring.origin_finding(stranger, ORIGIN)


def test_a_key_is_found_by_the_beginning_of_its_id(session, log, records):
    require_active(session, KeyRole.RECORDS, records, log)
    for text in (records.key_id, records.key_id[:8], records.key_id[:12].upper()):
        assert keyring.find_key(session, text).id == records.key_id
    for text in (records.key_id[:7], "0" * 64, ""):
        with pytest.raises(SigningKeyError, match="lethe keys list"):
            keyring.find_key(session, text)


def test_logs_are_one_open_and_the_rest_closed(session, compromised):
    closed, opened, _fresh = compromised
    rows = session.scalars(select(AuditLog).order_by(AuditLog.id)).all()
    assert [(row.id, row.closed_at is None) for row in rows] == [
        (closed.id, False),
        (opened.id, True),
    ]
