"""Both verifiers, the service's and the one written from the formats alone, on every bundle."""

import base64
import copy
import datetime
import hashlib
import json
import random
import re

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.keys.signing import SigningKeyError
from app.evidence.keys.trust import InvalidRootsError, TrustedKeys
from app.evidence.records.intoto import wrap
from app.evidence.records.schemas_v1 import STATEMENT_TYPE as V1
from app.evidence.records.schemas_v2 import STATEMENT_TYPE as V2
from app.evidence.transparency.notes import Checkpoint, LogProof, sign_note
from app.evidence.verification import verify_bundle
from tests.reference import verifier as reference
from tests.reference.bundles import (
    AFTER,
    BEFORE,
    FINISHED,
    KEYS,
    LOG_KEY,
    ORIGIN,
    RECORD_KEY,
    SORTS,
    STRANGER,
    UNLIMITED,
    Log,
    agree,
    failed,
    key_list,
    key_named,
    limited,
    listed,
    pem_of,
    sentence,
    vkey_of,
)
from tests.reference.timestamps import SHA512, Stamper

CHECKS = ["file", "signature", "statement", "entry", "inclusion", "checkpoint"]
NEW_WEIGHTS, OLD_WEIGHTS, OTHERS = map(
    sha256_hex, (b"the new weights", b"the old weights", b"others")
)


@pytest.fixture(scope="module")
def statements(statement_of):
    made = {sort: statement_of(sort) for sort in SORTS}
    assert {statement["times"]["finished"] for statement in made.values()} == {FINISHED}
    return made


@pytest.fixture(scope="module")
def log(statements):
    """A log with a record of each sort, and entries of other kinds before, between and after."""
    log = Log().fill(3)
    for sort in SORTS:
        log.add_record(statements[sort])
        log.fill(len(log.bodies) + 1)
    return log.fill(25)


def place_of(sort):
    return 3 + 2 * SORTS.index(sort)


def as_file(bundle):
    return json.dumps(bundle).encode()


# What verifies


@pytest.mark.parametrize("sort", SORTS)
def test_a_record_passes_every_check_with_a_sentence_for_each(log, statements, sort):
    checks = agree(log.bundle(place_of(sort)))
    assert [check.name for check in checks] == CHECKS
    assert failed(checks) == []
    assert all(re.fullmatch(r"[A-Z].*\.", check.sentence) for check in checks)
    assert statements[sort]["verdict"] in sentence(checks, "statement")
    assert "The checkpoint of 25 entries covers" in sentence(checks, "inclusion")


def test_a_record_verifies_at_every_place_under_every_checkpoint(statements):
    for index in range(9):
        log = Log().fill(index)
        log.add_record(statements["refusal"])
        log.fill(10)
        for size in range(index + 1, 11):
            assert failed(agree(log.bundle(index, size))) == []


def test_the_json_object_is_taken_as_the_file_is(log):
    bundle = log.bundle(place_of("certificate"))
    assert verify_bundle(bundle, TrustedKeys.read(KEYS)) == verify_bundle(
        as_file(bundle), TrustedKeys.read(KEYS)
    )


@pytest.mark.parametrize(("kind", "version"), [(V1, "version_1"), (V2, "version_2")])
def test_a_record_of_an_earlier_version_verifies_in_a_new_bundle(
    request, statements, kind, version
):
    statement = request.getfixturevalue(version)(statements["estimate"])
    log = Log().fill(2)
    index = log.add_record(statement, kind=kind)
    assert failed(agree(log.bundle(index))) == []
    # Not as a record of another version: the type is signed, too.
    index = log.add_payload(canonical_json(statement), statement)
    assert failed(agree(log.bundle(index), *UNLIMITED)) == ["statement", "entry"]


# Keys


@pytest.mark.parametrize(
    "keys",
    [
        UNLIMITED,
        (key_list(listed(RECORD_KEY)), f"\n{vkey_of(LOG_KEY)}\r\n\n".encode()),
        (KEYS, *UNLIMITED),
        (KEYS, KEYS),
        (
            KEYS,
            key_list(listed(STRANGER), listed(LOG_KEY, "other.example")),
            vkey_of(key_named("2")).encode(),
        ),
    ],
)
def test_keys_come_from_lists_pem_files_and_lines(log, keys):
    assert failed(agree(log.bundle(place_of("certificate")), *keys)) == []


@pytest.mark.parametrize(
    ("keys", "names", "words"),
    [
        ((pem_of(RECORD_KEY),), ["checkpoint"], "the given keys for checkpoints are of none"),
        ((vkey_of(LOG_KEY).encode(),), ["signature"], "the given keys for records are none"),
        (
            (pem_of(STRANGER), vkey_of(LOG_KEY).encode()),
            ["signature"],
            f"the given keys for records are {listed(STRANGER)['id'][:16]}",
        ),
        ((pem_of(RECORD_KEY), vkey_of(STRANGER).encode()), ["checkpoint"], "none of the given"),
        (
            (pem_of(RECORD_KEY), vkey_of(LOG_KEY, "another.example").encode()),
            ["checkpoint"],
            "are of 'another.example'",
        ),
        (
            (pem_of(LOG_KEY), vkey_of(RECORD_KEY).encode()),
            ["signature", "checkpoint"],
            "was given for checkpoints, not for records",
        ),
        (
            (key_list(listed(LOG_KEY), listed(RECORD_KEY, ORIGIN)),),
            ["signature", "checkpoint"],
            "was given for checkpoints, not for records",
        ),
        ((key_list(),), ["signature", "checkpoint"], "the given keys for records are none"),
    ],
)
def test_a_key_signs_only_what_it_was_given_for(log, keys, names, words):
    checks = agree(log.bundle(place_of("certificate")), *keys)
    assert failed(checks) == names
    assert words in sentence(checks, names[0])


def test_no_key_comes_from_the_file(log):
    bundle = log.bundle(place_of("certificate"))
    assert failed(agree(bundle | {"keys": json.loads(KEYS)})) == ["file"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"valid_from": FINISHED}, None),
        # The key was introduced while the record waited for the log.
        ({"valid_from": "2026-11-23T06:55:00.000000Z"}, None),
        ({"valid_from": "2026-11-23T06:55:00.000001Z"}, "counts from 2026-11-23T06:55:00.000001Z"),
        ({"valid_until": FINISHED}, None),
        ({"valid_until": BEFORE}, f"counted until {BEFORE}"),
        ({"revoked_at": AFTER}, None),
        ({"revoked_at": FINISHED}, f"was revoked at {FINISHED}"),
        ({"revoked_at": AFTER, "compromised": True}, "is marked as compromised"),
        ({"valid_until": AFTER, "revoked_at": AFTER}, None),
    ],
)
def test_a_key_counts_within_its_limits(log, limits, words):
    checks = agree(log.bundle(place_of("certificate")), limited(**limits))
    assert failed(checks) == ([] if words is None else ["signature"])
    assert words is None or words in sentence(checks, "signature")


def test_a_key_that_was_revoked_later_is_told_with_the_time(log):
    checks = agree(log.bundle(place_of("certificate")), limited(revoked_at=AFTER))
    assert f"revoked at {AFTER}" in sentence(checks, "signature")
    assert "not as compromised" in sentence(checks, "signature")


def test_what_two_files_say_of_a_key_holds_together(log):
    bundle = log.bundle(place_of("certificate"))
    for limits in ({"valid_until": BEFORE}, {"revoked_at": AFTER, "compromised": True}):
        for keys in ((KEYS, limited(**limits)), (limited(**limits), KEYS, pem_of(RECORD_KEY))):
            assert failed(agree(bundle, *keys)) == ["signature"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"valid_from": AFTER}, {}),
        ({"valid_until": BEFORE}, {"valid_until": AFTER}),
        ({"revoked_at": BEFORE}, {"revoked_at": AFTER}),
        ({"valid_until": BEFORE}, {"revoked_at": AFTER}),
    ],
)
def test_of_two_limits_the_narrower_one_holds(log, one, other):
    bundle = log.bundle(place_of("certificate"))
    for keys in ((one, other), (other, one)):
        assert failed(agree(bundle, *(limited(**limits) for limits in keys))) == ["signature"]


def test_a_record_is_signed_no_earlier_than_it_was_finished_whatever_its_entry_says(statements):
    log = Log().fill(3)
    index = log.add_record(statements["certificate"], time=BEFORE)
    assert failed(agree(log.bundle(index), limited(valid_from=FINISHED))) == []


def test_limits_cannot_be_judged_where_the_statement_cannot_be_read(statements):
    log = Log().fill(3)
    index = log.add_record(statements["refusal"] | {"more": 1})
    bundle = log.bundle(index)
    assert failed(agree(bundle)) == ["signature", "statement", "entry"]
    keys = UNLIMITED
    assert failed(agree(bundle, *keys)) == ["statement", "entry"]


def test_a_compromised_key_counts_where_a_kept_checkpoint_covers_the_record(log):
    keys = limited(revoked_at=AFTER, compromised=True)
    index = place_of("certificate")
    for since in (index + 1, 20, 25):
        checks = agree(log.bundle(index, 25, since), keys, since=log.note(since))
        assert failed(checks) == []
        assert f"the checkpoint of {since} entries" in sentence(checks, "signature")
        assert "only if that checkpoint was kept from before" in sentence(checks, "signature")
    # Kept from before the record; of another log; not shown to be of this one.
    assert failed(agree(log.bundle(index, 25, index), keys, since=log.note(index))) == ["signature"]
    assert failed(agree(log.bundle(index, 25), keys, since=log.note(20))) == [
        "signature",
        "consistency",
    ]
    other = Log().fill(20)
    assert failed(agree(log.bundle(index, 25, 20), keys, since=other.note())) == [
        "signature",
        "consistency",
    ]


def test_a_kept_checkpoint_speaks_for_no_record_that_its_log_does_not_hold(log):
    keys = limited(revoked_at=AFTER, compromised=True)
    bundle = log.bundle(place_of("certificate"), 25, 20)
    # Consistent with what was kept, and the entry is not the one at its place.
    bundle["entry"] = log.bundle(place_of("refusal"))["entry"]
    assert failed(agree(bundle, keys, since=log.note(20))) == ["signature", "entry", "inclusion"]


def test_a_compromised_key_of_checkpoints_counts_where_a_kept_one_covers_the_record(log):
    compromised = listed(LOG_KEY, ORIGIN, revoked_at=AFTER, compromised=True)
    keys = key_list(listed(RECORD_KEY), compromised)
    index = place_of("certificate")
    checks = agree(log.bundle(index), keys)
    assert failed(checks) == ["checkpoint"]
    assert "--since" in sentence(checks, "checkpoint")
    checks = agree(log.bundle(index, 25, 20), keys, since=log.note(20))
    assert failed(checks) == []
    assert "only if that checkpoint was kept from before" in sentence(checks, "checkpoint")
    assert failed(agree(log.bundle(index, 25, index), keys, since=log.note(index))) == [
        "checkpoint"
    ]


@pytest.mark.parametrize("limit", ["valid_until", "revoked_at"])
def test_a_key_that_had_ended_signs_no_checkpoint_of_what_came_after(log, limit):
    index, second = place_of("certificate"), key_named("second")
    ended = listed(LOG_KEY, ORIGIN, **{limit: BEFORE})  # and the entry was written later
    checks = agree(log.bundle(index), key_list(listed(RECORD_KEY), ended))
    assert failed(checks) == ["checkpoint"]
    assert "covers an entry that was written after" in sentence(checks, "checkpoint")
    path = LogProof.parse(log.bundle(index)["proof"]).hashes
    both = log.bundle(index, proof=LogProof(index, path, log.note(25, LOG_KEY, second)).text())
    keys = key_list(listed(RECORD_KEY), ended, listed(second, ORIGIN))
    assert failed(agree(both, keys)) == []
    later = listed(LOG_KEY, ORIGIN, **{limit: AFTER})
    assert failed(agree(log.bundle(index), key_list(listed(RECORD_KEY), later))) == []


def test_a_checkpoint_needs_one_sound_key_and_no_false_signature(log):
    index, second = place_of("certificate"), key_named("second")
    compromised = listed(LOG_KEY, ORIGIN, revoked_at=AFTER, compromised=True)
    revoked = listed(second, ORIGIN, revoked_at=AFTER)
    keys = key_list(listed(RECORD_KEY), compromised, revoked)
    path = LogProof.parse(log.bundle(index)["proof"]).hashes

    def signed_by(*signers):
        return log.bundle(index, proof=LogProof(index, path, log.note(25, *signers)).text())

    checks = agree(signed_by(LOG_KEY, second, STRANGER), keys)
    assert failed(checks) == []
    assert "revoked since, and not as compromised" in sentence(checks, "checkpoint")
    assert failed(agree(signed_by(LOG_KEY), keys)) == ["checkpoint"]
    assert failed(agree(signed_by(STRANGER), keys)) == ["checkpoint"]
    false = signed_by(second, LOG_KEY)
    signature = base64.b64decode(false["proof"].strip().split(" ")[-1])
    changed = base64.b64encode(signature[:-1] + bytes([signature[-1] ^ 1])).decode()
    false["proof"] = false["proof"].replace(base64.b64encode(signature).decode(), changed)
    checks = agree(false, keys)
    assert failed(checks) == ["checkpoint"]
    assert "is not what the key" in sentence(checks, "checkpoint")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        b"\xff",
        b"-----BEGIN PUBLIC KEY-----\n",
        b"{}",
        b"[]",
        KEYS[:-1],
        KEYS.replace(b"lethe.keys/v1", b"lethe.keys/v2"),
        KEYS.replace(b'"records"', b'"checkpoints"'),
        KEYS.replace(b'"records"', b'"all"'),
        KEYS.replace(b"2026-11-01T00:00:00.000000Z", b"2026-11-01T00:00:00Z"),
        KEYS.replace(b'"compromised": false', b'"compromised": true'),
        KEYS.replace(b'"compromised": false', b'"compromised": 0'),
        KEYS.replace(b'"endorsement": null', b'"endorsement": null, "more": 1'),
        KEYS.replace(b', "endorsement": null', b""),
        KEYS.replace(b'"id": "', b'"id": "0'),
        KEYS.replace(b"tests.lethe/audit", b"tests lethe"),
        key_list(listed(RECORD_KEY) | {"id": listed(LOG_KEY)["id"]}),
        key_list(listed(RECORD_KEY), listed(RECORD_KEY)),
        key_list(listed(RECORD_KEY), listed(RECORD_KEY, ORIGIN)),
        key_list(listed(RECORD_KEY), listed(RECORD_KEY, revoked_at=AFTER)),
        vkey_of(LOG_KEY).encode()[:-1],
        f"{vkey_of(LOG_KEY)}\nmore".encode(),
        pem_of(RECORD_KEY).replace(b"MCow", b"MCoo"),
        pem_of(ec.generate_private_key(ec.SECP256R1())),
    ],
)
def test_a_key_file_that_is_none_is_the_callers_mistake(content):
    with pytest.raises(SigningKeyError):
        TrustedKeys.read(KEYS, content)
    with pytest.raises(reference.BadBundleError):
        reference.read_keys([KEYS, content])


# A checkpoint that somebody kept


def test_a_log_is_shown_to_continue_any_checkpoint_that_was_kept(log):
    index = place_of("conditional")
    for size in range(index + 1, 26):
        for since in range(26):
            bundle = log.bundle(index, size, since)
            checks = agree(bundle, since=log.note(since))
            assert failed(checks) == []
            assert checks[-1].name == "consistency"
    assert "to which the record was added since" in sentence(
        agree(log.bundle(index, 25, 3), since=log.note(3)), "consistency"
    )
    assert "which has the record already" in sentence(
        agree(log.bundle(index, 25, 20), since=log.note(20)), "consistency"
    )
    assert "continues the log of 20 that the record is in" in sentence(
        agree(log.bundle(index, 20, 25), since=log.note(25)), "consistency"
    )
    assert "is the kept one" in sentence(
        agree(log.bundle(index, 20), since=log.note(20)), "consistency"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda log, _index: log.note(7), "download the record again with ?since=7"),
        (lambda log, _index: log.note(20)[:-1], "a note is a text"),
        (lambda _log, _index: "\udcff", "a note is a text"),
        (lambda _log, _index: "", "a note is a text"),
        (lambda log, _index: log.note(20, STRANGER), "none of the given keys signed"),
        (lambda _log, _index: Log("another.example").fill(20).note(), "the log 'another.example'"),
        (lambda _log, _index: Log().fill(20).note(), "do not lead from the log of 20 entries"),
        (lambda _log, _index: Log().fill(25).note(), "two different logs of 25 entries"),
        (
            lambda _log, _index: sign_note(
                Checkpoint(ORIGIN, 0, bytes(32)).text(), [(ORIGIN, LOG_KEY)]
            ),
            "two different logs of 0 entries",
        ),
        (
            lambda log, _index: sign_note(
                f"{log.checkpoint(20).text()}more\n", [(ORIGIN, LOG_KEY)]
            ),
            "exactly three lines",
        ),
    ],
)
def test_a_kept_checkpoint_that_does_not_lead_to_the_file_is_a_finding(log, change, words):
    index = place_of("certificate")
    checks = agree(log.bundle(index, 25, 20), since=change(log, index))
    assert failed(checks) == ["consistency"]
    assert words in sentence(checks, "consistency")


def test_a_kept_checkpoint_of_another_trusted_log_is_of_another_log(log):
    keys = (KEYS, vkey_of(STRANGER, "another.example").encode())
    other = Log("another.example", STRANGER).fill(20)
    checks = agree(log.bundle(place_of("certificate"), 25, 20), *keys, since=other.note())
    assert failed(checks) == ["consistency"]
    assert "is of the log 'another.example'" in sentence(checks, "consistency")


def test_a_rewritten_log_contradicts_every_checkpoint_from_before(log, statements):
    kept = log.note(20)
    rewritten = Log().fill(3)
    index = rewritten.add_record(statements["certificate"])
    rewritten.fill(25)
    assert failed(agree(rewritten.bundle(index, 25))) == []
    checks = agree(rewritten.bundle(index, 25, 20), since=kept)
    assert failed(checks) == ["consistency"]


# Weights


@pytest.mark.parametrize(
    ("sort", "subjects", "found"),
    [
        ("certificate", [NEW_WEIGHTS], [(True, "revision 5")]),
        ("certificate", [OLD_WEIGHTS], [(False, "revision 4, from before")]),
        ("certificate", [OTHERS], [(False, "neither")]),
        ("refusal", [OLD_WEIGHTS], [(True, "revision 4, which was not changed")]),
        ("refusal", [NEW_WEIGHTS], [(False, "others")]),
        ("estimate", [NEW_WEIGHTS, OTHERS], [(True, "revision 5"), (False, "neither")]),
    ],
)
def test_weights_are_compared_with_the_record(log, sort, subjects, found):
    checks = agree(log.bundle(place_of(sort)), subjects=subjects)[len(CHECKS) :]
    assert [check.name for check in checks] == ["weights"] * len(subjects)
    for check, digest, (ok, words) in zip(checks, subjects, found, strict=True):
        assert check.ok is ok
        assert words in check.sentence
        assert digest[:16] in check.sentence


# Timestamps


@pytest.fixture(scope="module")
def stamper():
    return Stamper()


STAMPED = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)


def stamped(log, stamp, index=3, **options):
    """A bundle whose checkpoint was stamped."""
    digest = hashlib.sha256(log.note().encode()).digest()
    return log.bundle(index, timestamp=base64.b64encode(stamp(digest, STAMPED, **options)).decode())


def test_a_timestamp_says_when_the_checkpoint_existed(log, stamper):
    bundle, keys = stamped(log, stamper.stamp), TrustedKeys.read(KEYS)
    checks = verify_bundle(bundle, keys, tsa_roots=stamper.root_pem)
    assert failed(checks) == []
    assert "existed at 2026-11-24T12:00:00.000000Z" in sentence(checks, "timestamp")


def test_a_timestamp_that_was_not_looked_at_is_told_and_does_not_count(log, stamper):
    checks = agree(stamped(log, stamper.stamp))
    assert [check.name for check in checks] == CHECKS
    assert "has a timestamp, which was not looked at" in sentence(checks, "checkpoint")


def test_a_file_without_the_timestamp_that_is_asked_about_fails(log, stamper):
    checks = verify_bundle(log.bundle(3), TrustedKeys.read(KEYS), tsa_roots=stamper.root_pem)
    assert failed(checks) == ["timestamp"]
    assert "the file has none" in sentence(checks, "timestamp")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _own, log: stamped(log, Stamper().stamp), "local issuer"),
        (lambda own, log: stamped(log, own.stamp, status=2), "not GRANTED"),
        (lambda own, log: stamped(log, own.stamp, algorithm=SHA512), "a hash of another kind"),
        (
            lambda own, log: stamped(log, lambda digest, time: own.stamp(digest[::-1], time)),
            "Mismatch",
        ),
        (
            lambda own, log: stamped(
                log, lambda digest, _time: own.stamp(digest, STAMPED.replace(year=2030))
            ),
            "expired",
        ),
        (lambda _own, log: stamped(log, lambda *_: b"no timestamp"), "ASN.1"),
        (lambda _own, log: stamped(log, lambda *_: bytes.fromhex("30053003020100")), "."),
    ],
)
def test_a_timestamp_that_shows_nothing_is_a_finding(log, stamper, make, words):
    bundle = make(stamper, log)
    checks = verify_bundle(bundle, TrustedKeys.read(KEYS), tsa_roots=stamper.root_pem)
    assert failed(checks) == ["timestamp"]
    assert words in sentence(checks, "timestamp")


def test_a_certificate_for_another_purpose_stamps_nothing(log):
    other = Stamper(is_authority=False)
    bundle = stamped(log, other.stamp)
    checks = verify_bundle(bundle, TrustedKeys.read(KEYS), tsa_roots=other.root_pem)
    assert failed(checks) == ["timestamp"]


def test_damaged_timestamps_are_findings_and_no_crashes(log, stamper):
    whole = base64.b64decode(stamped(log, stamper.stamp)["timestamp"])
    chance, keys = random.Random(3), TrustedKeys.read(KEYS)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        damaged = damaged[: chance.choice([len(whole), chance.randrange(len(whole))])]
        bundle = log.bundle(3, timestamp=base64.b64encode(damaged).decode() or "AA==")
        checks = verify_bundle(bundle, keys, tsa_roots=stamper.root_pem)
        assert set(failed(checks)) <= {"timestamp"}


def test_certificates_that_are_none_are_the_callers_mistake(log):
    with pytest.raises(InvalidRootsError, match="expected PEM certificates"):
        verify_bundle(log.bundle(3), TrustedKeys.read(KEYS), tsa_roots=b"none")


# What does not verify


def with_index(proof, index):
    return re.sub(r"index \d+", f"index {index}", proof)


def with_checkpoint(proof, note):
    return proof[: proof.index("\n\n") + 2] + note


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda own, other: own | {"envelope": other["envelope"]}, ["entry"]),
        (lambda own, other: own | {"entry": other["entry"]}, ["entry", "inclusion"]),
        (lambda own, other: own | {"proof": other["proof"]}, ["inclusion"]),
        (
            lambda own, _other: own | {"entry": own["entry"].replace("record.", "Record.")},
            ["entry", "inclusion"],
        ),
        (
            lambda own, _other: own | {"proof": with_index(own["proof"], 4)},
            ["inclusion"],
        ),
        (
            lambda own, _other: own | {"proof": with_index(own["proof"], 400)},
            ["inclusion"],
        ),
        (
            lambda own, _other: (
                own | {"proof": with_checkpoint(own["proof"], Log().fill(25).note())}
            ),
            ["inclusion"],
        ),
        (
            lambda own, _other: (
                own
                | {"proof": with_checkpoint(own["proof"], Log("another.example").fill(25).note())}
            ),
            ["inclusion", "checkpoint"],
        ),
        (
            # The same hashes lead to the same root; the size is what the signature is for.
            lambda own, _other: own | {"proof": own["proof"].replace("\n25\n", "\n26\n")},
            ["checkpoint"],
        ),
        (lambda own, _other: own | {"proof": "c2sp"}, ["inclusion", "checkpoint"]),
        (lambda own, _other: own | {"format": "lethe.bundle/v1"}, ["file"]),
        (lambda own, _other: own | {"format": "lethe.bundle/v3"}, ["file"]),
        (lambda own, _other: own | {"timestamp": "AA="}, ["file"]),
        (lambda own, _other: own | {"timestamp": ""}, ["file"]),
        (lambda own, _other: own | {"consistency": {"size": 1, "hashes": ["A"]}}, ["file"]),
        (lambda own, _other: own | {"consistency": {"size": 1.0, "hashes": []}}, ["file"]),
        (lambda own, _other: {k: v for k, v in own.items() if k != "timestamp"}, ["file"]),
    ],
)
def test_parts_of_two_records_do_not_mix(log, change, names):
    own, other = log.bundle(place_of("certificate")), log.bundle(place_of("refusal"))
    assert failed(agree(change(own, other))) == names


def test_the_hashes_of_a_proof_have_their_order_and_number(log):
    bundle = log.bundle(place_of("estimate"))
    proof = LogProof.parse(bundle["proof"])
    for hashes in (
        proof.hashes[::-1],
        proof.hashes[1:],
        proof.hashes[:-1],
        (*proof.hashes, proof.hashes[-1]),
        (*proof.hashes[:-1], bytes(32)),
        (),
    ):
        changed = LogProof(proof.index, hashes, proof.checkpoint).text()
        assert failed(agree(bundle | {"proof": changed})) == ["inclusion"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"not json",
        b'{"format":"lethe.bundle/v2","format":"lethe.bundle/v2"}',
        b'{"format":["lethe.bundle/v2"]}',
        b'{"format":"lethe.bundle/v1"}',
        b'{"entry":"\\ud800"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_bundle_is_a_finding_and_no_crash(content):
    (check,) = agree(content)
    assert (check.name, check.ok) == ("file", False)


def test_half_a_surrogate_pair_in_a_bundle_is_a_finding(log):
    bundle = log.bundle(place_of("certificate"))
    for part in ("entry", "proof"):
        assert failed(agree(bundle | {part: bundle[part] + "\ud800"})) == ["file"]


def test_sentences_hold_no_control_characters_of_a_forged_file(log, statements):
    statement = statements["failure"]
    escape = "\x1b[32mVERIFIED\x1b[0m"
    own = log.bundle(place_of("failure"))
    log = copy.deepcopy(log)
    notes = Log("\u202e\x7f", key_named("odd")).fill(3)
    for forged in (
        log.bundle(log.add_record(statement | {escape: 1})),
        log.bundle(log.add_record(statement | {"version": escape})),
        own | {escape: 1},
        own | {"format": escape},
        own | {"proof": f"c2sp.org/tlog-proof@v1\n{escape}\n\n{escape}"},
        own | {"proof": with_checkpoint(own["proof"], notes.note())},
    ):
        assert failed(agree(forged))


FORGERIES = {
    "kind": lambda statement: statement | {"kind": "certificate", "tier": "exact"},
    "verdict": lambda statement: statement | {"verdict": "All is forgotten."},
    "extra": lambda statement: statement | {"certified": True},
    "limits": lambda statement: statement | {"limits": []},
}


@pytest.mark.parametrize("name", FORGERIES)
def test_even_the_holder_of_the_keys_cannot_sign_an_overclaim_that_verifies(statements, name):
    log = Log().fill(4)
    forged = log.bundle(log.add_record(FORGERIES[name](statements["estimate"])))
    assert "statement" in failed(agree(forged, *UNLIMITED))


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement | {"predicateType": "urn:lethe:record:certificate:v3"},
        lambda statement: statement | {"subject": []},
        lambda statement: statement | {"subject": statement["subject"][::-1]},
        lambda statement: statement | {"subject": statement["subject"] * 2},
        lambda statement: statement | {"_type": "https://in-toto.io/Statement/v0.1"},
        lambda statement: statement | {"more": 1},
        lambda statement: statement["predicate"],
    ],
)
def test_an_in_toto_statement_contradicts_its_predicate_in_nothing(statements, change):
    statement, log = statements["estimate"], Log().fill(4)
    index = log.add_payload(canonical_json(change(wrap(statement))), statement)
    keys = UNLIMITED
    assert failed(agree(log.bundle(index), *keys)) == ["statement", "entry"]


@pytest.mark.parametrize(
    "entry",
    [
        {"event": "record.revoked"},
        {"subject": {}},
        {"payload": {}},
        {"more": 1},
        {"time": "2026-11-23T06:55:00Z"},
        {"subject": {"model_id": "another", "request_id": "another"}},
    ],
)
def test_an_entry_that_says_anything_else_fails(statements, entry):
    log = Log().fill(4)
    forged = log.bundle(log.add_record(statements["certificate"], **entry))
    assert set(failed(agree(forged))) <= {"entry", "inclusion"}
    assert "entry" in failed(agree(forged))


def test_an_entry_that_names_another_place_is_not_included(statements):
    log = Log().fill(4)
    index = log.add_record(statements["certificate"], index=2)
    assert failed(agree(log.bundle(index))) == ["inclusion"]
