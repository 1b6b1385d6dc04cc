"""What a key of one tenant learns of another's: nothing, on every route of the OpenAPI document.

Whatever names a row of another tenant is answered, byte for byte, as what names no row at all. A
new route fails until it has a rule: ids in its path need a body if it takes one (`BODIES`), no id
in its path an entry in `NAMELESS`, ids in its query one in `QUERIES`.
"""

import re
import uuid

import pytest
from sqlalchemy import select

from app import auth
from app.auth import Scope
from app.evidence.models import AuditEntry
from app.main import assemble
from app.tenants import service as tenants
from app.tenants.models import DEFAULT_TENANT_ID
from tests.app.conftest import one_of_each

REASON = {"explanation": "says a test"}
# What is sent to a route whose path has ids, so that it gets as far as looking for the row.
BODIES = {
    ("post", "/v1/api-keys/{key_id}/rotate"): {},
    ("post", "/v1/unlearning-requests/{request_id}/extension"): REASON
    | {"months": 1, "reason": "complexity"},
    ("post", "/v1/unlearning-requests/{request_id}/identity-check"): REASON,
    ("post", "/v1/unlearning-requests/{request_id}/identity-check/reject"): REASON,
    ("post", "/v1/unlearning-requests/{request_id}/reject"): REASON | {"ground": "art-17-3-b"},
    ("patch", "/v1/webhooks/{webhook_id}"): {"description": "mine now"},
    ("post", "/v1/webhooks/{webhook_id}/rotate-secret"): {},
}
LIST, MADE, NAMES_A_MODEL, OF_NOBODY, LOG = "list", "makes", "body names a model", "nobody's", "log"
# Routes without ids in their path, and why they give nothing away; each kind has its test below.
NAMELESS = {
    ("get", "/livez"): OF_NOBODY,
    ("get", "/readyz"): OF_NOBODY,
    ("get", "/metrics"): OF_NOBODY,  # of the whole service: the operator's token, no API key
    ("get", "/v1/api-keys"): LIST,
    ("post", "/v1/api-keys"): MADE,
    ("get", "/v1/models"): LIST,
    ("post", "/v1/models"): MADE,
    ("get", "/v1/unlearning-requests"): LIST,
    ("post", "/v1/unlearning-requests"): NAMES_A_MODEL,
    ("post", "/v1/unlearning-requests/bulk"): NAMES_A_MODEL,
    ("get", "/v1/webhooks"): LIST,
    ("post", "/v1/webhooks"): MADE,
    ("get", "/v1/audit/entries"): LOG,
    ("get", "/v1/audit/checkpoint"): OF_NOBODY,  # size and root
    ("get", "/v1/audit/keys"): OF_NOBODY,  # public
    ("get", "/v1/audit/proofs/inclusion"): OF_NOBODY,  # hashes
    ("get", "/v1/audit/proofs/consistency"): OF_NOBODY,  # hashes
    ("post", "/v1/certificates/verify"): OF_NOBODY,  # reads what is sent, and public keys
}
# Parameters of a query by which another tenant's rows could be asked for.
QUERIES = {
    ("get", "/v1/unlearning-requests"): {
        "model_id": "model_id",
        "subject_reference": "subject_reference",
    },
}
HARMLESS = {
    "limit", "cursor", "log", "index", "first", "second", "since", "due_before", "at_risk",
    "overdue", "sort", "state", "tier", "method", "created_from", "created_to",
}  # fmt: skip
SUBJECT = "person-of-a"
# Of a row that is there these answer 404, too: A's own key would be told so in other words.
WITHOUT_A_RECORD = re.compile(r"no record|no certificate")


def documented():
    return {
        (method, path): operation
        for path, operations in assemble().openapi()["paths"].items()
        for method, operation in operations.items()
    }


@pytest.fixture
def victim(api, trained):
    """One of everything, all of tenant A, the default one."""
    ids = one_of_each(api, trained, subject_reference=SUBJECT)
    return ids | {"number": "0", "subject_reference": SUBJECT}


@pytest.fixture
def stranger(api, session):
    """The same service, called by an administrator of tenant B."""
    tenant = tenants.create(session, "b", actor="test")
    return api.with_token(token_of(session, tenant.id))


def unknown():
    return {
        name: str(uuid.uuid4())
        for name in ("model_id", "request_id", "webhook_id", "delivery_id", "key_id")
    } | {"number": "0", "subject_reference": "nobody"}


def call(api, method, path, ids, **options):
    if (body := BODIES.get((method, path))) is not None:
        options["json"] = body
    return api(method.upper(), path.format(**ids), **options)


def plain(answer, ids):
    """Return all of an answer but the ids that were asked for and the HTTP request's own."""
    own = answer.headers.get("X-Request-ID", "-")
    content = answer.text.replace(own, "REQUEST")
    headers = {
        name: value for name, value in answer.headers.items() if name.lower() != "x-request-id"
    }
    for name, value in ids.items():
        if name != "number":
            content = content.replace(value, name)
    headers.pop("content-length", None)
    return answer.status_code, content, headers


def with_ids():
    return {key: found for key, found in documented().items() if "{" in key[1]}


def test_every_route_has_a_rule_and_every_rule_a_route():
    routes = documented()
    assert {key for key in routes if "{" not in key[1]} == set(NAMELESS)
    takes_a_body = {key for key, operation in with_ids().items() if "requestBody" in operation}
    assert takes_a_body == set(BODIES)
    for key, operation in routes.items():
        asked = {
            parameter["name"]
            for parameter in operation.get("parameters", [])
            if parameter["in"] == "query"
        }
        assert asked - HARMLESS == set(QUERIES.get(key, {})), key


def test_what_another_tenant_has_is_answered_like_what_nobody_has(victim, stranger, written):
    before, wrong, tried = written(), [], 0
    for method, path in with_ids():
        nobody = unknown()
        others = call(stranger, method, path, victim)
        nobodys = call(stranger, method, path, nobody)
        tried += 1
        if others.status_code != 404 or plain(others, victim) != plain(nobodys, nobody):
            wrong.append((method, path, others.status_code, others.text, nobodys.text))
    assert wrong == []
    assert tried == len(with_ids()) > 20
    assert written() == before


def test_its_owner_gets_an_answer_from_each_of_these_routes(api, victim):
    """Else the test above would pass though it asked for nothing."""
    order = sorted(with_ids(), key=lambda key: (key[0] == "delete", key[0] != "get"))
    missing = []
    for method, path in order:
        if path.endswith("/events"):
            continue  # a stream that lasts as long as its request
        answer = call(api, method, path, victim)
        known = answer.status_code != 404 or WITHOUT_A_RECORD.search(answer.text)
        if not known and not path.endswith("/budget"):
            missing.append((method, path, answer.text))
    assert missing == []


def test_half_of_a_path_that_is_ones_own_opens_nothing_of_the_other_half(api, victim, stranger):
    mine = stranger.post("/v1/webhooks", json={"url": "https://93.184.215.14/b"}).json()["id"]
    path = f"/v1/webhooks/{mine}/deliveries/{{}}/replay"
    nobody = str(uuid.uuid4())
    others = stranger.post(path.format(victim["delivery_id"]))
    nobodys = stranger.post(path.format(nobody))
    assert others.status_code == 404
    assert plain(others, {"d": victim["delivery_id"]}) == plain(nobodys, {"d": nobody})
    assert api.post(f"/v1/webhooks/{victim['webhook_id']}/test").status_code == 202


@pytest.mark.usefixtures("victim")
def test_lists_show_nothing_of_another_tenant(stranger, api):
    for (method, path), kind in NAMELESS.items():
        if kind != LIST:
            continue
        shown = call(stranger, method, path, {}).json()["items"]
        owners = call(api, method, path, {}).json()["items"]
        assert owners, path
        assert {row["id"] for row in shown}.isdisjoint({row["id"] for row in owners})
        assert len(shown) == (1 if path == "/v1/api-keys" else 0)


def test_filters_find_nothing_of_another_tenant(victim, stranger, api):
    for (method, path), parameters in QUERIES.items():
        for name, value in parameters.items():
            query = {name: victim[value]}
            assert call(api, method, path, {}, params=query).json()["items"], name
            answer = call(stranger, method, path, {}, params=query)
            nothing = call(stranger, method, path, {}, params={name: unknown()[value]})
            assert plain(answer, {}) == plain(nothing, {})
            assert answer.json()["items"] == []


def test_a_body_that_names_another_tenants_model_is_answered_like_one_that_names_none(
    victim, stranger, trained, written
):
    before = written()
    model, nobody = victim["model_id"], str(uuid.uuid4())
    path = "/v1/unlearning-requests"
    for make in (
        lambda name: stranger.post(path, json=trained.request(name)),
        lambda name: stranger.post(path, json=trained.request(name, method="paper-sdp")),
        lambda name: stranger.post(path, json=trained.request(name, samples={"x": [[1]], "y": []})),
    ):
        others, nobodys = make(model), make(nobody)
        assert others.status_code in {404, 422}
        assert plain(others, {"id": model}) == plain(nobodys, {"id": nobody})
    assert stranger.post(path, json=trained.request(model)).status_code == 404
    both = [
        stranger.post(f"{path}/bulk", json={"requests": [trained.request(name)]})
        for name in (model, nobody)
    ]
    assert plain(both[0], {"id": model}) == plain(both[1], {"id": nobody})
    assert "not-found" in both[0].text
    assert written() == before


def test_one_idempotency_key_of_two_tenants_is_two(api, stranger, trained):
    again = {"Idempotency-Key": "the-same"}
    first = api.register(trained.parts(), headers=again)
    second = stranger.register(trained.parts(name="another"), headers=again)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]
    assert "Idempotent-Replayed" not in second.headers


def test_names_of_models_are_each_tenants_own(api, stranger, trained):
    answers = [caller.register(trained.parts()) for caller in (api, stranger)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert len({answer.json()["id"] for answer in answers}) == 2


def test_each_tenant_may_have_as_many_webhooks_as_the_setting_says(make_api, session):
    api = make_api(webhook_max_endpoints=1)
    token = token_of(session, tenants.create(session, "b", actor="test").id)
    for caller in (api, api.with_token(token)):
        url = {"url": "https://93.184.215.14/"}
        assert caller.post("/v1/webhooks", json=url).status_code == 201
        assert caller.post("/v1/webhooks", json=url).status_code == 409


def entries(caller):
    return caller.get("/v1/audit/entries", params={"limit": 100}).json()["items"]


def token_of(session, tenant_id, *, whole_log=False):
    _, token = auth.create_key(
        session, name="x", scopes=[Scope.ADMIN], tenant_id=tenant_id, whole_log=whole_log
    )
    session.commit()
    return token


def test_of_the_log_each_sees_its_own_entries_and_the_hashes_of_all(
    api, victim, stranger, session, trained
):
    stranger.register(trained.parts())
    stored = session.scalars(select(AuditEntry).order_by(AuditEntry.index)).all()
    everything = entries(api.with_token(token_of(session, DEFAULT_TENANT_ID, whole_log=True)))
    assert [entry["body"].encode() for entry in everything[: len(stored)]] == [
        entry.body for entry in stored
    ]
    for caller in (api, stranger):
        shown = entries(caller)
        assert [entry["leaf_hash"] for entry in shown] == [
            entry["leaf_hash"] for entry in everything
        ]
        hidden = [entry for entry in shown if "body" not in entry]
        assert hidden
        assert all(set(entry) == {"index", "leaf_hash"} for entry in hidden)
    told = str(entries(stranger))
    assert all(value not in told for name, value in victim.items() if name != "number")
    events = {entry["event"] for entry in entries(stranger) if "event" in entry}
    assert events == {"api-key.created", "model.registered"}
    assert victim["request_id"] in str(entries(api))


@pytest.mark.usefixtures("victim")
def test_while_there_is_one_tenant_the_log_is_shown_whole(api):
    assert all("body" in entry for entry in entries(api))


def test_no_administrator_of_a_tenant_gets_hold_of_a_key_to_the_whole_log(api, session):
    key, token = auth.create_key(session, name="x", scopes=[Scope.ADMIN], whole_log=True)
    session.commit()
    path = f"/v1/api-keys/{key.id}/rotate"
    refused = api.post(path, json={})
    assert (refused.status_code, refused.json()["type"]) == (
        403,
        "urn:lethe:problem:missing-scope",
    )
    made = api.post("/v1/api-keys", json={"name": "y", "scopes": ["admin"]}).json()
    assert made["whole_log"] is False
    rotated = api.with_token(token).post(path, json={})
    assert (rotated.status_code, rotated.json()["whole_log"]) == (201, True)


def test_keys_that_a_tenants_administrator_makes_are_that_tenants(stranger, victim):
    made = stranger.post("/v1/api-keys", json={"name": "y", "scopes": ["admin"]}).json()
    rotated = stranger.post(f"/v1/api-keys/{made['id']}/rotate", json={}).json()
    for token in (made["token"], rotated["token"]):
        caller = stranger.with_token(token)
        assert caller.get(f"/v1/models/{victim['model_id']}").status_code == 404
        assert caller.get("/v1/models").json()["items"] == []
