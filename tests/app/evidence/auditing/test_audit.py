"""The tree of one log, altered in every place; then whole databases.

`tests/e2e/test_tampering.py` does the same to the database of a real service.
"""

import datetime
import hashlib
import itertools
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select, text
from sqlalchemy.orm import Session

import migrations
from app.artifacts.models import Artifact
from app.db import make_engine, make_sessions
from app.evidence import log
from app.evidence._fields import write_time
from app.evidence.auditing import _tree, verify_log
from app.evidence.auditing._findings import Code, Finding
from app.evidence.auditing._tree import End, Mark, TreeAudit
from app.evidence.canonical import canonical_json
from app.evidence.keys import keyring
from app.evidence.keys.signing import (
    CheckpointSigner,
    Signer,
    encode_public_key,
    key_id_of,
    sign_envelope,
)
from app.evidence.keys.trust import TrustedKeys
from app.evidence.models import AuditEntry, AuditLog, KeyRole, SigningKey
from app.evidence.records.schemas import STATEMENT_TYPE
from app.evidence.records.statements import write_document, write_record
from app.evidence.service import issue_record
from app.evidence.transparency.checkpoints import Notary
from app.evidence.transparency.merkle import Frontier, leaf_hash
from app.evidence.transparency.notes import Checkpoint, sign_note

ORIGIN = "tests.lethe/audit"
BEGINNING = datetime.datetime(2026, 3, 1, 12, 0, 0, 250, tzinfo=datetime.UTC)
MOST = 18  # entries; every place of every size up to that


def body_of(index, event="tried", **payload):
    return canonical_json(
        {
            "index": index,
            "time": write_time(time_of(index)),
            "event": event,
            "subject": {"request_id": f"r{index}"},
            "payload": payload,
        }
    )


def time_of(index):
    return BEGINNING + datetime.timedelta(seconds=index)


class Written:
    """A log as the service writes it, as rows that can be altered."""

    def __init__(self, bodies):
        self.rows = []
        self.marks = []
        frontier = Frontier()
        for index, body in enumerate(bodies):
            frontier, completed = frontier.append(leaf_hash(body))
            self.rows.append([index, body, b"".join(completed), time_of(index)])
            self.marks.append(Mark("A checkpoint", frontier.size, frontier.root()))
        self.end = End(frontier.size, frontier.to_bytes())

    @classmethod
    def of(cls, size):
        return cls([body_of(index) for index in range(size)])

    def look(self, *marks):
        taken, doubted, counts = [], [], []
        audit = TreeAudit(
            self.end,
            marks,
            lambda _event, index, _body: taken.append(index),
            lambda _event, index, _body: doubted.append(index),
        )
        audit.read([tuple(row) for row in self.rows], counts.append)
        assert sum(counts) == len(self.rows)
        self.taken, self.doubted, self.root = taken, doubted, audit.root
        return [(finding.code, finding.where) for finding in audit.findings()]


def flipped(content, place=0):
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def places():
    return [(size, index) for size in range(1, MOST) for index in range(size)]


def test_a_sound_log_has_no_findings_and_its_root_is_that_of_its_last_checkpoint():
    assert Written([]).look(Mark("The empty log", 0, Frontier().root())) == []
    for size in range(1, 70):
        written = Written.of(size)
        assert written.look(*written.marks) == []
        assert written.taken == list(range(size))
        assert written.root == written.marks[-1].root


def test_an_altered_text_is_found_where_it_is_and_nowhere_else():
    for size, index in places():
        written = Written.of(size)
        written.rows[index][1] = body_of(index, note="another")
        assert written.look(*written.marks) == [(Code.ENTRY_ALTERED, f"entry {index}")]
        assert written.doubted == [index]


def test_an_altered_hash_is_found_where_it_is_and_nowhere_else():
    for size, index in places():
        for level in range(len(Written.of(size).rows[index][2]) // 32):
            written = Written.of(size)
            written.rows[index][2] = flipped(written.rows[index][2], 32 * level)
            assert written.look(*written.marks) == [(Code.HASH_ALTERED, f"entry {index}")], level
            # By the end of the log alone, too, without any checkpoint.
            assert written.look() == [(Code.HASH_ALTERED, f"entry {index}")]


def test_hashes_of_another_length_are_altered_hashes():
    for size, index in places():
        for damage in (b"", b"x"):
            written = Written.of(size)
            written.rows[index][2] = written.rows[index][2][:-1] + damage * 2
            assert written.look(*written.marks) == [(Code.HASH_ALTERED, f"entry {index}")]


def test_a_text_with_its_own_hash_altered_is_found_by_what_was_made_of_it():
    for size, index in places():
        written = Written.of(size)
        row = written.rows[index]
        row[1] = body_of(index, note="another")
        row[2] = leaf_hash(row[1]) + row[2][32:]
        found = written.look(*written.marks)
        if (index | 1) < size:
            # Which of the two that the node was made of is not known any more.
            assert found == [(Code.ENTRY_ALTERED, f"entries {index & ~1} to {index | 1}")]
        else:
            assert found == [(Code.ENTRY_ALTERED, f"entry {index}")]
            # Without a checkpoint it is the entry's word against that of the log's end.
            assert written.look() == [(Code.HEAD_ALTERED, "its end")]


def test_a_missing_entry_is_found_where_it_was():
    for size, index in places():
        written = Written.of(size)
        del written.rows[index]
        assert written.look(*written.marks) == [(Code.ENTRIES_MISSING, f"entry {index}")]


def test_missing_entries_in_a_row_are_one_finding():
    for size, index in places():
        for count in range(2, size - index + 1):
            written = Written.of(size)
            del written.rows[index : index + count]
            where = f"entries {index} to {index + count - 1}"
            assert written.look(*written.marks) == [(Code.ENTRIES_MISSING, where)]


def test_texts_in_each_others_places_are_reordered_and_not_altered():
    for size in range(2, 12):
        for first, second in itertools.combinations(range(size), 2):
            written = Written.of(size)
            one, other = written.rows[first], written.rows[second]
            one[1], other[1] = other[1], one[1]
            ((code, where),) = written.look(*written.marks)
            assert code is Code.ENTRIES_REORDERED
            assert str(first) in where
            assert str(second) in where


def test_a_text_that_was_moved_and_altered_is_both():
    written = Written.of(9)
    one, other = written.rows[2], written.rows[6]
    one[1], other[1] = body_of(6, note="another"), one[1]
    assert written.look(*written.marks) == [
        (Code.ENTRIES_REORDERED, "entry 2, entry 6"),
        (Code.ENTRY_ALTERED, "entry 2"),
    ]


def test_whole_rows_in_each_others_places_are_reordered():
    for first, second in itertools.combinations(range(9), 2):
        written = Written.of(16)
        one, other = written.rows[first], written.rows[second]
        one[1:], other[1:] = other[1:], one[1:]
        codes = [code for code, _ in written.look()]
        assert codes == [Code.ENTRIES_REORDERED]


def test_a_reordered_log_with_every_hash_computed_anew_is_still_reordered():
    bodies = [body_of(index) for index in range(9)]
    bodies[2], bodies[6] = bodies[6], bodies[2]
    written = Written(bodies)
    assert written.look() == [(Code.ENTRIES_REORDERED, "entry 2, entry 6")]
    honest = Written.of(9)
    assert [code for code, _ in written.look(*honest.marks)] == [
        Code.ENTRIES_REORDERED,
        Code.LOG_FORKED,
    ]


def test_an_entry_put_in_between_is_told_from_one_that_was_taken_out():
    for index in range(8):
        honest = [body_of(place) for place in range(9)]
        more = Written([*honest[:index], body_of(index, note="new"), *honest[index:]])
        assert more.look() == [(Code.ENTRY_INSERTED, f"entry {index}")]
        assert more.doubted == list(range(index + 1, 10))
    for index in range(7):
        honest = [body_of(place) for place in range(9)]
        less = Written([*honest[:index], *honest[index + 1 :]])
        assert less.look() == [(Code.ENTRIES_MISSING, f"entry {index}")]


def test_an_entry_that_names_a_place_beyond_the_log_was_inserted():
    written = Written([body_of(0), body_of(1), body_of(7)])
    assert written.look() == [(Code.ENTRY_INSERTED, "entry 2")]


def test_a_text_that_is_no_entry_was_inserted():
    for junk in (b"junk", b"[]", b'{"index":1}', body_of(1).replace(b'"index":1', b'"index":true')):
        written = Written([body_of(0), junk, body_of(2)])
        assert written.look() == [(Code.ENTRY_INSERTED, "entry 1")]


def test_entries_beyond_the_end_were_inserted_unless_a_checkpoint_covers_them():
    honest = Written.of(9)
    short = Written.of(6)
    honest.end = short.end
    assert honest.look() == [(Code.ENTRY_INSERTED, "entries 6 to 8")]
    assert honest.look(honest.marks[7]) == [(Code.HEAD_ALTERED, "its end")]


def test_an_entry_far_beyond_the_end_is_passed_over_quickly():
    written = Written.of(5)
    written.rows.append([2**62, body_of(5), b"", time_of(5)])
    assert {code for code, _ in written.look(*written.marks)} == {Code.ENTRY_INSERTED}


def test_two_entries_of_one_index_are_one_too_many():
    written = Written.of(5)
    written.rows.insert(3, list(written.rows[2]))
    assert written.look() == [(Code.ENTRY_INSERTED, "entry 2")]


def test_an_altered_time_is_found_unless_the_text_was_altered():
    for size, index in places():
        written = Written.of(size)
        written.rows[index][3] += datetime.timedelta(microseconds=1)
        assert written.look(*written.marks) == [(Code.TIME_ALTERED, f"entry {index}")]
        assert written.taken == list(range(size))


def test_times_are_compared_as_moments_and_not_as_they_are_shown():
    written = Written.of(3)
    elsewhere = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    written.rows[1][3] = written.rows[1][3].astimezone(elsewhere)
    assert written.look(*written.marks) == []


def test_every_rewritten_history_contradicts_every_checkpoint_after_it_and_no_other():
    for size, index in places():
        honest = Written.of(size)
        bodies = [body_of(place) for place in range(size)]
        bodies[index] = body_of(index, note="another")
        forged = Written(bodies)
        for mark in honest.marks:
            found = forged.look(mark)
            if mark.size > index:
                assert found == [(Code.LOG_FORKED, f"entries 0 to {mark.size - 1}")]
            else:
                assert found == []


def test_a_rewritten_history_says_up_to_where_it_still_agrees():
    honest = Written.of(12)
    bodies = [body_of(place) for place in range(12)]
    bodies[7] = body_of(7, note="another")
    audit = TreeAudit(Written(bodies).end, honest.marks, *[lambda *_: None] * 2)
    audit.read([tuple(row) for row in Written(bodies).rows], lambda _: None)
    (finding,) = audit.findings()
    assert finding.where == "entries 0 to 7"
    assert "Up to the 7 entries of a checkpoint nothing was changed" in finding.sentence
    assert "4 more contradict it" in finding.sentence


def test_two_checkpoints_of_one_size_with_two_roots_are_two_histories():
    written = Written.of(6)
    other = Mark("The kept checkpoint", 4, b"\x07" * 32)
    audit = TreeAudit(written.end, [*written.marks, other], *[lambda *_: None] * 2)
    audit.read([tuple(row) for row in written.rows], lambda _: None)
    (finding,) = audit.findings()
    assert finding.code is Code.LOG_FORKED
    assert "the key signed two histories" in finding.sentence


def test_a_checkpoint_of_more_entries_than_there_are_says_that_some_were_cut_off():
    for size, index in places():
        honest = Written.of(size)
        cut = Written.of(index)
        assert cut.look(*honest.marks) == [
            (
                Code.LOG_TRUNCATED,
                f"entry {index}" if index == size - 1 else f"entries {index} to {size - 1}",
            )
        ]


@pytest.mark.parametrize("size", [1, 5, 8, 13])
def test_an_altered_end_is_found(size):
    written = Written.of(size)
    written.end = End(size, flipped(written.end.frontier))
    assert written.look(*written.marks) == [(Code.HEAD_ALTERED, "its end")]
    written.end = End(size, b"")
    assert written.look(*written.marks) == [(Code.HEAD_ALTERED, "its end")]
    larger = Written.of(size)
    larger.end = End(size + (8 if size != 8 else 16), larger.end.frontier)
    codes = [code for code, _ in larger.look(*larger.marks)]
    assert codes[0] in {Code.HEAD_ALTERED, Code.ENTRIES_MISSING}


def test_many_changes_at_once_are_all_found():
    random.seed(4)
    for _ in range(200):
        size = random.randrange(8, 60)
        altered = sorted(random.sample(range(size), 3))
        written = Written.of(size)
        for index in altered:
            written.rows[index][1] = body_of(index, note="another")
        named = set()
        for code, where in written.look(*written.marks):
            assert code is Code.ENTRY_ALTERED
            numbers = [int(word) for word in where.split() if word.isdigit()]
            named |= set(range(numbers[0], numbers[-1] + 1))
        assert named == set(altered)


def test_no_random_damage_goes_unnoticed():
    """Whatever bytes change: something is found, as long as the last checkpoint is at hand."""
    random.seed(5)
    for _ in range(1500):
        size = random.randrange(1, 40)
        written = Written.of(size)
        for _ in range(random.randrange(1, 4)):
            row = random.choice(written.rows)
            column = random.choice([1, 2])
            row[column] = flipped(row[column], random.randrange(len(row[column])))
        if written.rows == Written.of(size).rows:
            continue  # the same byte, twice
        assert written.look(written.marks[-1])


# --- Databases -----------------------------------------------------------------------------------


@pytest.fixture
def sessions(fresh_engine):
    return make_sessions(fresh_engine)


@pytest.fixture
def signers():
    return Signer(Ed25519PrivateKey.generate()), CheckpointSigner(Ed25519PrivateKey.generate())


@pytest.fixture
def notary(sessions, signers):
    return Notary(sessions, signers[1], ORIGIN)


@pytest.fixture
def grow(sessions):
    """Return a function that appends entries to the log."""

    def append(count=1, event="tried", **payload):
        with sessions.begin() as session:
            return log.append_many(
                session, [log.NewEntry(event, {"request_id": "r"}, payload)] * count
            )

    return append


@pytest.fixture
def attack(fresh_engine):
    """Return a function that runs statements as somebody who may switch triggers off."""

    def run(statement, **values):
        tables = {
            "audit_entry": ["audit_entry_append_only"],
            "audit_log": ["audit_log_stays", "audit_log_moves_forward"],
            "audit_checkpoint": ["audit_checkpoint_append_only"],
            "audit_anchor": ["audit_anchor_append_only"],
            "evidence_record": ["evidence_record_append_only"],
            "signing_key": ["signing_key_stays", "signing_key_is_published"],
        }
        with fresh_engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            for table in tables:
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
            connection.execute(text(statement), values)
            for table, triggers in tables.items():
                for trigger in triggers:
                    connection.execute(text(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}"))

    return run


@pytest.fixture
def look(sessions):
    """Return a function that looks at the database, and returns codes and sentences."""

    def verify(*kept, keys=None):
        with sessions() as session:
            report = verify_log(session, keys, kept=kept)
        return [(str(finding.code), finding.sentence) for finding in report.findings]

    return verify


def test_an_empty_log_has_no_findings_and_claims_nothing(sessions):
    with sessions() as session:
        report = verify_log(session)
    assert report.ok
    assert (report.size, report.records, report.weights) == (0, 0, 0)
    assert report.logs[0].root == Frontier().root().hex()


def test_the_protection_of_a_migrated_database_is_what_is_looked_for(look):
    assert look() == []


def test_a_signed_log_agrees_with_stored_and_kept_checkpoints(sessions, grow, notary):
    notes = []
    for _ in range(3):
        grow(3)
        notes.append(notary.sign().note)
    with sessions() as session:
        report = verify_log(session, kept=notes[:2])
    assert report.ok
    (figures,) = report.logs
    assert (figures.size, figures.checkpoints, figures.kept) == (10, 3, 2)
    assert (figures.covered, figures.vouched) == (10, 7)
    assert any("7 of 10 entries" in limit for limit in report.limits())


def test_what_is_committed_during_the_look_waits_for_the_next(sessions, grow, notary):
    grow(5)
    notary.sign()
    seen = []

    def commit_more(what, done, total):
        seen.append((what, done, total))
        grow(7)
        notary.sign()

    with sessions() as session:
        report = verify_log(session, progress=commit_more)
    assert report.ok, report.findings
    assert report.size == 6
    assert ("log 1", 6, 6) in seen
    with sessions() as session:
        assert verify_log(session).size > 6


def test_the_look_writes_nothing(sessions, grow):
    grow()
    with sessions() as session:
        verify_log(session)
        assert session.scalar(text("SHOW transaction_read_only")) == "on"
        assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"


def test_a_session_that_has_begun_is_looked_at_in_its_own_transaction(session):
    log.append(session, "tried", subject={}, payload={})
    report = verify_log(session)
    assert report.ok
    assert report.size == 1


def test_a_kept_note_that_is_none_or_not_signed_is_invalid(grow, notary, look):
    grow()
    notary.sign()
    forged = sign_note(
        Checkpoint(ORIGIN, 1, b"\x01" * 32).text(), [(ORIGIN, Ed25519PrivateKey.generate())]
    )
    assert [code for code, _ in look("junk", forged)] == ["checkpoint-invalid"] * 2


def test_a_kept_checkpoint_of_a_log_that_is_gone_says_so(grow, notary, look, attack, signers):
    grow()
    note = notary.sign().note
    keys = TrustedKeys.read(signers[1].note_key(ORIGIN).vkey().encode())
    attack("UPDATE audit_log SET origin = 'another.name/audit'")
    found = look(note, keys=keys)
    assert found[0][0] == "log-truncated"
    assert "no such log" in found[0][1]
    assert "checkpoint-invalid" in [code for code, _ in found]


def test_with_the_keys_of_others_one_finding_says_so(grow, notary, look):
    for _ in range(3):
        grow()
        notary.sign()
    stranger = CheckpointSigner(Ed25519PrivateKey.generate())
    keys = TrustedKeys.read(stranger.note_key(ORIGIN).vkey().encode())
    ((code, sentence),) = look(keys=keys)
    assert code == "key-unknown"
    assert "None of its 3 checkpoints" in sentence


def test_an_anchored_checkpoint_that_vanished_is_missed(sessions, grow, notary, look, attack):
    grow()
    size = notary.sign().size
    with sessions.begin() as session:
        session.execute(
            text(
                "INSERT INTO audit_anchor (id, log_id, size, kind, target)"
                " VALUES (gen_random_uuid(), 1, :size, 'folder', 'file:///anchors')"
            ),
            {"size": size},
        )
    attack("DELETE FROM audit_checkpoint")
    ((code, sentence),) = look()
    assert code == "checkpoint-invalid"
    assert "file:///anchors" in sentence
    attack("UPDATE audit_anchor SET size = 1000")
    assert [code for code, _ in look()] == ["log-truncated"]


def test_a_log_after_a_compromise_passes_and_vouches_for_the_one_before(
    sessions, grow, notary, look, attack
):
    grow(4)
    notary.sign()
    with sessions.begin() as session:
        session.get_one(AuditLog, 1)
        first = next(key for key in keyring.key_list(session).keys)
        new = keyring.NewKeys(Ed25519PrivateKey.generate().public_key(), None)
        keyring.start_over(session, first.id, "stolen", new, first_origin=ORIGIN)
    grow(2)
    assert look() == []
    with sessions() as session:
        report = verify_log(session)
        assert [figures.size for figures in report.logs] == [6, 3]
        # The second log's first entry covers all of the first.
        assert report.logs[0].covered == 6
        bodies = [
            entry.body
            for entry in session.scalars(
                select(AuditEntry).where(AuditEntry.log_id == 1).order_by(AuditEntry.index)
            )
        ]
    bodies[-1] = bodies[-1].replace(b"stolen", b"missed")
    frontier, forged = Frontier(), []
    for body in bodies:
        frontier, completed = frontier.append(leaf_hash(body))
        forged.append(b"".join(completed))
    attack(
        "UPDATE audit_entry SET body = :body, subtrees = :subtrees WHERE log_id = 1 AND index = 5",
        body=bodies[-1],
        subtrees=forged[-1],
    )
    attack("UPDATE audit_log SET frontier = :f WHERE id = 1", f=frontier.to_bytes())
    ((code, sentence),) = look()
    assert code == "log-forked"
    assert "The end that log 2 names" in sentence


def test_a_log_that_was_reopened_contradicts_its_last_entry(sessions, grow, notary, look, attack):
    grow()
    notary.sign()
    attack("UPDATE audit_log SET closed_at = now()")
    assert [code for code, _ in look()] == ["state-contradicts-log"]
    with sessions.begin() as session:
        session.execute(text("SELECT 1"))


def test_what_somebody_appended_by_hand_and_rightly_is_found_if_it_makes_no_sense(grow, look):
    grow(event="unlearning-request.received", wrong="payload")
    grow(event="model.registered")
    assert [code for code, _ in look()] == ["entry-inserted"] * 2


def test_requests_and_revisions_without_a_beginning_contradict_the_log(sessions, look):
    with sessions.begin() as session:
        log.append(
            session,
            "unlearning-request.started",
            subject={"request_id": "r", "model_id": "m"},
            payload={},
        )
        log.append(
            session,
            "model.revision-added",
            subject={"request_id": "r", "model_id": "m"},
            payload={"revision": 3, "superseded_weights_sha256": "", "weights_sha256": ""},
        )
    assert [code for code, _ in look()] == ["state-contradicts-log"] * 2


def test_rows_that_no_log_knows_contradict_it(sessions, new_request):
    with sessions.begin() as session:
        request = new_request(session)
        where = {f"request {request.id}", f"model {request.model_id}"}
    with sessions() as session:
        findings = verify_log(session).findings
    assert {finding.where for finding in findings} == where
    assert {finding.code for finding in findings} == {Code.STATE_CONTRADICTS_LOG}


def test_rows_that_only_the_log_knows_contradict_it(sessions, look):
    subject = {"model_id": "m", "request_id": "r"}
    payload = {"method": "stored", "sample_count": 1, "sample_commitment": ""}
    with sessions.begin() as session:
        log.append(session, "unlearning-request.received", subject=subject, payload=payload)
        log.append(
            session,
            "model.registered",
            subject=subject,
            payload={"manifest_sha256": "", "weights_sha256": ""},
        )
        log.append(
            session,
            "record.issued",
            subject=subject,
            payload={"kind": "refusal", "record_id": "x", "statement_sha256": ""},
        )
    assert [code for code, _ in look()] == ["record-missing"] + ["state-contradicts-log"] * 2


@pytest.fixture
def issued(sessions, signers, new_request, new_statement):
    """A record and its request's id, in a database that holds nothing else of them."""
    with sessions.begin() as session:
        request = new_request(session)
        record = issue_record(
            session,
            signers[0],
            kind="certificate",
            request=request,
            statement=new_statement(session, request),
        )
        return record.id


def codes_of_records(look, **options):
    """Return the codes of what is wrong with records; requests are not logged here."""
    return [code for code, _ in look(**options) if code != "state-contradicts-log"]


@pytest.mark.usefixtures("issued")
def test_a_sound_record_has_no_findings(look):
    assert codes_of_records(look) == []


@pytest.mark.usefixtures("issued")
@pytest.mark.parametrize("junk", ["junk", "{}", '{"payload":"","payloadType":"","signatures":[]}'])
def test_a_record_that_cannot_be_read_is_altered_and_no_crash(look, attack, junk):
    attack("UPDATE evidence_record SET envelope = convert_to(:junk, 'UTF8')", junk=junk)
    assert codes_of_records(look) == ["record-altered"]


@pytest.mark.usefixtures("issued")
def test_a_record_whose_row_names_another_entry_is_altered(grow, look, attack):
    grow()
    attack("UPDATE evidence_record SET entry_index = 0")
    assert codes_of_records(look) == ["record-altered"]


@pytest.mark.usefixtures("issued")
def test_a_record_that_was_finished_after_its_key_ended_does_not_count(look, attack):
    attack("UPDATE signing_key SET valid_until = valid_from, revoked_at = valid_from")
    assert codes_of_records(look) == ["key-unknown"]


@pytest.mark.usefixtures("issued")
def test_a_record_that_was_logged_before_its_key_began_does_not_count(look, attack):
    attack("UPDATE signing_key SET valid_from = now() + interval '1 day'")
    assert codes_of_records(look) == ["key-unknown"]


@pytest.mark.usefixtures("issued")
def test_records_of_a_compromised_key_are_counted(sessions, signers):
    with sessions.begin() as session:
        keyring.mark_compromised(session, signers[0].key_id, "stolen")
    with sessions() as session:
        report = verify_log(session)
    assert report.compromised == 1
    assert any("marked as compromised" in limit for limit in report.limits())


@pytest.mark.usefixtures("issued")
def test_published_keys_that_cannot_be_read_are_a_finding_and_no_crash(look, attack):
    attack("UPDATE signing_key SET public_key = 'junk'")
    found = look()
    assert any("cannot be used" in sentence for _, sentence in found)
    assert "key-unknown" in [code for code, _ in found]


def test_a_removed_key_contradicts_the_log(grow, notary, look, attack):
    grow()
    notary.sign()
    attack("DELETE FROM signing_key")
    found = look()
    assert any("it is gone" in sentence for _, sentence in found)


def test_a_key_that_is_there_again_contradicts_its_destruction(sessions, look):
    with sessions.begin() as session:
        artifact = Artifact(
            kind="weights",
            location="aa/a",
            size_bytes=1,
            ciphertext_sha256="",
            wrapped_key=b"back again",
        )
        session.add(artifact)
        session.flush()
        log.append(
            session,
            "artifact.keys-destroyed",
            subject={},
            payload={"artifacts": [{"id": str(artifact.id), "kind": "weights"}]},
        )
    ((code, sentence),) = look()
    assert code == "state-contradicts-log"
    assert "was destroyed" in sentence


def test_every_finding_has_a_remedy():
    for code in Code:
        assert Finding(code, "somewhere", "Something.").remedy


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER audit_entry_append_only ON audit_entry",
        "ALTER TABLE evidence_record DISABLE TRIGGER USER",
        "ALTER TABLE audit_log ENABLE TRIGGER audit_log_stays",
        (
            "DROP TRIGGER signing_key_stays ON signing_key; CREATE TRIGGER signing_key_stays BEFORE"
            " DELETE ON signing_key FOR EACH STATEMENT EXECUTE FUNCTION lethe_refuse_change();"
            " ALTER TABLE signing_key ENABLE ALWAYS TRIGGER signing_key_stays"
        ),
        (
            "CREATE OR REPLACE FUNCTION lethe_key_stays() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RETURN NEW; END'"
        ),
        (
            "CREATE TRIGGER quiet BEFORE INSERT ON audit_entry FOR EACH ROW"
            " EXECUTE FUNCTION lethe_key_stays()"
        ),
        "CREATE RULE quiet AS ON INSERT TO evidence_record DO INSTEAD NOTHING",
    ],
)
def test_weaker_protection_than_the_migrations_gave_is_missing(fresh_engine, look, statement):
    with fresh_engine.begin() as connection:
        connection.execute(text(statement))
    assert [code for code, _ in look()] == ["triggers-missing"]


def test_a_rotated_and_a_revoked_key_pass(sessions, grow, notary, look):
    grow()
    notary.sign()
    old = Ed25519PrivateKey.generate()
    with sessions.begin() as session:
        keyring.require_active(session, KeyRole.RECORDS, Signer(old), log.lock_open_log(session))
        new = Ed25519PrivateKey.generate().public_key()
        keyring.rotate(
            session,
            KeyRole.RECORDS,
            old,
            new,
            overlap=datetime.timedelta(days=1),
            first_origin=ORIGIN,
        )
        keyring.revoke(session, key_id_of(old.public_key()), "no longer needed")
    assert look() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE signing_key SET valid_until = NULL WHERE id = :id",
        "UPDATE signing_key SET valid_until = valid_until + interval '1 year' WHERE id = :id",
        "UPDATE signing_key SET valid_until = valid_from WHERE id = :id",
    ],
)
def test_a_key_that_counts_for_another_time_than_the_log_says_is_found(
    sessions, grow, look, attack, statement
):
    grow()
    old = Ed25519PrivateKey.generate()
    with sessions.begin() as session:
        log.lock_open_log(session).origin = ORIGIN
        keyring.require_active(session, KeyRole.RECORDS, Signer(old), log.lock_open_log(session))
        new = Ed25519PrivateKey.generate().public_key()
        week = datetime.timedelta(days=7)
        keyring.rotate(session, KeyRole.RECORDS, old, new, overlap=week, first_origin=ORIGIN)
    assert look() == []
    attack(statement, id=key_id_of(old.public_key()))
    ((code, sentence),) = look()
    assert code == "state-contradicts-log"
    assert "valid_until" in sentence


def introduce(session, key, event, **more):
    """Put a key into the registry as somebody does who can only write to the database."""
    public = key.public_key()
    began = session.scalar(text("SELECT clock_timestamp()"))
    session.add(
        SigningKey(
            id=key_id_of(public),
            role="records",
            public_key=encode_public_key(public),
            valid_from=began,
            compromised=False,
        )
    )
    payload = {
        "role": "records",
        "origin": ORIGIN,
        "public_key": keyring.public_pem(public),
        "valid_from": write_time(began),
    }
    subject = {"signing_key": key_id_of(public)} | more.pop("subject", {})
    log.append(session, event, subject=subject, payload=payload | more)


def test_a_key_that_nobody_endorsed_is_found_although_log_and_table_agree(sessions, look):
    own, forged, again = (Ed25519PrivateKey.generate() for _ in range(3))
    with sessions.begin() as session:
        keyring.require_active(session, KeyRole.RECORDS, Signer(own), log.lock_open_log(session))
    assert look() == []
    with sessions.begin() as session:
        introduce(session, forged, keyring.INTRODUCED)
    ((code, sentence),) = look()
    assert code == "state-contradicts-log"
    assert "another has to be endorsed by that" in sentence
    statement = canonical_json({"new_id": key_id_of(again.public_key())})
    envelope = sign_envelope(forged, keyring.ROTATION_TYPE, statement).model_dump(mode="json")
    for endorsement in (envelope, {}):
        with sessions.begin() as session:
            introduce(
                session,
                Ed25519PrivateKey.generate(),
                keyring.ROTATED,
                subject={"replaces": key_id_of(own.public_key())},
                endorsement=endorsement,
            )
    sentences = [sentence for _, sentence in look()]
    assert sum("has not endorsed it" in sentence for sentence in sentences) == 2


REQUEST = {"model_id": "m", "request_id": "r"}
RECEIVED = {"method": "stored", "sample_count": 1, "sample_commitment": ""}


@pytest.mark.parametrize(
    "events",
    [
        ["received", "received"],
        ["received", "completed"],
        ["received", "started", "refused", "completed"],
        ["received", "cancelled", "started"],
    ],
)
def test_a_request_that_could_not_have_gone_that_way_contradicts_itself(sessions, look, events):
    with sessions.begin() as session:
        for event in events:
            payload = RECEIVED | {"revision": 1}
            log.append(session, f"unlearning-request.{event}", subject=REQUEST, payload=payload)
    ((code, sentence),) = look()
    assert code == "state-contradicts-log"
    assert sentence.startswith(f"Entry {len(events) - 1} of log 1")


def test_what_happens_only_once_contradicts_itself_the_second_time(sessions, look):
    with sessions.begin() as session:
        for _ in range(2):
            log.append(
                session,
                "model.registered",
                subject=REQUEST,
                payload={"manifest_sha256": "", "weights_sha256": ""},
            )
            log.append(
                session,
                "record.issued",
                subject=REQUEST,
                payload={"kind": "refusal", "record_id": "x", "statement_sha256": ""},
            )
    sentences = [sentence for code, sentence in look() if code == "state-contradicts-log"]
    assert any("registers this model, which was" in sentence for sentence in sentences)
    assert any("issues a record that was" in sentence for sentence in sentences)


def test_a_deletion_that_began_from_other_weights_than_were_there_is_found(sessions, look):
    with sessions.begin() as session:
        log.append(
            session,
            "model.registered",
            subject=REQUEST,
            payload={"manifest_sha256": "", "weights_sha256": "aa"},
        )
        log.append(
            session,
            "model.revision-added",
            subject=REQUEST,
            payload={
                "revision": 1,
                "n_samples": 3,
                "superseded_weights_sha256": "bb",
                "weights_sha256": "cc",
            },
        )
    assert [code for code, _ in look()] == ["weights-swapped", "state-contradicts-log"]


def test_records_in_each_others_places_are_swapped(sessions, look, attack, new_record):
    signer = Signer(Ed25519PrivateKey.generate())
    with sessions.begin() as session:
        for _ in range(2):
            new_record(session, signer, "refusal")
    attack(
        "UPDATE evidence_record r SET envelope = o.envelope FROM evidence_record o"
        " WHERE r.id <> o.id"
    )
    assert codes_of_records(look) == ["record-swapped"] * 2


def test_entries_that_are_not_believed_are_said_not_to_be_compared(sessions, grow, attack):
    grow(3, event="unlearning-request.received", **RECEIVED)
    attack("UPDATE audit_entry SET body = body || ' '::bytea WHERE index = 0")
    with sessions() as session:
        report = verify_log(session)
    assert report.findings[0].code is Code.ENTRY_ALTERED
    assert report.doubtful == 1
    assert any("were not compared with the log" in limit for limit in report.limits())


def test_progress_is_told_in_batches(monkeypatch):
    monkeypatch.setattr(_tree, "BATCH", 4)
    written = Written.of(10)
    counts = []
    audit = TreeAudit(written.end, [], *[lambda *_: None] * 2)
    audit.read([tuple(row) for row in written.rows], counts.append)
    assert counts == [4, 4, 2]


@pytest.mark.usefixtures("issued")
@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE evidence_record SET kind = 'refusal'", "Its row names record"),
        ("UPDATE evidence_record SET id = gen_random_uuid()", "Its row names record"),
        (
            (
                "UPDATE evidence_record SET envelope = convert_to(regexp_replace("
                "convert_from(envelope, 'UTF8'), '\"sig\"\\:\"....', '\"sig\"\\:\"abcd'), 'UTF8')"
            ),
            "Its signature is not valid",
        ),
    ],
)
def test_a_record_that_was_altered_in_one_place_is_altered(look, attack, statement, sentence):
    attack(statement)
    found = [one for one in look() if one[0].startswith("record-")]
    assert found[0][0] == "record-altered"
    assert found[0][1].startswith(sentence)


def test_a_record_that_was_signed_anew_contradicts_the_log(
    sessions, look, attack, new_request, new_statement
):
    """Whoever has the key can sign another record; the log names the first."""
    signer = Signer(Ed25519PrivateKey.generate())
    with sessions.begin() as session:
        request = new_request(session)
        statement = new_statement(session, request)
        record = issue_record(
            session, signer, kind="certificate", request=request, statement=statement
        )
        statement["environment"]["threads"] = 8
        envelope = signer.sign_envelope(STATEMENT_TYPE, write_record(statement))
        record_id = record.id
    attack(
        "UPDATE evidence_record SET envelope = :e WHERE id = :i",
        e=write_document(envelope),
        i=record_id,
    )
    found = [one for one in look() if one[0].startswith("record-")]
    assert [code for code, _ in found] == ["record-altered"]
    assert "names the statement" in found[0][1]


@pytest.mark.usefixtures("issued")
def test_a_record_that_the_log_does_not_know_is_altered(look, attack):
    attack(
        "UPDATE audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'),"
        " 'record.issued', 'record.unused'), 'UTF8')"
    )
    codes = [code for code, _ in look()]
    # The request of the altered entry is not compared any more.
    assert "entry-altered" in codes
    assert "record-altered" not in codes


def test_a_log_that_was_a_chain_passes_once_it_is_a_tree(empty_database_url):
    migrations.upgrade(empty_database_url, "0003")
    engine = make_engine(empty_database_url)
    try:
        chain = hashlib.sha256(b"").digest()
        with engine.begin() as connection:
            for index in range(11):
                leaf = leaf_hash(body_of(index))
                chain = hashlib.sha256(b"\x01" + chain + leaf).digest()
                values = {"i": index, "b": body_of(index), "l": leaf, "c": chain}
                connection.execute(
                    text("INSERT INTO audit_entry VALUES (:i, :b, :l, :c, :t)"),
                    values | {"t": time_of(index)},
                )
                connection.execute(
                    text("UPDATE audit_head SET size = :i + 1, chain_hash = :c"), values
                )
        migrations.upgrade(empty_database_url)
        with Session(engine) as session:
            report = verify_log(session)
        assert report.ok, report.findings
        assert report.size == 12
    finally:
        engine.dispose()
