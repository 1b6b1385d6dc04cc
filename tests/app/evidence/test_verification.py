import base64
import copy
import json
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.db import new_id
from app.evidence import service
from app.evidence.canonical import canonical_json, chain_hash, leaf_hash, sha256_hex
from app.evidence.formats import CHECKPOINT_TYPE
from app.evidence.models import RecordKind
from app.evidence.schemas import STATEMENT_TYPE
from app.evidence.schemas_v1 import STATEMENT_TYPE as V1
from app.evidence.signing import Signer, SigningKeyError
from app.evidence.verification import verify_bundle

KINDS = ["certificate", "certified", "output", "conditional", "estimate", "refusal", "failure"]
CHECKS = ["file", "signature", "statement", "entry", "inclusion", "checkpoint"]
NEW_WEIGHTS, OLD_WEIGHTS = b"the new weights", b"the old weights"
JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)


@pytest.fixture
def issue(session, signer, new_record):
    """Issue a record as the service does, and return its bundle."""

    def make(kind="certificate"):
        service.append(session, "before", subject={}, payload={})
        return service.bundle(session, new_record(session, signer, kind))

    return make


def outcome(checks):
    return {check.name: check.ok for check in checks}


def failed(checks):
    return [check.name for check in checks if not check.ok]


def agree(reference, content, signer, weights=None):
    """Return what the service's verifier found, having made sure that the other finds the same."""
    found = outcome(verify_bundle(content, signer.public_pem(), weights))
    assert reference.verify(content, signer.public_pem(), weights) == found
    return found


def statement_in(bundle):
    return json.loads(base64.b64decode(bundle["envelope"]["payload"]))


def forge(signer, statement, *, size=2, index=1, previous=b"\0" * 32, kind=STATEMENT_TYPE, **entry):
    """Return a bundle that the signing key's holder made up: nothing is checked on the way."""
    payload = canonical_json(statement)
    body = canonical_json(
        {
            "index": index,
            "time": "2026-11-23T06:54:00.000000Z",
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
    return {
        "format": "lethe.bundle/v1",
        "envelope": signer.sign_envelope(kind, payload).model_dump(mode="json"),
        "entry": body.decode(),
        "previous_chain_hash": previous.hex(),
        "checkpoint": signer.sign_envelope(CHECKPOINT_TYPE, canonical_json(checkpoint)).model_dump(
            mode="json"
        ),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_passes_every_check_with_a_sentence_for_each(issue, reference, signer, kind):
    bundle = issue(kind)
    checks = verify_bundle(bundle, signer.public_pem())
    assert outcome(checks) == dict.fromkeys(CHECKS, True)
    assert all(re.fullmatch(r"[A-Z].*\.", check.sentence) for check in checks)
    assert statement_in(bundle)["verdict"] in checks[2].sentence
    assert agree(reference, json.dumps(bundle).encode(), signer) == outcome(checks)


def test_the_first_entry_of_a_log_is_verified_too(
    session, signer, reference, new_request, new_statement
):
    request = new_request(session)
    record = service.issue_record(
        session,
        signer,
        "tests.lethe/audit",
        kind=RecordKind.CERTIFICATE,
        request=request,
        statement=new_statement(session, request),
    )
    assert record.entry_index == 0
    content = json.dumps(service.bundle(session, record)).encode()
    assert all(agree(reference, content, signer).values())


def test_a_bundle_still_verifies_when_the_log_has_grown(issue, signer):
    bundle = issue()
    issue("refusal")
    assert failed(verify_bundle(bundle, signer.public_pem())) == []


@pytest.mark.parametrize(
    "case",
    [
        ("certificate", NEW_WEIGHTS, True, "revision 5"),
        ("certificate", OLD_WEIGHTS, False, "revision 4, from before"),
        ("certificate", b"others", False, "neither"),
        ("refusal", OLD_WEIGHTS, True, "revision 4, which was not changed"),
        ("refusal", NEW_WEIGHTS, False, "others"),
    ],
)
def test_weights_are_compared_with_the_record(issue, reference, signer, case):
    kind, weights, ok, words = case
    bundle = issue(kind)
    check = verify_bundle(bundle, signer.public_pem(), weights)[-1]
    assert (check.name, check.ok) == ("weights", ok)
    assert words in check.sentence
    assert agree(reference, json.dumps(bundle).encode(), signer, weights)["weights"] is ok


def test_another_key_verifies_neither_record_nor_checkpoint(issue, reference, signer):
    bundle = issue()
    stranger = Signer(Ed25519PrivateKey.generate())
    checks = verify_bundle(bundle, stranger.public_pem())
    assert failed(checks) == ["signature", "checkpoint"]
    assert signer.key_id[:16] in checks[1].sentence
    agree(reference, json.dumps(bundle).encode(), stranger)


def test_a_key_that_is_none_is_the_callers_mistake(issue):
    with pytest.raises(SigningKeyError):
        verify_bundle(issue(), b"no key")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda own, other: own | {"envelope": other["envelope"]}, ["entry"]),
        (lambda own, other: own | {"entry": other["entry"]}, ["entry", "inclusion"]),
        (lambda own, other: own | {"checkpoint": other["checkpoint"]}, ["inclusion"]),
        (
            lambda own, other: own | {"previous_chain_hash": other["previous_chain_hash"]},
            ["inclusion"],
        ),
        (
            lambda own, _other: own | {"entry": own["entry"].replace("record.", "Record.")},
            ["entry", "inclusion"],
        ),
        (lambda own, _other: own | {"checkpoint": own["envelope"]}, ["inclusion", "checkpoint"]),
        (
            lambda own, _other: own | {"envelope": own["checkpoint"]},
            ["signature", "statement", "entry"],
        ),
    ],
)
def test_parts_of_two_records_do_not_mix(issue, reference, signer, change, names):
    own, other = issue(), issue("refusal")
    mixed = change(own, other)
    assert failed(verify_bundle(mixed, signer.public_pem())) == names
    agree(reference, json.dumps(mixed).encode(), signer)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"not json",
        b'{"format":"lethe.bundle/v1","format":"lethe.bundle/v1"}',
        b'{"entry":"\\ud800"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_bundle_is_a_finding_and_no_crash(reference, signer, content):
    (check,) = verify_bundle(content, signer.public_pem())
    assert (check.name, check.ok) == ("file", False)
    agree(reference, content, signer)


def test_half_a_surrogate_pair_in_a_bundle_is_a_finding(issue, reference, signer):
    bundle = issue()
    content = json.dumps(bundle | {"entry": bundle["entry"] + "\ud800"}).encode()
    assert agree(reference, content, signer) == {"file": False}


def test_sentences_hold_no_control_characters_of_a_forged_file(issue, signer):
    statement = statement_in(issue("failure"))
    escape = "\x1b[32mVERIFIED\x1b[0m"
    for forged in (
        forge(signer, statement | {escape: 1}),
        forge(signer, statement | {"version": escape}),
        forge(signer, statement) | {escape: 1},
        forge(signer, statement) | {"format": escape},
    ):
        checks = verify_bundle(forged, signer.public_pem())
        assert failed(checks)
        assert all(check.sentence.isprintable() for check in checks)


FORGERIES = {
    "kind": lambda statement: statement | {"kind": "certificate", "tier": "exact"},
    "verdict": lambda statement: statement | {"verdict": "All is forgotten."},
    "extra": lambda statement: statement | {"certified": True},
    "limits": lambda statement: statement | {"limits": []},
}


@pytest.mark.parametrize("name", FORGERIES)
def test_even_the_holder_of_the_key_cannot_sign_an_overclaim_that_verifies(
    issue, reference, signer, name
):
    honest = statement_in(issue("estimate"))
    assert all(agree(reference, json.dumps(forge(signer, honest)).encode(), signer).values())
    forged = forge(signer, FORGERIES[name](honest))
    assert "statement" in failed(verify_bundle(forged, signer.public_pem()))
    agree(reference, json.dumps(forged).encode(), signer)


@pytest.mark.parametrize(
    "entry",
    [
        {"event": "record.revoked"},
        {"subject": {}},
        {"payload": {}},
        {"more": 1},
        {"subject": {"model_id": str(new_id()), "request_id": str(new_id())}},
    ],
)
def test_an_entry_that_says_anything_else_fails(issue, reference, signer, entry):
    forged = forge(signer, statement_in(issue()), **entry)
    found = agree(reference, json.dumps(forged).encode(), signer)
    assert found["entry"] is False
    assert found["signature"] is found["statement"] is found["checkpoint"] is True


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_checkpoint_of_another_size_does_not_cover_the_entry(issue, reference, signer, size):
    forged = forge(signer, statement_in(issue()), size=size)
    found = agree(reference, json.dumps(forged).encode(), signer)
    assert [name for name, ok in found.items() if not ok] == ["inclusion"]


def paths_in(value, path=()):
    """Yield the place of every value in a JSON document."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, item in inner:
        yield from paths_in(item, (*path, key))


def replaced(document, path, value):
    changed = copy.deepcopy(document)
    place = changed
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


OFTEN = settings(
    max_examples=100,
    deadline=None,
    # The fixtures are read and never changed by an example.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("kind", KINDS)
@OFTEN
@given(data=st.data())
def test_both_verifiers_agree_on_statements_that_somebody_tampered_with_and_signed(
    bundles, reference, signer, kind, data
):
    statement = statement_in(bundles[kind])
    place = data.draw(st.sampled_from([path for path in paths_in(statement) if path]))
    value = data.draw(JUNK | st.just(...))
    changed = replaced(statement, place, value)
    if {("id",), ("kind",), ("model",), ("model", "id"), ("request",), ("request", "id")} & {place}:
        return  # The entry names these; it is `forge` that could not be written.
    content = json.dumps(forge(signer, changed)).encode()
    found = agree(reference, content, signer, NEW_WEIGHTS)
    assert found["signature"]
    assert found["checkpoint"]


@pytest.mark.parametrize("kind", KINDS)
@OFTEN
@given(data=st.data())
def test_both_verifiers_agree_on_files_that_were_damaged_and_none_of_those_passes(
    bundles, reference, signer, kind, data
):
    content = json.dumps(bundles[kind], separators=(",", ":")).encode()
    start = data.draw(st.integers(0, len(content) - 1))
    removed = data.draw(st.integers(0, 3))
    added = data.draw(st.binary(max_size=3))
    damaged = content[:start] + added + content[start + removed :]
    found = agree(reference, damaged, signer, NEW_WEIGHTS)
    try:
        same = json.loads(damaged) == bundles[kind]
    except ValueError:
        same = False
    if not same:
        assert not all(found.values())


@pytest.mark.parametrize("kind", KINDS)
@OFTEN
@given(data=st.data())
def test_both_verifiers_agree_on_bundles_with_a_replaced_part_and_none_of_those_passes(
    bundles, reference, signer, kind, data
):
    bundle = bundles[kind]
    place = data.draw(st.sampled_from([path for path in paths_in(bundle) if path]))
    changed = replaced(bundle, place, data.draw(JUNK | st.just(...)))
    found = agree(reference, json.dumps(changed).encode(), signer)
    assert not all(found.values())


@pytest.fixture
def bundles(issue):
    return {kind: issue(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", ["certificate", "estimate", "refusal", "failure"])
def test_a_record_that_release_0_1_signed_still_verifies(issue, reference, signer, version_1, kind):
    statement = version_1(statement_in(issue(kind)))
    content = json.dumps(forge(signer, statement, kind=V1)).encode()
    assert all(agree(reference, content, signer).values())
    # Not as a record of the other version: the type is signed, too.
    content = json.dumps(forge(signer, statement)).encode()
    assert agree(reference, content, signer)["statement"] is False
