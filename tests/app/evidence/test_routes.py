import json

import pytest

from app.auth import Scope
from app.db import new_id
from app.evidence import service
from app.evidence.signing import Signer
from app.evidence.verification import verify_bundle


@pytest.fixture
def own_signer(settings):
    """The signer of the application under test."""
    return Signer.load(settings.signing_key_file)


@pytest.fixture
def issue(session, own_signer, new_record):
    def make(kind):
        record = new_record(session, own_signer, kind)
        session.commit()
        return record.request_id

    return make


@pytest.mark.parametrize("route", ["record", "certificate"])
def test_a_certificate_is_delivered_as_a_file_that_verifies(
    api, issue, own_signer, reference, route
):
    answer = api.get(f"/v1/unlearning-requests/{issue('certificate')}/{route}")
    assert answer.status_code == 200
    key = own_signer.public_pem()
    assert all(check.ok for check in verify_bundle(answer.content, key, b"the new weights"))
    assert all(reference.verify(answer.content, key, b"the new weights").values())


@pytest.mark.parametrize("kind", ["estimate", "refusal", "failure"])
def test_what_guarantees_nothing_is_delivered_as_a_record_but_not_as_a_certificate(
    api, issue, own_signer, kind
):
    request_id = issue(kind)
    record = api.get(f"/v1/unlearning-requests/{request_id}/record")
    assert all(check.ok for check in verify_bundle(record.content, own_signer.public_pem()))
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


def test_a_reader_of_the_log_can_recompute_its_hash_and_compare_it_with_the_checkpoint(
    api, session, own_signer, reference
):
    service.append(session, "tried", subject={}, payload={"text": "ü \n \u2028"})
    session.commit()
    chain = reference.hashlib.sha256(b"").digest()
    items = api.get("/v1/audit/entries?limit=200").json()["items"]
    for item in items:
        leaf = reference.hashlib.sha256(b"\0" + item["body"].encode()).digest()
        chain = reference.hashlib.sha256(b"\1" + chain + leaf).digest()
        assert (item["leaf_hash"], item["chain_hash"]) == (leaf.hex(), chain.hex())
        assert json.loads(item["body"])["payload"] == item["payload"]
    checkpoint = api.get("/v1/audit/checkpoint").json()
    assert (checkpoint["size"], checkpoint["chain_hash"]) == (len(items), chain.hex())
    envelope = checkpoint.pop("envelope")
    reference.check_signature(envelope, own_signer.public_pem(), reference.CHECKPOINT)
    assert reference.read(reference.payload_of(envelope, reference.CHECKPOINT)) == checkpoint


def test_the_public_key_is_delivered_as_pem(api, own_signer):
    answer = api.get("/v1/audit/key")
    assert answer.headers["content-type"].startswith("application/x-pem-file")
    assert answer.content == own_signer.public_pem()
    assert b"PRIVATE" not in answer.content


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
        ("/v1/audit/key", Scope.AUDIT_READ),
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
