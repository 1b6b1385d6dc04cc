"""The API of webhooks: what may be asked, what is shown, and what the audit log says of it."""

import base64
import json
import uuid
from ipaddress import ip_network

import pytest
from sqlalchemy import select, text
from standardwebhooks.webhooks import Webhook as Standard

from app.auth import Scope
from app.evidence.models import AuditEntry
from app.http.idempotency import IdempotentAnswer
from app.tenants.models import DEFAULT_TENANT_ID
from app.tenants.scope import narrow
from app.webhooks import outbox, repository, service
from app.webhooks.models import Webhook, WebhookDelivery, WebhookEvent

URL = "/v1/webhooks"
PUBLIC = "https://93.184.216.34/hooks"  # an address: no name server is asked


@pytest.fixture
def added(api):
    answer = api.post(URL, json={"url": PUBLIC, "description": "privacy platform"})
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture
def entries(session):
    """Returns what the audit log says of webhooks."""

    def read():
        bodies = session.scalars(select(AuditEntry.body).order_by(AuditEntry.index))
        found = [json.loads(body) for body in bodies]
        return [
            (entry["event"], entry["payload"])
            for entry in found
            if entry["event"].startswith("webhook.")
        ]

    return read


def enqueue(session, event=WebhookEvent.REQUEST_COMPLETED, count=1):
    for _ in range(count):
        narrow(session, DEFAULT_TENANT_ID)
        outbox.enqueue(session, event, {"request_id": str(uuid.uuid4()), "state": "completed"})
    session.commit()


def test_a_webhook_is_added_with_a_secret_that_is_shown_once(api, added, session):
    secret = base64.b64decode(added["secret"].removeprefix("whsec_"), validate=True)
    assert len(secret) == 32
    assert added["events"] is None
    assert added["state"] == "enabled"
    found = api.get(f"{URL}/{added['id']}").json()
    assert found == {name: value for name, value in added.items() if name != "secret"}
    assert api.get(URL).json() == {"items": [found], "next_cursor": None}
    # Nowhere in the database, neither in base64 nor in bytes.
    rows = session.execute(text("SELECT webhook::text FROM webhook")).scalars().all()
    entries = session.execute(text("SELECT body FROM audit_entry")).scalars().all()
    assert added["secret"][6:] not in repr(rows)
    assert secret.hex() not in repr(rows)
    assert all(added["secret"][6:].encode() not in bytes(body) for body in entries)


def test_the_answer_says_where_it_is_and_that_no_cache_may_keep_it(api):
    answer = api.post(URL, json={"url": PUBLIC})
    assert answer.headers["Location"] == f"{URL}/{answer.json()['id']}"
    assert answer.headers["Cache-Control"] == "no-store"


def test_an_idempotent_answer_is_kept_without_the_secret(api, session):
    headers = {"Idempotency-Key": "once"}
    first = api.post(URL, json={"url": PUBLIC}, headers=headers)
    again = api.post(URL, json={"url": PUBLIC}, headers=headers)
    assert first.status_code == again.status_code == 201
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json() == first.json() | {"secret": None}
    assert again.headers["Location"] == first.headers["Location"]
    (kept,) = session.scalars(select(IdempotentAnswer))
    assert first.json()["secret"].encode() not in kept.body
    assert len(session.scalars(select(Webhook)).all()) == 1


@pytest.mark.parametrize("size", [24, 64])
def test_a_receivers_own_secret_is_taken_and_signs(api, session, size):
    given = service.show_secret(bytes(range(size)))
    answer = api.post(URL, json={"url": PUBLIC, "secret": given})
    assert answer.json()["secret"] == given
    enqueue(session)
    keys = api.app.state.services.keys
    claim = service.claim(session, keys, uuid.UUID(answer.json()["id"]))
    assert claim.secrets == (bytes(range(size)),)


@pytest.mark.parametrize(
    "secret",
    [
        "hunter2",
        "whsec_",
        "whsec_%%%",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        base64.b64encode(bytes(32)).decode(),
        "whsec_é" + base64.b64encode(bytes(32)).decode(),
    ],
)
def test_a_malformed_secret_is_refused_and_not_quoted(api, secret, written):
    before = written()
    answer = api.post(URL, json={"url": PUBLIC, "secret": secret})
    assert answer.status_code == 422
    assert answer.json()["field"] == "secret"
    assert "24 to 64 bytes" in answer.json()["detail"]
    if len(secret) > 10:
        assert secret not in answer.text
    assert written() == before


@pytest.mark.parametrize(
    ("url", "finding"),
    [
        ("http://93.184.216.34/", "no https address"),
        ("https://127.0.0.1/", "not public (loopback)"),
        ("https://localhost/", "not public (loopback)"),
        ("https://2130706433/", "not public (loopback)"),
        ("https://[::1]/", "not public"),
        ("https://[::ffff:10.0.0.1]/", "not public"),
        ("https://[64:ff9b::a00:1]/", "not public"),
        ("https://169.254.169.254/latest/meta-data", "not public (link-local, cloud metadata)"),
        ("https://100.64.0.1/", "not public (shared by carriers)"),
        ("https://0.0.0.0/", "not public (this network)"),
        ("https://224.0.0.1/", "not public (multicast)"),
        ("https://10.0.0.1:8443/", "not public (private)"),
        ("https://93.184.216.34:22/", "port 22"),
        ("https://user:hunter2@93.184.216.34/", "a user, a password"),
        ("https://nothing.invalid/", "no address"),
        ("not a url", "printable ASCII"),
    ],
)
def test_where_nothing_may_be_sent_no_webhook_leads(api, added, written, url, finding):
    before = written()
    for method, path in [("POST", URL), ("PATCH", f"{URL}/{added['id']}")]:
        answer = api(method, path, json={"url": url})
        assert answer.status_code == 422
        problem = answer.json()
        assert problem["field"] == "url"
        assert finding in problem["detail"]
        assert problem["remedy"]
    assert written() == before
    assert api.get(f"{URL}/{added['id']}").json()["url"] == PUBLIC


def test_what_the_operator_allows_can_be_registered(make_api):
    api = make_api(
        webhook_allow_private_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
        webhook_ports=(9443,),
    )
    assert api.post(URL, json={"url": "https://localhost:9443/"}).status_code == 201
    assert api.post(URL, json={"url": "https://10.0.0.1:9443/"}).status_code == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": 5}, "url"),
        ({"url": PUBLIC, "events": []}, "events"),
        ({"url": PUBLIC, "events": ["model.exploded"]}, "events.0"),
        ({"url": PUBLIC, "state": "disabled"}, "state"),
        ({"url": PUBLIC, "description": "a\nb"}, "description"),
        ({"url": PUBLIC, "secret": 7}, "secret"),
    ],
)
def test_a_malformed_body_names_its_field(api, body, field, written):
    before = written()
    answer = api.post(URL, json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert written() == before


def test_a_form_is_no_json(api, added):
    for method, path in [("POST", URL), ("PATCH", f"{URL}/{added['id']}")]:
        assert api(method, path, files={"url": ("u", b"x")}).status_code == 415


def test_there_are_no_more_webhooks_than_the_operator_allows(make_api):
    api = make_api(webhook_max_endpoints=2)
    first = api.post(URL, json={"url": PUBLIC}).json()
    assert api.post(URL, json={"url": PUBLIC}).status_code == 201
    answer = api.post(URL, json={"url": PUBLIC})
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:lethe:problem:too-many-webhooks"
    assert api("DELETE", f"{URL}/{first['id']}").status_code == 204
    assert api.post(URL, json={"url": PUBLIC}).status_code == 201


def test_pages_go_through_all_webhooks_and_deliveries(api, session):
    made = [api.post(URL, json={"url": PUBLIC}).json()["id"] for _ in range(3)]
    enqueue(session, count=3)
    for path in (URL, f"{URL}/{made[0]}/deliveries"):
        found, cursor = [], None
        while True:
            query = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
            page = api.get(path, params=query).json()
            found += [item["id"] for item in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                break
        assert len(found) == 3
        assert found == sorted(found, reverse=True)
    assert api.get(URL, params={"cursor": "i:5"}).status_code == 422


def test_what_is_left_out_of_a_change_stays(api, added, entries):
    path = f"{URL}/{added['id']}"
    changed = api("PATCH", path, json={"events": ["unlearning-request.failed", "webhook.test"]})
    assert changed.json()["events"] == ["unlearning-request.failed", "webhook.test"]
    assert changed.json()["description"] == "privacy platform"
    changed = api("PATCH", path, json={"description": None, "url": "https://1.1.1.1/other?token=x"})
    assert changed.json()["description"] is None
    assert changed.json()["events"] == ["unlearning-request.failed", "webhook.test"]
    assert api("PATCH", path, json={"events": None}).json()["events"] is None
    before = entries()
    assert api("PATCH", path, json={"url": None, "state": None}).json() == api.get(path).json()
    assert entries() == before  # nothing was changed, so nothing is said


def test_disabled_it_is_told_nothing_and_enabled_it_goes_on_with_what_waited(
    api, added, session, entries
):
    path, identifier = f"{URL}/{added['id']}", uuid.UUID(added["id"])
    keys = api.app.state.services.keys
    enqueue(session)
    disabled = api("PATCH", path, json={"state": "disabled"}).json()
    assert (disabled["state"], disabled["disabled_reason"]) == ("disabled", "requested")
    assert disabled["disabled_at"] is not None
    enqueue(session)
    assert service.due(session) == {}
    assert service.claim(session, keys, identifier) is None
    for action in ("test", f"deliveries/{session.scalar(select(WebhookDelivery.id))}/replay"):
        answer = api.post(f"{path}/{action}")
        assert answer.status_code == 409
        assert answer.json()["type"] == "urn:lethe:problem:webhook-disabled"
    enabled = api("PATCH", path, json={"state": "enabled"}).json()
    assert (enabled["state"], enabled["disabled_reason"], enabled["disabled_at"]) == (
        "enabled",
        None,
        None,
    )
    assert service.due(session) == {identifier: False}
    assert len(session.scalars(select(WebhookDelivery)).all()) == 1
    assert [payload.get("state") for event, payload in entries() if event == "webhook.changed"] == [
        "disabled",
        "enabled",
    ]


def test_a_new_receiver_is_not_blamed_for_the_old_ones_failures(api, added, session):
    webhook = session.get_one(Webhook, uuid.UUID(added["id"]))
    enqueue(session)
    claim = service.claim(session, api.app.state.services.keys, webhook.id)
    service.record(session, claim, service.Outcome(500))
    session.commit()
    assert api.get(f"{URL}/{added['id']}").json()["consecutive_failures"] == 1
    changed = api("PATCH", f"{URL}/{added['id']}", json={"url": "https://1.1.1.1/"}).json()
    assert (changed["consecutive_failures"], changed["failing_since"], changed["resume_at"]) == (
        0,
        None,
        None,
    )


def test_a_deleted_webhook_is_nowhere_to_be_found(api, added, session):
    path = f"{URL}/{added['id']}"
    enqueue(session)
    assert api("DELETE", path).status_code == 204
    row = session.get_one(Webhook, uuid.UUID(added["id"]), populate_existing=True)
    assert (row.wrapped_secret, row.wrapped_previous_secret) == (None, None)
    assert api.get(URL).json()["items"] == []
    assert service.due(session) == {}
    assert service.claim(session, api.app.state.services.keys, row.id) is None
    some = uuid.uuid4()
    for method, rest, body in [
        ("GET", "", None),
        ("PATCH", "", {}),
        ("DELETE", "", None),
        ("POST", "/rotate-secret", {}),
        ("POST", "/test", None),
        ("GET", "/deliveries", None),
        ("POST", f"/deliveries/{some}/replay", None),
    ]:
        answer = api(method, f"{path}{rest}", **({} if body is None else {"json": body}))
        assert answer.status_code == 404, rest
        assert answer.json()["type"] == "urn:lethe:problem:webhook-not-found"


def test_rotating_leaves_two_valid_secrets_or_one_as_asked(api, added, session):
    path, keys = f"{URL}/{added['id']}", api.app.state.services.keys
    secrets = [added["secret"]]
    enqueue(session, count=4)

    def valid():
        claim = service.claim(session, keys, uuid.UUID(added["id"]))
        return [service.show_secret(one) for one in claim.secrets]

    assert valid() == secrets
    for expected in (2, 2):  # the one before the old one counts no more
        secrets.insert(0, api.post(f"{path}/rotate-secret", json={}).json()["secret"])
        assert valid() == secrets[:expected]
    shown = api.get(path).json()
    assert shown["previous_secret_until"] is not None
    assert "secret" not in shown
    answer = api.post(f"{path}/rotate-secret", json={"overlap_hours": 0}).json()
    assert answer["previous_secret_until"] is None
    assert valid() == [answer["secret"]]


def test_rotating_twice_with_one_key_rotates_once(api, added, session):
    headers = {"Idempotency-Key": "rotate"}
    path = f"{URL}/{added['id']}/rotate-secret"
    first = api.post(path, json={}, headers=headers).json()
    assert api.post(path, json={}, headers=headers).json() == first | {"secret": None}
    keys = api.app.state.services.keys
    enqueue(session)
    claim = service.claim(session, keys, uuid.UUID(added["id"]))
    assert service.show_secret(claim.secrets[0]) == first["secret"]


@pytest.mark.parametrize("hours", [-1, 169, 1.5, "24"])
def test_an_overlap_is_of_hours_up_to_a_week(api, added, hours):
    answer = api.post(f"{URL}/{added['id']}/rotate-secret", json={"overlap_hours": hours})
    assert (answer.status_code, answer.json()["field"]) == (422, "overlap_hours")


def test_a_test_is_one_message_with_one_attempt(api, added, session):
    answer = api.post(f"{URL}/{added['id']}/test")
    assert answer.status_code == 202
    assert answer.json()["event"] == "webhook.test"
    assert answer.json()["payload"]["data"] == {"webhook_id": added["id"]}
    keys = api.app.state.services.keys
    claim = service.claim(session, keys, uuid.UUID(added["id"]))
    service.record(session, claim, service.Outcome(error="no answer within 10 s"))
    session.commit()
    (found,) = api.get(f"{URL}/{added['id']}/deliveries").json()["items"]
    assert (found["state"], found["error"], found["response_status"]) == (
        "failed",
        "no answer within 10 s",
        None,
    )
    assert found["next_attempt_at"] is None


def test_deliveries_are_filtered_by_their_state_and_replayed(api, added, session, entries):
    path = f"{URL}/{added['id']}/deliveries"
    enqueue(session, count=2)
    keys = api.app.state.services.keys
    claim = service.claim(session, keys, uuid.UUID(added["id"]))
    service.record(session, claim, service.Outcome(200))
    session.commit()
    (waiting,) = api.get(path, params={"state": "pending"}).json()["items"]
    (done,) = api.get(path, params={"state": "delivered"}).json()["items"]
    assert api.get(path, params={"state": "failed"}).json()["items"] == []
    assert api.get(path, params={"state": "lost"}).status_code == 422
    assert waiting["id"] != done["id"] == str(claim.delivery_id)
    assert (done["response_status"], done["next_attempt_at"]) == (200, None)
    assert waiting["next_attempt_at"] is not None
    replayed = api.post(f"{path}/{done['id']}/replay")
    assert replayed.status_code == 202
    assert replayed.json()["state"] == "pending"
    assert replayed.json()["message_id"] == done["message_id"]
    assert replayed.json()["finished_at"] is None
    event, payload = entries()[-1]
    assert (event, payload["delivery_id"]) == ("webhook.delivery-replayed", done["id"])
    assert api.post(f"{path}/{uuid.uuid4()}/replay").json()["type"].endswith("delivery-not-found")


def test_another_webhooks_delivery_is_not_replayed(api, added, session):
    other = api.post(URL, json={"url": PUBLIC}).json()
    enqueue(session)
    theirs = session.scalar(repository.list_deliveries(uuid.UUID(other["id"]), None))
    answer = api.post(f"{URL}/{added['id']}/deliveries/{theirs.id}/replay")
    assert answer.status_code == 404


def test_every_change_is_in_the_audit_log_with_who_made_it_and_without_what_could_be_secret(
    api, added, entries
):
    path = f"{URL}/{added['id']}"
    api("PATCH", path, json={"url": "https://1.1.1.1/t0ken?key=s3cret", "description": "Jane Doe"})
    api.post(f"{path}/rotate-secret", json={"overlap_hours": 1})
    api("DELETE", path)
    found = entries()
    (actor,) = {payload["actor"] for _, payload in found}
    assert actor.startswith("api-key:")
    assert [event for event, _ in found] == [
        "webhook.created",
        "webhook.changed",
        "webhook.secret-rotated",
        "webhook.deleted",
    ]
    assert found[0][1]["origin"] == "https://93.184.216.34"
    assert found[1][1]["origin"] == "https://1.1.1.1"
    for word in ("t0ken", "s3cret", "Jane", "hooks", "whsec"):
        assert word not in json.dumps(found)


def test_a_webhooks_scope_is_its_own(api, make_token, added):
    manager = api.with_token(make_token(Scope.WEBHOOKS_WRITE))
    reader = api.with_token(make_token(Scope.READ, Scope.UNLEARNING_WRITE, Scope.MODELS_WRITE))
    path = f"{URL}/{added['id']}"
    for method, address, body in [
        ("GET", URL, None),
        ("POST", URL, {"url": PUBLIC}),
        ("GET", path, None),
        ("PATCH", path, {}),
        ("GET", f"{path}/deliveries", None),
        ("POST", f"{path}/rotate-secret", {}),
        ("POST", f"{path}/test", None),
        ("DELETE", path, None),
    ]:
        options = {} if body is None else {"json": body}
        assert reader(method, address, **options).status_code == 403, address
        assert manager(method, address, **options).is_success, address
    assert manager.get("/v1/models").status_code == 403


@pytest.mark.usefixtures("added")
def test_what_leaves_the_service_are_ids_and_states_alone(api, trained, model_id, session):
    body = trained.request(model_id, subject_reference="jane.doe@example.org")
    request = api.post("/v1/unlearning-requests", json=body).json()
    api.post(f"/v1/unlearning-requests/{request['id']}/cancel")
    sent = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)).all()
    messages = [json.loads(one.body) for one in sent]
    assert [message["type"] for message in messages] == [
        "unlearning-request.received",
        "unlearning-request.cancelled",
    ]
    assert [message["data"] for message in messages] == [
        {"model_id": model_id, "request_id": request["id"], "state": state}
        for state in ("queued", "cancelled")
    ]
    assert b"jane" not in b"".join(one.body for one in sent)


def test_the_standards_library_takes_the_secret_as_it_is_shown(added):
    assert Standard(added["secret"])._whsecret == base64.b64decode(added["secret"][6:])


def test_a_message_about_nobody_is_a_mistake_of_ours(session):
    with pytest.raises(ValueError, match="nothing that is anybody's"):
        outbox.enqueue(session, WebhookEvent.REQUEST_FAILED, {"request_id": str(uuid.uuid4())})


@pytest.mark.usefixtures("added")
def test_a_message_that_is_no_thin_one_is_a_mistake_of_ours(session):
    narrow(session, DEFAULT_TENANT_ID)
    with pytest.raises(ValueError, match="ids alone"):
        outbox.enqueue(session, WebhookEvent.REQUEST_FAILED, {"detail": "x" * 20_000})
