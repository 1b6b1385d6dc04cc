"""Who may do what: every route of the OpenAPI document, with every scope and every kind of key.

A route without a rule in `RULES` fails, and so does a rule without its route.
"""

import datetime
import uuid

import pytest

from app import auth
from app.auth import Scope
from app.main import assemble
from app.tenants import service as tenants

EVERYBODY = None  # no key is asked for
NOBODYS_ID = "01890000-0000-7000-8000-000000000000"

RULES = {
    ("get", "/livez"): EVERYBODY,
    ("get", "/readyz"): EVERYBODY,
    ("get", "/v1/api-keys"): Scope.ADMIN,
    ("post", "/v1/api-keys"): Scope.ADMIN,
    ("get", "/v1/api-keys/{key_id}"): Scope.ADMIN,
    ("delete", "/v1/api-keys/{key_id}"): Scope.ADMIN,
    ("post", "/v1/api-keys/{key_id}/rotate"): Scope.ADMIN,
    ("get", "/v1/models"): Scope.READ,
    ("post", "/v1/models"): Scope.MODELS_WRITE,
    ("get", "/v1/models/{model_id}"): Scope.READ,
    ("get", "/v1/models/{model_id}/budget"): Scope.READ,
    ("get", "/v1/models/{model_id}/revisions"): Scope.READ,
    ("get", "/v1/models/{model_id}/revisions/{number}/weights"): Scope.WEIGHTS_READ,
    ("get", "/v1/unlearning-requests"): Scope.READ,
    ("post", "/v1/unlearning-requests"): Scope.UNLEARNING_WRITE,
    ("get", "/v1/unlearning-requests/{request_id}"): Scope.READ,
    ("post", "/v1/unlearning-requests/{request_id}/cancel"): Scope.UNLEARNING_WRITE,
    ("post", "/v1/unlearning-requests/bulk"): Scope.UNLEARNING_WRITE,
    ("get", "/v1/unlearning-requests/{request_id}/events"): Scope.READ,
    ("get", "/v1/unlearning-requests/{request_id}/deadline"): Scope.READ,
    ("post", "/v1/unlearning-requests/{request_id}/extension"): Scope.UNLEARNING_WRITE,
    ("post", "/v1/unlearning-requests/{request_id}/identity-check"): Scope.UNLEARNING_WRITE,
    ("post", "/v1/unlearning-requests/{request_id}/identity-check/confirm"): Scope.UNLEARNING_WRITE,
    ("post", "/v1/unlearning-requests/{request_id}/identity-check/reject"): Scope.UNLEARNING_WRITE,
    ("post", "/v1/unlearning-requests/{request_id}/reject"): Scope.UNLEARNING_WRITE,
    ("get", "/v1/unlearning-requests/{request_id}/record"): Scope.READ,
    ("get", "/v1/unlearning-requests/{request_id}/record.html"): Scope.READ,
    ("get", "/v1/unlearning-requests/{request_id}/record.pdf"): Scope.READ,
    ("get", "/v1/unlearning-requests/{request_id}/certificate"): Scope.READ,
    ("get", "/v1/audit/entries"): Scope.AUDIT_READ,
    ("get", "/v1/audit/checkpoint"): Scope.AUDIT_READ,
    ("get", "/v1/audit/proofs/inclusion"): Scope.AUDIT_READ,
    ("get", "/v1/audit/proofs/consistency"): Scope.AUDIT_READ,
    ("get", "/v1/audit/keys"): Scope.AUDIT_READ,
    ("post", "/v1/certificates/verify"): Scope.READ,
    ("get", "/v1/webhooks"): Scope.WEBHOOKS_WRITE,
    ("post", "/v1/webhooks"): Scope.WEBHOOKS_WRITE,
    ("get", "/v1/webhooks/{webhook_id}"): Scope.WEBHOOKS_WRITE,
    ("patch", "/v1/webhooks/{webhook_id}"): Scope.WEBHOOKS_WRITE,
    ("delete", "/v1/webhooks/{webhook_id}"): Scope.WEBHOOKS_WRITE,
    ("post", "/v1/webhooks/{webhook_id}/rotate-secret"): Scope.WEBHOOKS_WRITE,
    ("post", "/v1/webhooks/{webhook_id}/test"): Scope.WEBHOOKS_WRITE,
    ("get", "/v1/webhooks/{webhook_id}/deliveries"): Scope.WEBHOOKS_WRITE,
    ("post", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay"): Scope.WEBHOOKS_WRITE,
}
# What a route asks for beside its path, so that it gets as far as its own work.
QUERY = {
    "/v1/audit/proofs/inclusion": {"index": 0},
    "/v1/audit/proofs/consistency": {"first": 0, "second": 0},
}
# Pages that FastAPI serves outside the document; nothing of the service's state is in them.
UNDOCUMENTED = {"/docs", "/docs/oauth2-redirect", "/openapi.json", "/static-offline-docs"}
# Asks for METRICS_TOKEN, which is no API key.
OWN_TOKEN = {("get", "/metrics")}


def documented():
    return {
        (method, path)
        for path, operations in assemble().openapi()["paths"].items()
        for method in operations
    }


def test_every_route_has_a_rule_and_every_rule_a_route():
    assert set(RULES) | OWN_TOKEN == documented()


def test_no_route_is_hidden_from_the_document(api):
    known = {path for _, path in {*RULES, *OWN_TOKEN}} | UNDOCUMENTED
    routes = list(api.app.routes)
    while routes:
        route = routes.pop()
        inner = getattr(route, "original_router", None)
        if inner is not None:  # FastAPI keeps a router that was included whole
            routes += inner.routes
        else:
            assert route.path in known


def call(api, method, path):
    for name in ("key_id", "model_id", "request_id", "webhook_id", "delivery_id"):
        path = path.replace(f"{{{name}}}", NOBODYS_ID)
    path = path.replace("{number}", "0")
    options = {"params": QUERY.get(path)}
    if method in {"post", "patch"}:
        options |= {"content": b"{}", "headers": {"Content-Type": "application/json"}}
    return api(method.upper(), path, **options)


@pytest.fixture
def tokens(session, make_token):
    """A token of each scope, and those that open nothing."""
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    _, expired = auth.create_key(session, name="x", scopes=[Scope.ADMIN], expires_at=now - hour)
    key, revoked = auth.create_key(session, name="x", scopes=[Scope.ADMIN])
    auth.revoke_key(session, key.id)
    session.commit()
    admin = make_token(Scope.ADMIN)
    nobodys = {
        "none": None,
        "expired": expired,
        "revoked": revoked,
        "unknown": f"lethe_{uuid.uuid4().hex}_{'x' * 43}",
        "wrong secret": admin[:-1] + ("a" if admin[-1] != "a" else "b"),
    }
    return {scope: make_token(scope) for scope in Scope}, nobodys


def test_every_key_gets_what_the_table_says_and_nothing_else(api, tokens):
    by_scope, nobodys = tokens
    wrong = []
    for (method, path), scope in RULES.items():
        for name, token in nobodys.items():
            refused = call(api.with_token(token), method, path).status_code == 401
            if refused is (scope is EVERYBODY):
                wrong.append((method, path, name))
        for held, token in by_scope.items():
            status = call(api.with_token(token), method, path).status_code
            allowed = scope is EVERYBODY or held in {scope, Scope.ADMIN}
            if (status == 403) is allowed or status in {401, 405, 500}:
                wrong.append((method, path, held, status))
    assert wrong == []


def test_keys_of_another_tenant_may_do_as_much_and_no_more(api, session, tokens):
    """Of their own: `test_isolation` says that they do it to nothing of others."""
    by_scope, _ = tokens
    tenant = tenants.create(session, "other", actor="test").id
    foreign = {
        scope: auth.create_key(session, name="x", scopes=[scope], tenant_id=tenant)[1]
        for scope in Scope
    }
    session.commit()
    wrong = []
    for (method, path), scope in RULES.items():
        for held, token in foreign.items():
            here, there = (
                call(api.with_token(one), method, path).status_code
                for one in (by_scope[held], token)
            )
            allowed = scope is EVERYBODY or held in {scope, Scope.ADMIN}
            if here != there or (there == 403) is allowed:
                wrong.append((method, path, held, here, there))
    assert wrong == []


def test_no_key_opens_what_has_a_token_of_its_own(api, tokens):
    by_scope, nobodys = tokens
    for method, path in OWN_TOKEN:
        for token in [*by_scope.values(), *nobodys.values()]:
            assert call(api.with_token(token), method, path).status_code == 401


def test_all_scopes_but_the_one_that_is_needed_are_not_enough(api, make_token):
    wrong = []
    for (method, path), scope in RULES.items():
        if scope is not EVERYBODY:
            others = set(Scope) - {scope, Scope.ADMIN}
            answer = call(api.with_token(make_token(*others)), method, path)
            if (answer.status_code, answer.json()["type"]) != (
                403,
                "urn:lethe:problem:missing-scope",
            ):
                wrong.append((method, path, answer.status_code))
    assert wrong == []


def test_whoever_is_refused_changes_nothing(api, tokens, written):
    by_scope, nobodys = tokens
    before = written()
    for (method, path), scope in RULES.items():
        if method != "get" and scope is not EVERYBODY:
            for token in [
                *nobodys.values(),
                *(token for held, token in by_scope.items() if held not in {scope, Scope.ADMIN}),
            ]:
                call(api.with_token(token), method, path)
    assert written() == before
