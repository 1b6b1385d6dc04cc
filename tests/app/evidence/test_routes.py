import base64
import hashlib
import json
from html.parser import HTMLParser

import pytest

from app.auth import Scope
from app.db import new_id
from app.evidence import service
from app.evidence.keys.trust import TrustedKeys, read_key_list
from app.evidence.transparency.merkle import leaf_hash, verify_consistency, verify_inclusion
from app.evidence.transparency.notes import Checkpoint, LogProof, open_note
from app.evidence.verification import verify_bundle


@pytest.fixture
def own_signer(api):
    """The signer of the application under test."""
    return api.app.state.services.signer


@pytest.fixture
def trusted(api):
    """Return a function that gives the keys that the service publishes now, as a file has them."""
    return lambda: TrustedKeys.read(api.get("/v1/audit/keys").content)


@pytest.fixture
def issue(session, own_signer, new_record):
    def make(kind):
        record = new_record(session, own_signer, kind)
        session.commit()
        return record.request_id

    return make


NEW_WEIGHTS = hashlib.sha256(b"the new weights").hexdigest()


def said_in(note):
    """Return what a note says, its signature unverified."""
    return Checkpoint.parse(note.partition("\n\n")[0] + "\n")


@pytest.mark.parametrize("route", ["record", "certificate"])
def test_a_certificate_is_delivered_as_a_file_that_verifies(api, issue, trusted, route):
    answer = api.get(f"/v1/unlearning-requests/{issue('certificate')}/{route}")
    assert answer.status_code == 200
    checks = verify_bundle(answer.content, trusted(), subjects=[NEW_WEIGHTS])
    assert all(check.ok for check in checks), checks
    assert "weights" in {check.name for check in checks}


@pytest.mark.parametrize("kind", ["estimate", "refusal", "failure"])
def test_what_guarantees_nothing_is_delivered_as_a_record_but_not_as_a_certificate(
    api, issue, trusted, kind
):
    request_id = issue(kind)
    record = api.get(f"/v1/unlearning-requests/{request_id}/record")
    assert all(check.ok for check in verify_bundle(record.content, trusted()))
    refusal = api.get(f"/v1/unlearning-requests/{request_id}/certificate")
    assert refusal.status_code == 404
    assert refusal.headers["content-type"] == "application/problem+json"
    assert refusal.json()["type"] == "urn:lethe:problem:no-certificate"
    assert f"/v1/unlearning-requests/{request_id}/record" in refusal.json()["remedy"]


@pytest.mark.parametrize("route", ["record", "certificate"])
def test_a_request_without_a_record_and_an_unknown_one_answer_404(api, session, new_request, route):
    request_id = new_request(session).id
    session.commit()
    waiting = api.get(f"/v1/unlearning-requests/{request_id}/{route}")
    assert (waiting.status_code, waiting.json()["type"]) == (
        404,
        "urn:lethe:problem:record-not-found",
    )
    unknown = api.get(f"/v1/unlearning-requests/{new_id()}/{route}")
    assert (unknown.status_code, unknown.json()["type"]) == (
        404,
        "urn:lethe:problem:request-not-found",
    )


def test_the_log_is_read_page_by_page_without_gap_or_repetition(api, session):
    for number in range(5):
        service.append(session, "tried", subject={"id": "x"}, payload={"number": number})
    session.commit()
    items, url = [], "/v1/audit/entries?limit=2"
    while url:
        page = api.get(url).json()
        assert len(page["items"]) <= 2
        items += page["items"]
        following = page["next_cursor"]
        url = following and f"/v1/audit/entries?limit=2&cursor={following}"
    assert [item["index"] for item in items] == list(range(len(items)))
    tried = [item for item in items if item["event"] == "tried"]
    assert [item["payload"]["number"] for item in tried] == list(range(5))


def test_a_reader_of_the_log_can_recompute_its_root_and_compare_it_with_the_checkpoint(
    api, session
):
    service.append(session, "tried", subject={}, payload={"text": "ü \n \u2028"})
    session.commit()
    checkpoint = api.get("/v1/audit/checkpoint").json()
    items = api.get("/v1/audit/entries?limit=200").json()["items"]
    for item in items:
        assert item["leaf_hash"] == leaf_hash(item["body"].encode()).hex()
        assert json.loads(item["body"])["payload"] == item["payload"]
    leaves = [bytes.fromhex(item["leaf_hash"]) for item in items]
    assert checkpoint["size"] == len(leaves)
    assert checkpoint["root"] == tree_root(leaves).hex()
    (key,) = [
        key
        for key in read_key_list(api.get("/v1/audit/keys").content).keys
        if key.role == "checkpoints"
    ]
    trusted = TrustedKeys.read(api.get("/v1/audit/keys").content).of_log(checkpoint["origin"])
    text, signers = open_note(checkpoint["note"], trusted)
    assert len(signers) == 1
    assert key.origin == checkpoint["origin"]
    assert Checkpoint.parse(text) == Checkpoint(
        checkpoint["origin"], checkpoint["size"], bytes.fromhex(checkpoint["root"])
    )


def tree_root(leaves):
    """Return the root as RFC 9162 §2.1.1 defines it."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + tree_root(leaves[:split]) + tree_root(leaves[split:])).digest()


def test_inclusion_of_every_entry_is_proved_up_to_a_signed_checkpoint(api, session):
    for number in range(6):
        service.append(session, "tried", subject={}, payload={"number": number})
    session.commit()
    items = api.get("/v1/audit/entries?limit=200").json()["items"]
    for item in items:
        answer = api.get(f"/v1/audit/proofs/inclusion?index={item['index']}").json()
        proof = LogProof.parse(answer["proof"])
        assert [value.hex() for value in proof.hashes] == answer["hashes"]
        checkpoint = said_in(proof.checkpoint)
        leaf = leaf_hash(item["body"].encode())
        assert answer["leaf_hash"] == leaf.hex()
        assert (proof.index, checkpoint.size) == (item["index"], answer["size"])
        verify_inclusion(leaf, proof.index, checkpoint.size, proof.hashes, checkpoint.root)


def test_consistency_of_two_checkpoints_is_proved(api, session):
    notes = []
    for _ in range(4):
        service.append(session, "tried", subject={}, payload={})
        session.commit()
        notes.append(said_in(api.get("/v1/audit/checkpoint").json()["note"]))
    for older in notes:
        for newer in notes:
            if older.size > newer.size:
                continue
            sizes = f"first={older.size}&second={newer.size}"
            answer = api.get(f"/v1/audit/proofs/consistency?{sizes}").json()
            assert answer["first_root"] == older.root.hex()
            assert answer["second_root"] == newer.root.hex()
            hashes = [bytes.fromhex(value) for value in answer["hashes"]]
            verify_consistency(older.size, older.root, newer.size, newer.root, hashes)


@pytest.mark.parametrize(
    ("url", "field", "status"),
    [
        ("/v1/audit/proofs/inclusion?index=4711", "index", 404),
        ("/v1/audit/proofs/inclusion?index=-1", "index", 422),
        ("/v1/audit/proofs/inclusion", "index", 422),
        ("/v1/audit/proofs/consistency?first=2&second=1", "second", 422),
        ("/v1/audit/proofs/consistency?first=0&second=4711", "second", 422),
        ("/v1/audit/proofs/consistency?first=x&second=1", "first", 422),
        ("/v1/audit/entries?log=7", "log", 422),
        ("/v1/audit/checkpoint?log=7", "log", 422),
    ],
)
def test_a_proof_of_what_there_is_not_is_refused_with_the_field(api, url, field, status):
    answer = api.get(url)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert answer.json()["remedy"]


def test_a_kept_checkpoint_is_shown_to_be_continued(api, session, issue, trusted):
    kept = api.get("/v1/audit/checkpoint").json()
    service.append(session, "tried", subject={}, payload={})
    url = f"/v1/unlearning-requests/{issue('certificate')}/certificate"
    bundle = api.get(f"{url}?since={kept['size']}").content
    checks = {check.name: check for check in verify_bundle(bundle, trusted(), since=kept["note"])}
    assert all(check.ok for check in checks.values()), checks
    assert "consistency" in checks
    without = verify_bundle(api.get(url).content, trusted(), since=kept["note"])
    (failed,) = [check for check in without if not check.ok]
    assert failed.name == "consistency"
    assert f"?since={kept['size']}" in failed.sentence


def test_a_certificate_is_verified_by_the_service_too_and_a_tampered_one_is_not(api, issue):
    bundle = api.get(f"/v1/unlearning-requests/{issue('certificate')}/certificate").json()
    body = {"bundle": bundle, "weights_sha256": [NEW_WEIGHTS]}
    answer = api.post("/v1/certificates/verify", json=body)
    assert answer.status_code == 200
    assert answer.json()["ok"], answer.json()
    payload = json.loads(base64.b64decode(bundle["envelope"]["payload"]))
    payload["predicate"]["request"]["n_forget"] += 1
    bundle["envelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    answer = api.post("/v1/certificates/verify", json=body)
    assert not answer.json()["ok"]
    assert "signature" in {check["name"] for check in answer.json()["checks"] if not check["ok"]}
    many = api.post("/v1/certificates/verify", json=body | {"weights_sha256": [NEW_WEIGHTS] * 17})
    assert (many.status_code, many.json()["field"]) == (422, "weights_sha256")
    refused = api.post("/v1/certificates/verify", json={"bundle": []})
    assert (refused.status_code, refused.json()["field"]) == (422, "bundle")


class Text(HTMLParser):
    """Collects the text of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_data(self, data):
        self.found.append(data)


def test_a_record_is_shown_to_people_as_page_and_document(api, issue):
    url = f"/v1/unlearning-requests/{issue('refusal')}/record"
    page = api.get(f"{url}.html")
    assert page.headers["content-type"].startswith("text/html")
    text = Text()
    text.feed(page.text)
    assert "The request was refused." in " ".join(" ".join(text.found).split())
    document = api.get(f"{url}.pdf")
    assert document.headers["content-type"] == "application/pdf"
    assert document.content.startswith(b"%PDF-")


def test_the_published_keys_are_those_that_sign(api, issue, own_signer):
    api.get(f"/v1/unlearning-requests/{issue('certificate')}/certificate")
    answer = api.get("/v1/audit/keys")
    assert b"PRIVATE" not in answer.content
    by_role = {key["role"]: key for key in answer.json()["keys"]}
    assert by_role["records"]["id"] == own_signer.key_id
    assert by_role["records"]["public_key"].encode() == own_signer.public_pem()
    assert by_role["checkpoints"]["origin"] == api.get("/v1/audit/checkpoint").json()["origin"]


@pytest.mark.parametrize("query", ["cursor=-1", f"cursor={2**63}", "cursor=x", "limit=0"])
def test_a_place_that_no_log_has_answers_422(api, query):
    answer = api.get(f"/v1/audit/entries?{query}")
    assert answer.status_code == 422
    assert answer.json()["field"] == query.split("=")[0]


@pytest.mark.parametrize(
    ("url", "scope"),
    [
        ("/v1/audit/entries", Scope.AUDIT_READ),
        ("/v1/audit/checkpoint", Scope.AUDIT_READ),
        ("/v1/audit/keys", Scope.AUDIT_READ),
        ("/v1/audit/proofs/inclusion?index=0", Scope.AUDIT_READ),
        ("/v1/audit/proofs/consistency?first=0&second=1", Scope.AUDIT_READ),
        ("/v1/unlearning-requests/{id}/record.html", Scope.READ),
        ("/v1/unlearning-requests/{id}/record.pdf", Scope.READ),
        ("/v1/unlearning-requests/{id}/record", Scope.READ),
        ("/v1/unlearning-requests/{id}/certificate", Scope.READ),
    ],
)
def test_every_route_needs_a_key_with_its_scope(api, issue, make_token, url, scope):
    url = url.format(id=issue("certificate"))
    assert api.with_token(None).get(url).status_code == 401
    others = [other for other in Scope if other not in {scope, Scope.ADMIN}]
    assert api.with_token(make_token(*others)).get(url).status_code == 403
    assert api.with_token(make_token(scope)).get(url).status_code == 200
