"""Bundles that earlier releases wrote: files that were signed then, and others made like them."""

import base64
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.keys.signing import sign_envelope
from app.evidence.records.schemas_v1 import STATEMENT_TYPE as V1
from app.evidence.records.schemas_v2 import STATEMENT_TYPE as V2
from app.evidence.transparency.merkle import leaf_hash
from app.evidence.verification.formats_v1 import CHECKPOINT_TYPE, GENESIS, chain_hash
from tests.reference.bundles import (
    AFTER,
    BEFORE,
    KEYS,
    LOG_KEY,
    ORIGIN,
    RECORD_KEY,
    STRANGER,
    UNLIMITED,
    Log,
    agree,
    failed,
    key_list,
    listed,
    paths_in,
    pem_of,
    record_in,
    replaced,
    sentence,
    vkey_of,
)

FOLDER = Path(__file__).parents[1] / "old_bundles"
FILES = sorted(FOLDER.glob("*.json"))
KEY = (FOLDER / "signing-key.pem").read_bytes()
CHECKS = ["file", "signature", "statement", "entry", "inclusion", "checkpoint"]
OWN = pem_of(RECORD_KEY)


def test_there_are_samples_of_both_versions_of_records():
    assert len(FILES) == 13
    kinds = {json.loads(path.read_bytes())["envelope"]["payloadType"] for path in FILES}
    assert kinds == {V1, V2}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_record_that_an_earlier_release_signed_still_verifies(path):
    content = path.read_bytes()
    checks = agree(content, KEY)
    assert [check.name for check in checks] == CHECKS
    assert failed(checks) == []
    assert all(re.fullmatch(r"[A-Z].*\.", check.sentence) for check in checks)
    record = record_in(json.loads(content))
    assert record["verdict"] in sentence(checks, "statement")
    result = record.get("revision_after", record["revision_before"])["weights_sha256"]
    assert failed(agree(content, KEY, subjects=[result])) == []
    assert failed(agree(content, KEY, subjects=[result, sha256_hex(b"others")])) == ["weights"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_both_verifiers_reject_damaged_samples_alike(path):
    content = path.read_bytes()
    bundle, chance = json.loads(content), random.Random(path.stem)
    places = [place for place in paths_in(bundle) if place]
    for _ in range(60):
        damaged = bytearray(content)
        place = chance.randrange(len(damaged))
        damaged[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
        try:
            same = json.loads(damaged) == bundle
        except ValueError:
            same = False
        assert bool(failed(agree(bytes(damaged), KEY))) is not same
        junk = chance.choice([..., None, 1, "", "x", "0" * 64, [], {}])
        changed = replaced(bundle, chance.choice(places), junk)
        assert failed(agree(changed, KEY)) or changed == bundle


def test_parts_of_two_samples_do_not_mix():
    own, other = (
        json.loads((FOLDER / f"v2-{kind}.json").read_bytes()) for kind in ("output", "refusal")
    )
    for part, names in (
        ("envelope", {"entry"}),
        ("entry", {"entry", "inclusion"}),
        ("checkpoint", {"inclusion"}),
        ("previous_chain_hash", {"inclusion"}),
    ):
        changed = own | {part: other[part]}
        if changed != own:
            assert set(failed(agree(changed, KEY))) == names
    assert failed(agree(own | {"checkpoint": own["envelope"]}, KEY)) == ["inclusion", "checkpoint"]
    assert failed(agree(own | {"format": "lethe.bundle/v2"}, KEY)) == ["file"]


def test_a_sample_is_signed_with_its_key_and_no_other():
    content = FILES[0].read_bytes()
    for keys in ((OWN,), (vkey_of(LOG_KEY).encode(),), (key_list(),)):
        assert failed(agree(content, *keys)) == ["signature", "checkpoint"]
    assert failed(agree(content, OWN, KEY)) == []


def test_a_kept_checkpoint_cannot_be_compared_with_a_sample():
    checks = agree(FILES[0].read_bytes(), KEY, vkey_of(LOG_KEY).encode(), since=Log().note(0))
    assert failed(checks) == ["checkpoint", "consistency"]
    assert "download the record again" in sentence(checks, "consistency")


@pytest.mark.parametrize("keys", [(KEYS,), UNLIMITED])
def test_a_thief_of_the_key_for_records_cannot_do_without_the_key_of_the_log(estimate, keys):
    # Everything in a file of the first format is signed with the one key that he has.
    checks = agree(forge(estimate), *keys)
    assert failed(checks) == ["checkpoint"]
    assert "a thief of that key does not have" in sentence(checks, "checkpoint")
    # Who has that key alone takes the log on its word, as with the release that wrote such files.
    checks = agree(forge(estimate), OWN)
    assert failed(checks) == []
    assert "can make such a file, log and all" in sentence(checks, "checkpoint")


# Bundles of the same form, made with a key that is at hand


def forge(statement, *, size=2, index=1, previous=bytes(32), kind=V2, signer=RECORD_KEY, **entry):
    """A bundle that the key's holder made up: nothing is checked on the way."""
    payload = canonical_json(statement)
    body = canonical_json(
        {
            "index": index,
            "time": "2026-11-23T06:55:00.000000Z",
            "event": "record.issued",
            "subject": {
                "model_id": statement["model"]["id"],
                "request_id": statement["request"]["id"],
            },
            "payload": {
                "kind": statement["kind"],
                "record_id": statement["id"],
                "statement_sha256": sha256_hex(payload),
            },
        }
        | entry
    )
    checkpoint = {
        "origin": "forged",
        "size": size,
        "chain_hash": chain_hash(previous, leaf_hash(body)).hex(),
        "time": "2026-11-23T06:54:00.000000Z",
    }
    signed = sign_envelope(signer, CHECKPOINT_TYPE, canonical_json(checkpoint))
    return {
        "format": "lethe.bundle/v1",
        "envelope": sign_envelope(signer, kind, payload).model_dump(mode="json"),
        "entry": body.decode(),
        "previous_chain_hash": previous.hex(),
        "checkpoint": signed.model_dump(mode="json"),
    }


@pytest.fixture(scope="module")
def estimate(statement_of, version_2):
    return version_2(statement_of("estimate"))


def test_the_first_entry_of_a_chain_is_verified_too(estimate):
    assert failed(agree(forge(estimate, index=0, size=1, previous=GENESIS), OWN)) == []


@pytest.mark.parametrize("sort", ["certificate", "estimate", "refusal", "failure"])
def test_the_type_that_is_signed_says_which_version_is_read(statement_of, version_1, sort):
    statement = version_1(statement_of(sort))
    assert failed(agree(forge(statement, kind=V1), OWN)) == []
    assert failed(agree(forge(statement, kind=V2), OWN)) == ["statement", "entry"]


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_checkpoint_of_another_size_does_not_cover_the_entry(estimate, size):
    assert failed(agree(forge(estimate, size=size), OWN)) == ["inclusion"]


@pytest.mark.parametrize("entry", [{"event": "record.revoked"}, {"subject": {}}, {"more": 1}])
def test_an_entry_that_says_anything_else_fails(estimate, entry):
    assert "entry" in failed(agree(forge(estimate, **entry), OWN))


def test_keys_count_within_their_limits_for_old_files_too(estimate):
    bundle = forge(estimate)
    for limits, names in (
        ({}, []),
        ({"valid_until": BEFORE}, ["signature"]),
        ({"valid_from": AFTER}, ["signature"]),
        ({"revoked_at": BEFORE}, ["signature"]),
        ({"revoked_at": AFTER}, []),
        ({"revoked_at": AFTER, "compromised": True}, ["signature", "checkpoint"]),
    ):
        assert failed(agree(bundle, key_list(listed(RECORD_KEY, **limits)))) == names
    assert failed(agree(bundle, key_list(listed(RECORD_KEY, ORIGIN)))) == [
        "signature",
        "checkpoint",
    ]
    assert failed(agree(forge(estimate, signer=STRANGER), OWN)) == ["signature", "checkpoint"]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_both_verifiers_agree_on_statements_that_somebody_tampered_with_and_signed(estimate, data):
    place = data.draw(st.sampled_from([path for path in paths_in(estimate) if path]))
    value = data.draw(st.sampled_from([..., None, True, 0, 1, -1, 0.5, "", "x", [], {}]))
    changed = replaced(estimate, place, value)
    payload = canonical_json(changed)
    bundle = forge(estimate)
    bundle["envelope"] = sign_envelope(RECORD_KEY, V2, payload).model_dump(mode="json")
    assert base64.b64decode(bundle["envelope"]["payload"]) == payload
    assert set(failed(agree(bundle, OWN))) <= {"statement", "entry"}


def test_the_chain_is_the_one_that_is_documented():
    assert GENESIS.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    # printf '\000{}' | sha256sum, and likewise on; made with coreutils.
    leaf = leaf_hash(b"{}")
    assert leaf.hex() == "28a3a18f6cd6406b086e9ffda1f9b8a13dbcf44b0f3f32cb9031a11fd053acf9"
    link = chain_hash(GENESIS, leaf)
    assert link.hex() == "e6297e81cec26a3d9bc299195375fda339b092e6b239a618d2f21dab1c41258c"
